"""The probe for coordinates: planted ones are found in blocks it has not seen, and what only knows neighbours fails."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from monosem.lab.errors import InputError
from monosem.probes.geo.coordinates import CoordinateProbe, coordinate_scores, spatial_blocks, weighted_median
from monosem.probes.geo.places import Places
from threadpoolctl import threadpool_limits

N = 300


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with threadpool_limits(1):  # small matrices: more threads only wait for one another
        yield


def scattered(rng: np.random.Generator, middle: float = 10.0) -> Places:
    """Places all over a square of twenty degrees, in sixteen regions."""
    latitude, east = rng.uniform(-10, 10, N), rng.uniform(-10, 10, N)
    region = 4 * np.floor((latitude + 10) / 5) + np.floor((east + 10) / 5)
    longitude = (east + middle + 180) % 360 - 180
    return Places(tuple(f"place {i}" for i in range(N)), ("XX",) * N, tuple(map(str, region)), latitude, longitude)


@pytest.mark.parametrize(("target", "middle"), [("degrees", 10.0), ("sphere", 180.0)])
def test_planted_coordinates_are_read_in_unseen_blocks(target: str, middle: float) -> None:
    rng = np.random.default_rng(0)
    places = scattered(rng, middle)
    x = places.positions() @ rng.normal(size=(3, 40)) + 1e-3 * rng.normal(size=(N, 40))
    found = coordinate_scores(x, places, CoordinateProbe(target=target))  # type: ignore[arg-type]
    assert found["coordinates_r2_blocks"].value > 0.999 and found["coordinates_km_blocks"].value < 40
    assert all(score.beats_nulls() for score in found.values())
    low, high = found["coordinates_km_blocks"].interval or (0, 0)
    assert (
        low <= found["coordinates_km_blocks"].value <= high and "10 blocks" in found["coordinates_km_blocks"].held_out
    )


def test_noise_is_below_zero_in_blocks_because_their_means_differ() -> None:
    rng = np.random.default_rng(1)
    found = coordinate_scores(rng.normal(size=(N, 30)), scattered(rng))
    score = found["coordinates_r2_blocks"]
    assert score.value == pytest.approx(-0.23, abs=0.06) and score.nulls["mean"] == pytest.approx(-0.23, abs=0.03)
    assert score.nulls["shuffled_places"] == pytest.approx(-0.23, abs=0.06)
    assert abs(found["coordinates_r2_random"].value) < 0.06


def test_knowing_the_region_alone_passes_the_random_test_only() -> None:
    rng = np.random.default_rng(2)
    places = scattered(rng)
    number = np.array([float(region) for region in places.regions]).astype(int)
    regions = np.eye(16)[number] + 1e-2 * rng.normal(size=(N, 16))
    found = coordinate_scores(regions, places)
    assert found["coordinates_r2_random"].value > 0.9 and found["coordinates_r2_random"].nulls["region_mean"] > 0.9
    assert found["coordinates_r2_blocks"].value < 0.6


def test_more_units_than_places_and_dead_ones() -> None:
    rng = np.random.default_rng(3)
    places = scattered(rng)
    x = np.hstack([places.positions() @ rng.normal(size=(3, 420)), np.zeros((N, 50))])
    x[:, :420] += 1e-2 * rng.normal(size=(N, 420))
    assert (
        coordinate_scores(x, places, CoordinateProbe(blocks=5, penalties=(1e-2,)))["coordinates_r2_blocks"].value > 0.99
    )
    silent = coordinate_scores(np.zeros((N, 5)), places, CoordinateProbe(blocks=5))["coordinates_r2_blocks"]
    assert silent.value == pytest.approx(silent.nulls["mean"])


def test_medians_and_blocks() -> None:
    values = np.array([3.0, 1.0, 2.0, 9.0])
    assert weighted_median(values, np.ones(4)) == 2 and weighted_median(values, np.array([0, 0, 0, 2.0])) == 9
    blocks = spatial_blocks(scattered(np.random.default_rng(4)).positions(), 10)
    assert sorted(set(blocks.tolist())) == list(range(10))


def test_what_cannot_be_probed_is_refused() -> None:
    places = scattered(np.random.default_rng(5))
    with pytest.raises(InputError, match="3 rows of activations were given for 300 places"):
        coordinate_scores(np.ones((3, 2)), places)
    with pytest.raises(InputError, match="1 of 300 rows of activations are not finite"):
        coordinate_scores(np.vstack([np.full((1, 2), np.inf), np.ones((N - 1, 2))]), places)
    with pytest.raises(InputError, match="10 blocks need at least 20 places and there are 6: lower blocks"):
        spatial_blocks(np.random.default_rng(0).normal(size=(6, 3)), 10)
    with pytest.raises(InputError, match="blocks must be at least 3"):
        CoordinateProbe(blocks=2)
    with pytest.raises(InputError, match="unknown target of the coordinate probe 'globe'"):
        CoordinateProbe(target="globe")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="penalties need numbers above 0"):
        CoordinateProbe(penalties=(0.0,))
