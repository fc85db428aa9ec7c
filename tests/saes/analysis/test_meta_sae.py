"""Meta-SAEs: rows that are sums of a few directions are explained, random rows are not; nulls are what they say."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from monosem.lab.errors import InputError
from monosem.lab.rng import generator
from monosem.saes.analysis.meta_sae import (
    MetaConfig,
    explained,
    measure_meta,
    random_rows,
    shuffled_coordinates,
    unit_rows,
)
from monosem.saes.architectures.topk import TopK
from monosem.saes.registry import build
from torch import Tensor

torch.set_num_threads(1)
FAST = MetaConfig(width=0.125, k=2, steps=120, batch=128, lr=5e-3)


def with_rows(rows: Tensor) -> TopK:
    found = build("topk", d_in=rows.shape[1], n_latents=len(rows), k=1)
    assert isinstance(found, TopK)
    found.W_dec.copy_(rows)
    return found


def composed(n: int = 256, parts: int = 16, width: int = 24) -> Tensor:
    """Every row is the sum of two of `parts` directions."""
    rng = torch.Generator().manual_seed(0)
    directions = F.normalize(torch.randn(parts, width, generator=rng), dim=1)
    pairs = torch.rand(n, parts, generator=rng).argsort(1)[:, :2]
    return directions[pairs].sum(1)


def test_rows_made_of_a_few_directions_are_explained_and_random_ones_are_not() -> None:
    made = measure_meta(with_rows(composed()), FAST)["meta_explained_variance"]
    assert made.value > 0.75 and max(made.nulls.values()) < 0.6 and set(made.nulls) == {"random_rows", "shuffled"}
    assert made.interval is not None and made.interval[0] < made.value < made.interval[1]
    assert made.n == 256 and made.unit == "latents" and made.better == "lower"


def test_the_score_is_one_less_the_error_over_the_variance() -> None:
    rows = unit_rows(with_rows(composed(96)))
    found = explained(rows, replace(FAST, steps=20))
    x_hat = found.dictionary(rows)
    by_hand = 1 - float((rows - x_hat).square().sum() / (rows - rows.mean(0)).square().sum())
    assert found.metrics()["explained_variance"] == pytest.approx(by_hand, abs=1e-5)


def test_rows_of_zeros_and_lengths_do_not_count() -> None:
    rows = composed(64)
    scaled = torch.cat([rows * torch.linspace(0.1, 9, 64)[:, None], torch.zeros(7, 24)])
    torch.testing.assert_close(unit_rows(with_rows(scaled)), F.normalize(rows, dim=1))


def test_nulls_keep_what_they_say() -> None:
    rows = unit_rows(with_rows(composed()))
    dealt = shuffled_coordinates(rows, generator(0, "test"))
    assert torch.equal(dealt.sort(0).values, rows.sort(0).values) and not torch.equal(dealt, rows)
    drawn = random_rows(rows, generator(0, "test"))
    assert drawn.shape == rows.shape and torch.allclose(drawn.norm(dim=1), torch.ones(256))
    assert drawn.mean(0).abs().max() < 0.1


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(InputError, match="at least 16 decoder rows that are not zero, the dictionary has 8"):
        measure_meta(with_rows(composed(8)), MetaConfig())
    with pytest.raises(InputError, match="width is a share of the latents, above 0 and at most 1, got 4"):
        MetaConfig(width=4)
    with pytest.raises(InputError, match="steps must be at least 1, got 0"):
        MetaConfig(steps=0)
