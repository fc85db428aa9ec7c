"""Spatial statistics: fields whose values are known, esda's numbers, and what must not change them."""

from __future__ import annotations

import numpy as np
import pytest
from monosem.lab.errors import InputError
from monosem.probes.geo.statistics import QUADRANTS, adjusted, geary, getis_ord, local_moran, moran, permuted_p
from monosem.probes.geo.weights import best_possible, joined, nearest_neighbours, rook

HALVES = np.repeat(np.arange(10) < 5, 10).reshape(10, 10).T.reshape(-1, 1).astype(float)
BOARD = (np.indices((10, 10)).sum(0) % 2).reshape(-1, 1).astype(float)


@pytest.fixture(scope="module")
def field() -> tuple[np.ndarray, np.ndarray]:
    """300 points and three skewed variables, two of which lean on the position."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(300, 2))
    return points, rng.gamma(1.0, size=(300, 3)) + points[:, :1] * [0.0, 1.0, 3.0]


def test_a_field_of_two_halves_and_a_board() -> None:
    for standardised, expected in ((False, 8 / 9), (True, 0.8933)):
        weights = rook(10, 10, standardised=standardised)
        found = moran(np.hstack([HALVES, BOARD]), weights)
        assert found.value == pytest.approx([expected, -1], abs=5e-5) and found.expected == -1 / 99
        assert geary(BOARD, weights).value == pytest.approx([2 * 99 / 100])
    assert moran(HALVES, rook(10, 10, standardised=False)).value[0] == pytest.approx(1 - 1 / 9, abs=1e-12)
    local = local_moran(HALVES, rook(10, 10))
    names = np.array(QUADRANTS)[local.quadrant[:, 0]]
    assert (names == "HH").sum() == 50 and (names == "LL").sum() == 50
    assert local.value.mean() == pytest.approx(0.8933, abs=5e-5)


def test_a_gradient_is_ordered_and_noise_is_not() -> None:
    rng = np.random.default_rng(1)
    points = rng.uniform(size=(2000, 2))
    weights = nearest_neighbours(points, 8)
    found = moran(np.stack([points @ [1.0, 0.5], rng.normal(size=2000)], 1), weights)
    assert found.value[0] == pytest.approx(0.971, abs=0.03) and abs(found.value[1]) < 0.04
    assert found.value[0] < best_possible(weights) and found.p()[0] < 1e-100 < 0.01 < found.p()[1]


def test_the_numbers_are_those_of_esda(field: tuple[np.ndarray, np.ndarray]) -> None:
    esda = pytest.importorskip("esda")
    theirs = pytest.importorskip("libpysal").weights
    points, x = field
    ours = nearest_neighbours(points, 8)
    weights = theirs.KNN.from_array(points, k=8)
    weights.transform = "r"
    assert abs(weights.sparse - ours).max() == 0
    i, c, local, hot = moran(x, ours), geary(x, ours), local_moran(x, ours), getis_ord(x, ours)
    for unit in range(x.shape[1]):
        told = esda.Moran(x[:, unit], weights, permutations=0)
        assert (i.value[unit], i.z_normality[unit], i.z_randomisation[unit], i.expected) == pytest.approx(
            (told.I, told.z_norm, told.z_rand, told.EI), abs=1e-9
        )
        assert i.p("normality", two_tailed=False)[unit] == pytest.approx(told.p_norm / 2, abs=1e-9)
        told = esda.Geary(x[:, unit], weights, permutations=0)
        assert (c.value[unit], c.z_normality[unit], c.z_randomisation[unit]) == pytest.approx(
            (told.C, told.z_norm, told.z_rand), abs=1e-9
        )
        told = esda.Moran_Local(x[:, unit], weights, permutations=0)
        np.testing.assert_allclose(local.value[:, unit], told.Is * 300 / 299, atol=1e-9)  # esda has n - 1 in m2
        np.testing.assert_array_equal(local.quadrant[:, unit], told.q)
        np.testing.assert_allclose(local.z[:, unit], (told.Is * 300 / 299 - told.EIc) / np.sqrt(told.VIc), atol=1e-9)
        told = esda.G_Local(x[:, unit], theirs.KNN.from_array(points, k=8), "B", permutations=0, star=True)
        np.testing.assert_allclose(hot[:, unit], told.Zs, atol=1e-9)
    p = np.random.default_rng(2).uniform(size=200) ** 3
    assert set(np.flatnonzero(p <= esda.fdr(p, 0.05))) == set(np.flatnonzero(adjusted(p) <= 0.05))


def test_analytic_moments_are_those_of_shuffling() -> None:
    """Also for values as skewed as those of a rare latent."""
    rng = np.random.default_rng(3)
    weights = nearest_neighbours(rng.uniform(size=(80, 2)), 5)
    values = rng.exponential(size=80) ** 2
    dealt = np.stack([rng.permutation(values) for _ in range(4000)], 1)
    for statistic in (moran, geary):
        z = statistic(dealt, weights).z_randomisation
        assert z.mean() == pytest.approx(0, abs=0.06) and z.std() == pytest.approx(1, abs=0.05)


def test_permutations_see_order_of_both_signs() -> None:
    weights = rook(10, 10)
    noise = np.random.default_rng(4).normal(size=(100, 60))
    x = np.hstack([HALVES, BOARD, noise, np.ones((100, 1))])
    p = permuted_p(x, weights, np.random.default_rng(5), 199)
    assert p[0] == p[1] == 2 / 200 and np.isnan(p[-1]) and 0.25 < np.median(p[2:-1]) < 0.75
    one_tailed = permuted_p(x[:, :2], weights, np.random.default_rng(5), 199, two_tailed=False)
    assert one_tailed == pytest.approx([1 / 200] * 2)
    analytic = moran(noise, weights).p()
    assert np.corrcoef(p[2:-1], analytic)[0, 1] > 0.97


def test_scale_and_shift_change_nothing(field: tuple[np.ndarray, np.ndarray]) -> None:
    points, x = field
    weights = nearest_neighbours(points, 8)
    for statistic in (moran, geary, local_moran):
        for before, after in zip(statistic(x, weights), statistic(1e4 - 7 * x, weights), strict=True):
            if np.asarray(before).dtype != np.int8:  # quadrants swap with the sign
                np.testing.assert_allclose(after, before, atol=1e-6)
    np.testing.assert_allclose(getis_ord(100 + 3 * x, weights), getis_ord(x, weights), atol=1e-9)
    flat = np.full((300, 1), 0.1)
    assert np.isnan(moran(flat, weights).value).all() and np.isnan(local_moran(flat, weights).z).all()


def test_joined_areas_stay_apart(field: tuple[np.ndarray, np.ndarray]) -> None:
    points, x = field
    parts = [nearest_neighbours(points[:120], 8), nearest_neighbours(points[120:], 8)]
    both = joined(parts)
    assert both[:120, 120:].nnz == both[120:, :120].nnz == 0
    lag = np.concatenate([parts[0] @ x[:120], parts[1] @ x[120:]])
    np.testing.assert_array_equal(both @ x, lag)


def test_nothing_exceeds_the_best_possible() -> None:
    rng = np.random.default_rng(6)
    weights = nearest_neighbours(rng.uniform(size=(60, 2)), 4)
    centring = np.eye(60) - 1 / 60
    dense = centring @ (weights + weights.T).toarray() @ centring / 2
    size, vectors = np.linalg.eigh(dense)
    assert best_possible(weights) == pytest.approx(60 / weights.sum() * size[-1])
    assert moran(vectors[:, -1:], weights).value[0] == pytest.approx(best_possible(weights))
    assert moran(rng.normal(size=(60, 200)), weights).value.max() < best_possible(weights)
    assert best_possible(rook(1, 3)) == pytest.approx(0, abs=1e-9)  # of three in a row nothing is smooth


def test_values_that_cannot_be_measured_are_refused() -> None:
    weights = rook(3, 3)
    with pytest.raises(InputError, match=r"values of shape \[8, 1\] were given for weights of 9 places"):
        moran(np.ones((8, 1)), weights)
    with pytest.raises(InputError, match="1 of 2 units are nan or infinite"):
        geary(np.array([[np.nan, 1.0]] * 9), weights)
    with pytest.raises(InputError, match="at least 4 places, got 2"):
        local_moran(np.ones((2, 1)), rook(1, 2))
    with pytest.raises(InputError, match="no place has a neighbour"):
        getis_ord(np.ones((9, 1)), weights * 0)
    with pytest.raises(InputError, match="permutations must be at least 1, got 0"):
        permuted_p(np.ones((9, 1)), weights, np.random.default_rng(0), 0)
