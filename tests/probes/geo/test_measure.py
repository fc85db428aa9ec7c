"""Units planted in space, in regions and nowhere: what is found of them, and what each control takes away."""

from __future__ import annotations

import numpy as np
import pytest
from monosem.lab.errors import InputError
from monosem.probes.geo.coordinates import spatial_blocks
from monosem.probes.geo.maps import cluster_map, quantile_classes, value_map
from monosem.probes.geo.measure import Geography, SpatialConfig, measure_geography, moran_interval, residualised, screen
from monosem.probes.geo.places import Places
from monosem.probes.geo.statistics import local_moran, moran
from monosem.probes.geo.weights import nearest_neighbours
from scipy import sparse

N, UNITS = 250, 60
CONFIG = SpatialConfig(permutations=199, top=3, columns=16)


@pytest.fixture(scope="module")
def positions() -> np.ndarray:
    return np.random.default_rng(0).uniform(size=(N, 2))


@pytest.fixture(scope="module")
def regions(positions: np.ndarray) -> np.ndarray:
    """Nine squares."""
    return (3 * np.floor(3 * positions[:, 0]) + np.floor(3 * positions[:, 1])).astype(int)


@pytest.fixture(scope="module")
def values(positions: np.ndarray, regions: np.ndarray) -> dict[str, np.ndarray]:
    """Unit 0 knows the position from the name; 1 to 5 know the region if it is told; the last is dead."""
    rng = np.random.default_rng(1)
    names = rng.normal(size=(N, UNITS))
    names[:, 0] = positions @ [3.0, 2.0] + 0.1 * rng.normal(size=N)
    names[:, -1] = 0
    effect = np.zeros((9, UNITS))
    effect[:, 1:6] = 5 * rng.normal(size=(9, 5))
    dealt = rng.permutation(regions)
    forms = {"name": names, "region": names + effect[regions], "shuffled": names + effect[dealt],
             "region_only": effect[regions]}  # fmt: skip
    return {form: rows.astype(np.float32) for form, rows in forms.items()}


@pytest.fixture(scope="module")
def found(values: dict[str, np.ndarray], positions: np.ndarray, regions: np.ndarray) -> Geography:
    blocks = spatial_blocks(positions, 8)
    return measure_geography(values, regions, nearest_neighbours(positions), blocks, CONFIG)


def test_each_control_takes_its_share(found: Geography) -> None:
    share = {name.removeprefix("spatial_share_"): found.scores[name].value * (UNITS - 1)
             for name in found.scores if name.startswith("spatial_share")}  # fmt: skip
    assert share["name"] == pytest.approx(1) and share["region"] == pytest.approx(6)
    assert found.screens["residualised"].spatial[1:].sum() == 0
    nulls = found.scores["spatial_share_region"].nulls
    assert nulls["shuffled_coordinates"] == 0 and nulls["region_only"] == 1 and nulls["region_dummies"] == 1
    assert nulls["shuffled_region"] == pytest.approx(1 / (UNITS - 1))  # the name still tells unit 0
    assert found.scores["largest_i_name"].value > 0.9 > found.scores["largest_i_name"].nulls["random_directions"]
    assert "unit 0, the largest of 59" in found.scores["largest_i_name"].note
    for evidence in found.scores.values():
        low, high = evidence.interval or (np.nan, np.nan)
        assert low <= evidence.value <= high and evidence.n in (N, UNITS - 1)


def test_a_control_whose_units_are_constant_is_told(
    values: dict[str, np.ndarray], positions: np.ndarray, regions: np.ndarray
) -> None:
    constant = {**values, "region_only": np.ones_like(values["region_only"])}
    score = measure_geography(
        constant, regions, nearest_neighbours(positions), spatial_blocks(positions, 8), CONFIG
    ).scores["spatial_share_region"]
    assert "region_only" not in score.nulls
    assert score.missing == {"region_only": "every unit is constant over the places"}


def test_the_first_units_are_listed_with_every_statistic(found: Geography) -> None:
    told = found.to_json()
    first, second, _ = told["top"]
    assert first["unit"] == 0 and first["spatial"] and first["p"] == 2 / 200 and first["q"] < 1e-50
    assert not second["spatial"] and second["p"] is None
    assert first["i_name"] > 0.9 > 0.1 > first["geary_c"] and first["geary_z"] < -10
    assert min(first["HH"], first["LL"], first["hot"], first["cold"]) > 20 and first["LH"] + first["HL"] == 0
    assert told["best_possible"] > first["i_name"] and told["live"]["name"] == UNITS - 1


def test_sparse_values_give_the_same_as_dense(values: dict[str, np.ndarray], positions: np.ndarray) -> None:
    weights = nearest_neighbours(positions)
    codes = np.maximum(values["region"], 0)
    dense, thin = screen(codes, weights, CONFIG), screen(sparse.csc_array(codes), weights, CONFIG)
    for one, other in zip(dense, thin, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9)


def test_order_by_chance_is_rare_and_residuals_have_no_region(positions: np.ndarray, regions: np.ndarray) -> None:
    rng = np.random.default_rng(2)
    config = SpatialConfig(least=0, permutations=199)
    noise = rng.exponential(size=(N, 500)).astype(np.float32) ** 2
    assert screen(noise, nearest_neighbours(positions), config).spatial.mean() < 0.01
    flat = residualised(noise, regions)
    for region in np.unique(regions):
        np.testing.assert_allclose(flat[regions == region].mean(0), 0, atol=1e-4)


def test_an_interval_of_equal_weights_is_around_the_statistic(positions: np.ndarray) -> None:
    weights = nearest_neighbours(positions)
    x = positions[:, 0] + 0.5 * np.random.default_rng(3).normal(size=N)
    low, high = moran_interval(x, weights, spatial_blocks(positions, 12)) or (np.nan, np.nan)
    assert low < moran(x[:, None], weights).value[0] < high < 1 and high - low < 0.4


def test_maps_show_every_place_once(positions: np.ndarray) -> None:
    spread = 20 * positions - 10
    places = Places(tuple(f"p{i}" for i in range(N)), ("XX",) * N, ("?",) * N, spread[:, 0], spread[:, 1])
    x = np.where(positions[:, 0] > 0.6, positions[:, 0], 0.0)  # a latent, silent on most
    number, edges = quantile_classes(x)
    assert edges[0] == 0 and edges[-1] == x.max() and (number[x == 0] == 0).all() and number.max() == len(edges) - 2
    local = local_moran(x[:, None], nearest_neighbours(positions))
    for figure in (value_map(places, x), cluster_map(places, x, local.quadrant[:, 0], local.z[:, 0] > 2)):
        told = figure.to_plotly_json()["data"]
        assert sum(len(trace["x"]) for trace in told) == N and all(trace["type"] == "scatter" for trace in told)
    assert {"HH: high among high", "not significant"} <= {trace["name"] for trace in told}
    assert len(quantile_classes(np.ones(5))[1]) == 2


def test_what_cannot_be_measured_is_refused(positions: np.ndarray, regions: np.ndarray) -> None:
    weights, blocks = nearest_neighbours(positions), np.zeros(N, int)
    with pytest.raises(InputError, match="values of the prompts 'name' are needed, got region"):
        measure_geography({"region": np.ones((N, 2))}, regions, weights, blocks)
    with pytest.raises(InputError, match="every unit is constant over the places"):
        measure_geography({"name": np.ones((N, 2))}, regions, weights, blocks, CONFIG)
    with pytest.raises(
        InputError, match=r"99 permutations give no p below 0.02, so that nothing could pass alpha=0.01"
    ):
        SpatialConfig(permutations=99)
    with pytest.raises(InputError, match="k must be at least 1, got 0"):
        SpatialConfig(k=0)
