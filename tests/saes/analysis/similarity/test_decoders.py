"""Decoder rows against decoder rows: permuted, planted and random dictionaries."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from monosem.lab.errors import InputError
from monosem.saes.analysis.similarity.decoders import compare_decoders, pairing
from monosem.saes.registry import build

torch.set_num_threads(1)

N, D = 60, 16


def directions(seed: int, n: int = N) -> torch.Tensor:
    return F.normalize(torch.randn(n, D, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_a_permuted_flipped_and_scaled_dictionary_is_the_same_one() -> None:
    mine = directions(0)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    theirs = mine[order] * torch.linspace(-3, 3, N)[:, None]
    found = compare_decoders(mine, theirs, torch.randn(200, D))
    for name in ("mmcs", "mmcs_back", "one_to_one", "found"):
        assert found[name].value == pytest.approx(1, abs=1e-6) and found[name].n == N and found[name].beats_nulls()
    grid = pairing(mine, theirs, shown=10)
    assert grid.shape == (10, 10) and torch.allclose(grid.diagonal(), torch.ones(10), atol=1e-5)


def test_mmcs_asks_one_way_and_pairs_count_each_row_once() -> None:
    mine = directions(0)
    part = mine[:20]
    found = compare_decoders(part, mine)
    assert found["mmcs"].value == pytest.approx(1, abs=1e-6) and found["mmcs_back"].value < 0.9
    twins = torch.cat([mine[:1]] * 2 + [directions(5, 1)])
    both = compare_decoders(twins, mine[:2])
    assert both["mmcs"].value > 0.6 and both["one_to_one"].n == 2
    cosine = float((mine[0] @ mine[1]).abs())
    other = max(cosine, float((directions(5, 1)[0] @ mine[1]).abs()))
    assert both["one_to_one"].value == pytest.approx((1 + other) / 2, abs=1e-5)
    assert "covariance" not in found["mmcs"].nulls


def test_random_dictionaries_score_their_null_and_uneven_activations_raise_it() -> None:
    found = compare_decoders(directions(0), directions(1))
    score = found["mmcs"]
    assert score.value == pytest.approx(score.nulls["random"], abs=0.03) and found["found"].value == 0
    scales = torch.logspace(0, -2, D)
    activations = torch.randn(2000, D, generator=torch.Generator().manual_seed(2)) * scales
    uneven = [F.normalize(directions(seed) * scales, dim=1) for seed in (3, 4)]
    score = compare_decoders(*uneven, activations)["mmcs"]
    assert score.value > score.nulls["random"] + 0.1
    assert score.value == pytest.approx(score.nulls["covariance"], abs=0.03)


def test_dictionaries_are_taken_and_others_refused() -> None:
    mine = build("topk", d_in=D, n_latents=N, k=4)
    with pytest.raises(InputError, match="decoder row 0 of the first is zero"):
        compare_decoders(mine, directions(0))
    mine.W_dec.data.copy_(directions(0))
    assert compare_decoders(mine, directions(0))["mmcs"].value == pytest.approx(1, abs=1e-6)
    with pytest.raises(InputError, match="width 16 and 8 share no space"):
        compare_decoders(mine, torch.randn(5, 8))
    with pytest.raises(InputError, match="width 16 and 8 share no space"):
        compare_decoders(mine, mine, torch.randn(5, 8))
