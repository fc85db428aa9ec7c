"""Measure of the units of a model that vary smoothly over a country, with the share that the prompt alone explains.

    spatial_share_FORM    share of live units with Moran's I of at least `least`, significant at `alpha`
    mean_i_FORM           mean Moran's I of live units
    largest_i_FORM        Moran's I of the unit with the largest; the unit is chosen on the same places

FORM is `name` (the place's name alone), `region` (name and region, the form of the published study, where all places
of one region share tokens), or `residualised` (as `region`, less the mean over the places of the region). Nulls:

    shuffled_region        the name with the region of another place
    region_only            the region without the name
    shuffled_coordinates   the values of `region`, dealt out to the places at random
    random_directions      as many random directions among the neurons; latents of an untrained dictionary
    region_dummies         one indicator for each region: what units that know regions and nothing else could have

After de Sabbata et al. 2025 (arXiv 2505.03368), with a correction for many tests, two-tailed, and these controls.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64

from ...lab.errors import InputError
from ...lab.evidence import Evidence, bootstrap
from ...lab.rng import derive_seed
from ...lab.sequences import integers_of, numbers_of
from ..labels import group_numbers
from .reading import Values, columns_of, live_units, n_units
from .statistics import adjusted, geary, getis_ord, local_moran, moran, permuted_p
from .weights import Weights, best_possible

MEASURED = ("name", "region", "residualised")


@dataclass(frozen=True)
class SpatialConfig:
    """Criteria of a spatial unit."""

    k: int = 8
    """Nearest places that count as neighbours."""
    least: float = 0.3
    """Moran's I that a unit needs."""
    alpha: float = 0.01
    """False discovery rate over all live units, from the analytic z under randomisation. It is also the largest p under
    permutations, which are run for units that have both of the above."""
    permutations: int = 499
    """Shuffles of the places for those."""
    two_tailed: bool = True
    """True if order of the other sign (neighbours that differ) counts in p as well."""
    top: int = 10
    """Units listed for each country."""
    columns: int = 1024
    """Units at a time."""
    seed: int = 0
    """Of shuffles, random directions and bootstraps."""

    def __post_init__(self) -> None:
        for name in ("k", "permutations", "top", "columns"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.alpha < 1 or not np.isfinite(self.least):
            raise InputError(f"alpha is between 0 and 1 and least a number, got {self.alpha} and {self.least}")
        if (smallest := (1 + self.two_tailed) / (1 + self.permutations)) > self.alpha:
            raise InputError(
                f"{self.permutations} permutations give no p below {smallest:.2g}, so that nothing could pass "
                f"alpha={self.alpha}: take more permutations"
            )


class Screen(NamedTuple):
    """Moran's I of every unit and what is significant."""

    i: Float64[np.ndarray, " units"]
    """nan for units that are constant over the places."""
    q: Float64[np.ndarray, " units"]
    """False discovery rate from the analytic z."""
    p: Float64[np.ndarray, " units"]
    """Under permutations; nan where they were not run."""
    spatial: Bool[np.ndarray, " units"]

    @property
    def live(self) -> Bool[np.ndarray, " units"]:
        """Units that are not constant."""
        return np.isfinite(self.i)


def screen(values: Values, weights: Weights, config: SpatialConfig) -> Screen:
    """Moran's I of all units: analytic first, permutations for those that are left.

    Raises:
        InputError: as `statistics.moran`.
    """
    i, p_analytic = np.full(n_units(values), np.nan), np.full(n_units(values), np.nan)
    live = live_units(values)
    for chosen in np.array_split(live, -(-len(live) // config.columns)) if len(live) else ():
        found = moran(columns_of(values, chosen), weights)
        i[chosen], p_analytic[chosen] = found.value, found.p("randomisation", config.two_tailed)
    q = adjusted(p_analytic)
    p = np.full(len(i), np.nan)
    left = np.flatnonzero((i >= config.least) & (q <= config.alpha))
    if len(left):
        rng = np.random.default_rng(derive_seed(config.seed, "permutations"))
        for part in np.array_split(left, -(-len(left) // config.columns)):
            p[part] = permuted_p(columns_of(values, part), weights, rng, config.permutations,
                                 two_tailed=config.two_tailed)  # fmt: skip
    return Screen(i, q, p, p <= config.alpha)


class Geography(NamedTuple):
    """Results for the units of one reader in one country."""

    scores: dict[str, Evidence]
    screens: dict[str, Screen]
    """By form and by null."""
    best_possible: float
    """The largest Moran's I that any values could have on these neighbours."""
    top: list[dict[str, Any]]
    """The units with the largest I of the first form, with every statistic (JSON values)."""

    def to_json(self) -> dict[str, Any]:
        """Plain values for files."""
        live = {name: int(found.live.sum()) for name, found in self.screens.items()}
        return {"scores": {name: evidence.to_json() for name, evidence in self.scores.items()}, "live": live,
                "best_possible": self.best_possible, "top": self.top}  # fmt: skip


def measure_geography(
    values: Mapping[str, Values],
    regions: Int64[np.ndarray, " places"],
    weights: Weights,
    blocks: Int64[np.ndarray, " places"],
    config: SpatialConfig | None = None,
    random: Values | None = None,
) -> Geography:
    """Every score above for the units of one reader in one country.

    Args:
        values: one row a place for every form of prompt that was read; `name` at least.
        regions: the number of each place's region.
        blocks: the block of each place, resampled for the intervals of `largest_i`.
        random: values of random units in the form `region` (or `name`, if that was not read); None takes random
            directions of `values`.

    Raises:
        InputError: no values of the form `name`, or as `statistics.moran`.
    """
    config = config or SpatialConfig()
    regions, blocks = group_numbers(regions, len(regions)), integers_of(blocks, "blocks").numpy()
    if "name" not in values:
        raise InputError(f"values of the prompts 'name' are needed, got {', '.join(values) or 'none'}")
    rng = np.random.default_rng(derive_seed(config.seed, "geography nulls"))
    main = values.get("region", values["name"])
    forms: dict[str, Values] = {name: values[name] for name in MEASURED if name in values}
    if "region" in values:
        forms["residualised"] = residualised(main, regions)
    nulls = {"shuffled_region": values.get("shuffled"), "region_only": values.get("region_only"),
             "shuffled_coordinates": main[rng.permutation(len(regions))],
             "random_directions": random_directions(main, rng) if random is None else random}  # fmt: skip
    if len(np.unique(regions)) > 1:
        nulls["region_dummies"] = (regions[:, None] == np.unique(regions)).astype(np.float32)
    screens = {name: screen(one, weights, config) for name, one in {**forms, **nulls}.items() if one is not None}
    scores = {}
    for form in forms:
        scores |= _scores(
            form, forms[form], screens, {name for name in nulls if name in screens}, weights, blocks, config
        )
    return Geography(scores, screens, best_possible(weights), _top(forms, screens, weights, config))


def residualised(values: Values, groups: Int64[np.ndarray, " places"]) -> Values:
    """Values less the mean over the places of the same group, dense."""
    x, groups = columns_of(values, slice(None)).astype(np.float32), group_numbers(groups, len(groups))
    groups = np.unique(groups, return_inverse=True)[1]
    sums = np.zeros((groups.max() + 1, x.shape[1]), np.float64)
    np.add.at(sums, groups, x)
    return x - (sums / np.bincount(groups)[:, None])[groups].astype(np.float32)


def random_directions(values: Values, rng: np.random.Generator) -> Values:
    """The values along as many random directions as there are units."""
    return values @ rng.normal(size=[n_units(values)] * 2).astype(np.float32)


def moran_interval(
    x: Float64[np.ndarray, " places"], weights: Weights, blocks: Int64[np.ndarray, " places"], seed: int = 0
) -> tuple[float, float] | None:
    """95 % interval of one unit's Moran's I when blocks of nearby places are drawn with replacement.

    A place that is drawn brings its neighbours' values along: I is the slope of those on its own.
    """
    x, blocks = numbers_of(x, "values"), integers_of(blocks, "blocks").numpy()
    lag, degree = weights @ x, np.asarray(weights.sum(1)).reshape(-1)

    def weighted(drawn: np.ndarray) -> float:
        m = drawn[blocks]
        mean = m @ x / m.sum()
        z = x - mean
        spread = m @ z**2 * (m @ degree)
        return float(m.sum() * (m @ (z * (lag - degree * mean))) / spread) if spread > 0 else np.nan

    return bootstrap(weighted, int(blocks.max()) + 1, seed=seed, resamples=400)


def _scores(
    form: str,
    values: Values,
    screens: Mapping[str, Screen],
    nulls: set[str],
    weights: Weights,
    blocks: np.ndarray,
    config: SpatialConfig,
) -> dict[str, Evidence]:
    found, live = screens[form], screens[form].live
    if not live.any():
        raise InputError("every unit is constant over the places: read another site, or another dictionary")
    spatial, i = found.spatial[live].astype(float), found.i[live]
    first = int(np.nanargmax(found.i))
    column = columns_of(values, slice(first, first + 1))[:, 0]
    names = [name for name in screens if name in nulls and screens[name].live.any()]
    dead = [name for name in screens if name in nulls and name not in names]
    about: dict[str, Any] = {
        "held_out": "nothing: no unit is fitted to places", "better": "higher",
        "missing": dict.fromkeys(dead, "every unit is constant over the places"),
    }  # fmt: skip

    def over_units(one: np.ndarray) -> tuple[float, float] | None:
        return bootstrap(lambda drawn: float(drawn @ one / drawn.sum()), len(one), seed=config.seed)

    told = [
        Evidence(f"spatial_share_{form}", float(spatial.mean()), over_units(spatial),
                 {name: float(screens[name].spatial[screens[name].live].mean()) for name in names}, len(i), "units",
                 **about),
        Evidence(f"mean_i_{form}", float(i.mean()), over_units(i),
                 {name: float(np.nanmean(screens[name].i)) for name in names}, len(i), "units", **about),
        Evidence(f"largest_i_{form}", float(i.max()), moran_interval(column, weights, blocks, config.seed),
                 {name: float(np.nanmax(screens[name].i)) for name in names}, len(column), "blocks of places",
                 note=f"unit {first}, the largest of {len(i)}, chosen on the same places", **about),
    ]  # fmt: skip
    return {evidence.name: evidence for evidence in told}


def _top(
    forms: Mapping[str, Values], screens: Mapping[str, Screen], weights: Weights, config: SpatialConfig
) -> list[dict[str, Any]]:
    """The units with the largest I by name alone, and what every statistic says of them there."""
    first = screens["name"]
    order = np.argsort(-np.where(first.live, first.i, -np.inf), kind="stable")[: min(config.top, int(first.live.sum()))]
    x = columns_of(forms["name"], order)
    c, g, local = geary(x, weights), getis_ord(x, weights), local_moran(x, weights)
    marked, hot = significant(local.z, config), significant(g, config)
    rows = []
    for place, unit in enumerate(order.tolist()):
        counts = np.bincount(local.quadrant[marked[:, place], place], minlength=5).tolist()
        rows.append({
            "unit": unit,
            **{f"i_{form}": _plain(screens[form].i[unit]) for form in forms},
            "q": _plain(first.q[unit]), "p": _plain(first.p[unit]), "spatial": bool(first.spatial[unit]),
            "geary_c": _plain(c.value[place]), "geary_z": _plain(c.z_randomisation[place]),
            **dict(zip(("HH", "LH", "LL", "HL"), counts[1:], strict=True)),
            "hot": int((hot[:, place] & (g[:, place] > 0)).sum()),
            "cold": int((hot[:, place] & (g[:, place] < 0)).sum()),
        })  # fmt: skip
    return rows


def significant(z: Float64[np.ndarray, "places units"], config: SpatialConfig) -> Bool[np.ndarray, "places units"]:
    """Places whose local z is significant at `alpha`, as a false discovery rate over the places of each unit."""
    from scipy import stats

    p = (1 + config.two_tailed) * stats.norm.sf(np.abs(z))
    return np.stack([np.nan_to_num(adjusted(column), nan=1) <= config.alpha for column in p.T], 1)


def _plain(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
