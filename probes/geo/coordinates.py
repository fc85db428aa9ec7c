"""Can a linear map read where a place lies? Ridge regression on coordinates, tested on areas it has not seen.

After Gurnee and Tegmark 2024 (arXiv 2310.02207). Places near each other have alike activations and alike coordinates,
so a test on places drawn at random mostly asks for a place's neighbours. Here whole blocks of the map (clusters of
nearby places) are left out, and the random test stands beside.

    coordinates_r2_blocks    1 - squared error / squared distance from the mean, of all coordinates together; what does
                             not know better than the mean of the other blocks comes out below 0
    coordinates_km_blocks    median great-circle distance between told and true places, km
    coordinates_r2_random, coordinates_km_random    the same where places are left out at random

Nulls: `shuffled_places`, activations dealt out to the places at random; `region_mean`, the mean of the training places
in the same region, or of all where it has none; `mean`, the middle of the training places.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float64, Int64

from ...lab.errors import InputError, unknown
from ...lab.evidence import Evidence, bootstrap
from ...lab.rng import derive_seed
from ...lab.sequences import numbers_of
from .places import EARTH_KM, Places, great_circle_km, unit_vectors

Rows = Float64[np.ndarray, "places d"]
Predictions = Float64[np.ndarray, "places axes"]
Target = Literal["sphere", "degrees"]
CONSTANT = 1e-12
"""A spread below this share of the largest value is rounding."""


@dataclass(frozen=True)
class CoordinateProbe:
    """Settings of reading coordinates off activations."""

    target: Target = "sphere"
    """`sphere`: the three coordinates of the unit vector, which knows no edge; `degrees`: latitude and longitude."""
    blocks: int = 10
    """Clusters of places that are left out one after the other, and parts of the random test."""
    penalties: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
    """Ridge penalties to choose from, as shares of the mean variance along the directions of the rows. The choice is
    made on one training block at a time."""
    seed: int = 0
    """Of the clusters, the random parts, the shuffle and the bootstrap."""

    def __post_init__(self) -> None:
        if self.target not in get_args(Target):
            raise unknown("target of the coordinate probe", self.target, get_args(Target))
        if self.blocks < 3:
            raise InputError(f"blocks must be at least 3 (to test, to choose the penalty, to fit), got {self.blocks}")
        if not self.penalties or not min(self.penalties) > 0:
            raise InputError(f"penalties need numbers above 0, got {self.penalties}")


def spatial_blocks(
    positions: Float64[np.ndarray, "places axes"], blocks: int, seed: int = 0
) -> Int64[np.ndarray, " places"]:
    """The block of every place: clusters of k-means, none empty.

    Raises:
        InputError: fewer places than two for each block.
    """
    from sklearn.cluster import KMeans

    positions = numbers_of(positions, "positions")
    if len(positions) < 2 * blocks:
        raise InputError(
            f"{blocks} blocks need at least {2 * blocks} places and there are {len(positions)}: lower blocks"
        )
    start: Any = derive_seed(seed, "spatial blocks") % 2**32
    clusters = KMeans(blocks, n_init=4, random_state=start).fit_predict(positions)  # pyright: ignore[reportArgumentType]
    return np.unique(clusters, return_inverse=True)[1].astype(np.int64)


def coordinate_scores(x: Rows, places: Places, config: CoordinateProbe | None = None) -> dict[str, Evidence]:
    """The four scores above of activations `x`, intervals over blocks.

    Raises:
        InputError: not one row a place, values that are not finite, or too few places for the blocks.
    """
    config, x = config or CoordinateProbe(), numbers_of(x, "activations")
    if len(x) != len(places):
        raise InputError(f"{len(x)} rows of activations were given for {len(places)} places: give one a place")
    if not np.isfinite(x).all():
        raise InputError(f"{int((~np.isfinite(x)).any(1).sum())} of {len(x)} rows of activations are not finite")
    true = places.positions()
    goal = true if config.target == "sphere" else np.stack([places.latitude, places.longitude], 1)
    rng = np.random.default_rng(derive_seed(config.seed, "coordinates"))
    blocks = spatial_blocks(true, config.blocks, config.seed)
    tests = {
        "blocks": (blocks, f"one of {config.blocks} blocks of nearby places at a time"),
        "random": (rng.permutation(len(x)) % config.blocks, f"one place in {config.blocks} at a time"),
    }
    dealt = x[rng.permutation(len(x))]
    names = [f"{country}/{region}" for country, region in zip(places.countries, places.regions, strict=True)]
    regions = np.unique(names, return_inverse=True)[1]
    spread = _squared(goal, np.broadcast_to(goal.mean(0), goal.shape))
    found: dict[str, Evidence] = {}
    for test, (folds, held_out) in tests.items():
        told = {
            "": cross_predicted(x, goal, folds, config.penalties),
            "shuffled_places": cross_predicted(dealt, goal, folds, config.penalties),
            "region_mean": training_means(goal, folds, regions),
            "mean": training_means(goal, folds, np.zeros_like(regions)),
        }
        errors = {name: _squared(goal, rows) for name, rows in told.items()}
        away = {name: _kilometres(true, rows, config.target) for name, rows in told.items()}
        about = {"n": len(x), "unit": f"places, resampled in {config.blocks} blocks", "held_out": held_out}
        r2, km = f"coordinates_r2_{test}", f"coordinates_km_{test}"
        found[r2] = _evidence(r2, errors, lambda e, w: 1 - float(w @ e / (w @ spread)), blocks, config.seed,
                              better="higher", **about)  # fmt: skip
        found[km] = _evidence(km, away, weighted_median, blocks, config.seed, better="lower", **about)
    return found


def cross_predicted(
    x: Rows, goal: Predictions, folds: Int64[np.ndarray, " places"], penalties: tuple[float, ...]
) -> Predictions:
    """Ridge predictions of every fold from the others; the penalty is chosen with one of those left out in turn."""
    found = np.empty_like(goal)
    numbers = np.unique(folds)
    for fold, inner in zip(numbers, np.roll(numbers, -1), strict=True):
        train, chosen = folds != fold, folds == inner
        tried = _ridge(x[train & ~chosen], goal[train & ~chosen], x[chosen], penalties)
        best = int(np.argmin([_squared(goal[chosen], rows).sum() for rows in tried]))
        (found[~train],) = _ridge(x[train], goal[train], x[~train], penalties[best : best + 1])
    return found


def weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    """The least value with at least half of the weight at or below it."""
    order = np.argsort(values, kind="stable")
    below = weights[order].cumsum()
    return float(values[order][np.searchsorted(below, below[-1] / 2)])


def training_means(
    goal: Predictions, folds: Int64[np.ndarray, " places"], groups: Int64[np.ndarray, " places"]
) -> Predictions:
    """For every place the mean of the others in its group outside its fold; of all outside where there are none."""
    found = np.empty_like(goal)
    for fold in np.unique(folds):
        train = folds != fold
        counts = np.bincount(groups[train], minlength=groups.max() + 1)
        sums = np.stack([np.bincount(groups[train], axis, groups.max() + 1) for axis in goal[train].T], 1)
        means = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], goal[train].mean(0))
        found[~train] = means[groups[~train]]
    return found


def _ridge(x: Rows, goal: Predictions, test: Rows, penalties: tuple[float, ...]) -> list[Predictions]:
    """Predictions for the test rows at every penalty, from one eigendecomposition of the smaller Gram matrix."""
    mean, spread = x.mean(0), x.std(0)
    alive = spread > CONSTANT * np.abs(x).max(0)
    x, test = ((rows[:, alive] - mean[alive]) / spread[alive] for rows in (x, test))
    middle = goal.mean(0)
    wide = x.shape[1] > len(x)
    size, basis = np.linalg.eigh(x @ x.T if wide else x.T @ x)
    read = (test @ x.T if wide else test) @ basis
    written = basis.T @ ((goal - middle) if wide else x.T @ (goal - middle))
    scale = max(float(size.mean()), CONSTANT) if len(size) else 1.0
    return [middle + read @ (written / (np.maximum(size, 0) + penalty * scale)[:, None]) for penalty in penalties]


def _squared(goal: Predictions, told: Predictions) -> Float64[np.ndarray, " places"]:
    return ((goal - told) ** 2).sum(1)


def _kilometres(true: Rows, told: Predictions, target: Target) -> Float64[np.ndarray, " places"]:
    """Distances of predictions from unit vectors; one at the very centre of the earth is as far as can be."""
    points = unit_vectors(told) if target == "degrees" else told
    nowhere = np.linalg.norm(points, axis=1) < CONSTANT
    return np.where(nowhere, np.pi * EARTH_KM, great_circle_km(true, points))


def _evidence(
    name: str, losses: dict[str, np.ndarray], score: Callable[[np.ndarray, np.ndarray], float],
    blocks: np.ndarray, seed: int, **about: Any,
) -> Evidence:  # fmt: skip
    """The score of the losses under \"\", the others as nulls; blocks are drawn for the interval."""
    ones = np.ones(len(blocks))
    values = {null: score(loss, ones) for null, loss in losses.items()}
    interval = bootstrap(lambda drawn: score(losses[""], drawn[blocks]), int(blocks.max()) + 1, seed=seed)
    return Evidence(name, values.pop(""), interval, values, **about)
