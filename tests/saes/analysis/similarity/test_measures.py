"""Measures of representations: known answers, what leaves each unchanged, their nulls, and two ways to each number."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monosem.lab.errors import InputError
from monosem.saes.analysis.similarity.grams import Kernel, cka_grids, products
from monosem.saes.analysis.similarity.measures import GEOMETRIC, MEASURES, SimilarityConfig, compare_rows, controls
from monosem.saes.analysis.similarity.moments import CrossMoments, cka
from monosem.saes.analysis.similarity.rows import random_rotation, split_documents

torch.set_num_threads(1)

N, D = 600, 12
CONFIG = SimilarityConfig(anchors=40, variance=1.0, ridge=0.0)


def generated(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(seed: int = 0, width: int = D) -> torch.Tensor:
    """Gaussian rows with a spectrum that falls, about a mean that is not zero."""
    x = torch.randn(N, width, generator=generated(seed))
    return x * torch.linspace(2, 0.5, width) + torch.arange(width) / width


def documents() -> torch.Tensor:
    return torch.arange(N) // 20


def values(x: torch.Tensor, y: torch.Tensor, **options: object) -> dict[str, float]:
    return {name: one.value for name, one in compare_rows(x, y, documents(), CONFIG, **options).items()}  # type: ignore[arg-type]


def dense_cka(x: torch.Tensor, y: torch.Tensor, *, unbiased: bool) -> float:
    """By the definitions over kernel matrices: Kornblith et al. 2019 and Song et al. 2012."""
    k, l = x.double() @ x.double().T, y.double() @ y.double().T
    n = len(k)

    def hsic(a: torch.Tensor, b: torch.Tensor) -> float:
        if not unbiased:
            centre = torch.eye(n, dtype=torch.float64) - 1 / n
            return float((centre @ a @ centre * b).sum())
        a, b = (m - m.diagonal().diag() for m in (a, b))
        sums = a.sum() * b.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (a.sum(0) @ b.sum(0))
        return float((a * b).sum() + sums)

    return hsic(k, l) / (hsic(k, k) * hsic(l, l)) ** 0.5


def test_a_representation_is_like_its_rotated_scaled_and_permuted_self() -> None:
    x, turn = rows(), random_rotation(D, generated(1)).float()
    order = torch.randperm(D, generator=generated(2))
    for other in (x @ turn, 7 * x, x[:, order]):
        assert values(x, other) == pytest.approx(dict.fromkeys(MEASURES, 1.0), abs=1e-4)


def test_shift_changes_all_but_nothing_centred() -> None:
    x = rows()
    found = values(x, x + 5)
    assert found.pop("relative") < 0.99
    assert found == pytest.approx(dict.fromkeys(found, 1.0), abs=1e-4)


def test_a_general_linear_map_hides_from_geometry_alone() -> None:
    x = rows()
    general = x @ torch.randn(D, D, generator=generated(3)) @ torch.diag(torch.logspace(-1, 1, D))
    found = values(x, general)
    assert found["svcca"] == pytest.approx(1, abs=1e-3) and found["regression"] == pytest.approx(1, abs=1e-4)
    assert all(found[name] < 0.9 for name in GEOMETRIC)
    assert values(general, x)["regression"] == pytest.approx(1, abs=1e-3)


def test_orthogonal_subspaces_of_one_signal_have_cka_zero() -> None:
    """Uncorrelated columns, so X'Y = 0 exactly."""
    basis = torch.linalg.qr(torch.cat([torch.ones(N, 1), rows()], 1))[0][:, 1:]
    found = values(basis[:, :6], basis[:, 6:])
    assert found["cka"] == pytest.approx(0, abs=1e-10) and abs(found["cka_unbiased"]) < 0.02


def test_truncation_makes_svcca_blind_to_the_rest() -> None:
    """Two loud shared directions, six quiet ones that are each model's own."""
    shared = 10 * torch.randn(N, 2, generator=generated(0))
    x, y = (torch.cat([shared, torch.randn(N, 6, generator=generated(seed))], 1) for seed in (1, 2))
    cut = compare_rows(x, y, documents(), SimilarityConfig(variance=0.9, anchors=40), measures=["svcca"])["svcca"]
    assert cut.value == pytest.approx(1, abs=0.01)
    assert values(x, y)["svcca"] < 0.5


def test_regression_knows_the_planted_share_and_asks_one_way() -> None:
    x = torch.randn(N, 6, generator=generated(0))
    y = torch.cat([x @ torch.randn(6, 4, generator=generated(1)), torch.randn(N, 2, generator=generated(2))], 1)
    y = y / y.std(0)
    forward, back = values(x, y)["regression"], values(y, x)["regression"]
    assert forward == pytest.approx(4 / 6, abs=0.03) and 0.5 < back < forward + 0.1
    heavy = compare_rows(x, y, documents(), SimilarityConfig(ridge=1e4, anchors=40), measures=["regression"])
    assert abs(heavy["regression"].value) < 0.05


def test_streamed_cka_is_the_one_of_kernel_matrices() -> None:
    x, y = rows(), rows(5, 7) + rows()[:, :7]
    moments = CrossMoments()
    for part in torch.arange(N).split(93):
        moments.add(x[part], y[part], documents()[part])
    found, whole = moments.evidence(), cka(x, y, documents())
    grid = {name: grid[0, 1] for name, grid in cka_grids([x, y]).items()}
    for name, unbiased in (("cka", False), ("cka_unbiased", True)):
        expected = dense_cka(x, y, unbiased=unbiased)
        assert found[name].value == pytest.approx(expected, abs=1e-10)
        assert whole[name].value == pytest.approx(expected, abs=1e-10)
        assert float(grid[name]) == pytest.approx(expected, abs=1e-5)
        low, high = found[name].interval or (1, 0)
        assert low < expected < high and found[name].n == N // 20


def test_unbiased_cka_of_unrelated_rows_is_nothing_where_the_biased_is_not() -> None:
    x, y = (torch.randn(80, 60, generator=generated(seed)) for seed in (0, 1))
    found = cka(x, y)
    assert found["cka"].value > 0.35 and abs(found["cka_unbiased"].value) < 0.05
    low, high = found["cka_unbiased"].interval or (1, 0)
    assert low < 0 < high


def test_nulls_stand_where_nothing_is_shared() -> None:
    x = rows()
    found = compare_rows(x, x @ random_rotation(D, generated(1)).float() + 0.1 * rows(3), documents(), CONFIG)
    for name, one in found.items():
        assert one.beats_nulls(), str(one)
        assert {"shuffled", "spectrum"} <= one.nulls.keys() and ("random_map" in one.nulls) == (name in GEOMETRIC)
        assert one.interval is not None and one.interval[0] <= one.value <= one.interval[1] + 1e-9
    for name in ("cka_unbiased", "svcca", "regression"):
        assert all(abs(found[name].nulls[null]) < 0.12 for null in ("shuffled", "spectrum"))
    none = compare_rows(rows(), rows(9), documents(), CONFIG)
    assert not any(none[name].value > 0.1 for name in ("cka", "cka_unbiased", "svcca", "regression"))


def test_controls_have_the_spectrum_they_claim() -> None:
    x, y = rows(0), rows(1, 9)
    made = controls(x, y, 0)
    spectrum = torch.linalg.svdvals(y - y.mean(0))
    assert torch.allclose(torch.linalg.svdvals(made["random_map"] - made["random_map"].mean(0)), spectrum, rtol=1e-3)
    assert torch.allclose(torch.linalg.svdvals(made["spectrum"] - made["spectrum"].mean(0)), spectrum, rtol=0.25)
    assert torch.equal(made["shuffled"].sort(0).values, y.sort(0).values)
    assert values(x, made["random_map"])["regression"] == pytest.approx(1, abs=1e-4)


def test_held_out_documents_stay_out() -> None:
    split = split_documents(documents(), 0.3, 0)
    fit, test = (set(documents()[part].tolist()) for part in (split.fit, split.test))
    assert not fit & test and len(test) == 9 and len(split.fit) + len(split.test) == N
    assert torch.equal(split.test, split_documents(documents(), 0.3, 0).test)
    one = compare_rows(rows(), rows(), documents(), CONFIG, measures=["regression"])["regression"]
    assert one.n == 10 and one.unit == "documents"


def test_kernels_are_multiplied_in_blocks() -> None:
    made = [Kernel(torch.randn(700, 5, generator=generated(i)), torch.randn(40, 5, generator=generated(i + 9)))
            for i in range(3)]  # fmt: skip
    whole = torch.stack([kernel.left @ kernel.right.T for kernel in made]).flatten(1)
    assert np.allclose(products(made[:2], made), (whole[:2] @ whole.T).double(), atol=1e-2)


BAD = {
    "rows": (lambda x: (x, x[:-1]), "600 rows and y 599: row i of both"),
    "nan": (lambda x: (x, x.clone().index_fill_(0, torch.tensor([3]), torch.nan)), "y holds nan or inf in row 3"),
    "constant": (lambda x: (torch.ones_like(x), x), "every row of x is the same"),
    "few": (lambda x: (x[:3], x[:3]), "at least 4 rows"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_compared_is_refused(case: str) -> None:
    make, message = BAD[case]
    x, y = make(rows())
    with pytest.raises(InputError, match=message):
        compare_rows(x, y, config=CONFIG)


def test_nonsense_options_are_refused() -> None:
    with pytest.raises(InputError, match="unknown measure 'ckaa': did you mean 'cka'"):
        compare_rows(rows(), rows(), measures=["ckaa"])
    with pytest.raises(InputError, match="are of one document"):
        compare_rows(rows(), rows(), torch.zeros(N, dtype=torch.int64), CONFIG)
    with pytest.raises(InputError, match="anchors=900 must be from 2 to"):
        compare_rows(rows(), rows(), documents(), SimilarityConfig(anchors=900), measures=["relative"])
    for options in ({"held_out": 1.0}, {"variance": 0.0}, {"ridge": -1.0}, {"anchors": 1}):
        with pytest.raises(InputError, match=next(iter(options))):
            SimilarityConfig(**options)
