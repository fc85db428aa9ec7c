"""Comparing dictionaries fairly: at matched L0, and with the noise between seeds beside every gap.

A score at one L0 says little about another, and two trainings of one recipe differ by their seed alone. So
curves are read at a common L0, and a gap between two recipes is shown with what two seeds of one recipe differ by.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ...lab.errors import InputError
from ...lab.evidence import Evidence
from ...lab.sequences import by_position, numbers_of


@dataclass(frozen=True)
class Curve:
    """One score of one recipe at several L0.

    Raises:
        InputError: no points, a value that is not finite, an L0 that is not positive, or one given twice.
    """

    name: str
    """The recipe."""
    l0: tuple[float, ...]
    """Measured L0 of every point; kept in rising order."""
    values: tuple[float, ...]
    """The score at every point."""

    def __post_init__(self) -> None:
        for column in ("l0", "values"):
            object.__setattr__(self, column, tuple(numbers_of(getattr(self, column), column).tolist()))
        if not self.l0 or len(self.l0) != len(self.values):
            raise InputError(f"{self.name}: {len(self.l0)} values of l0 and {len(self.values)} scores make no curve")
        points = sorted(zip(self.l0, self.values, strict=True))
        l0, values = zip(*points, strict=True)
        if not all(map(math.isfinite, (*l0, *values))) or l0[0] <= 0:
            raise InputError(f"{self.name}: every l0 must be above 0 and every score finite, got {points}")
        if len(set(l0)) < len(l0):
            raise InputError(f"{self.name}: an l0 is given twice in {list(l0)}: average its scores, or use seed_gap")
        object.__setattr__(self, "l0", l0)
        object.__setattr__(self, "values", values)

    def at(self, l0: float) -> float:
        """The score at `l0`, linear in log L0 between the two nearest points.

        Raises:
            InputError: `l0` is outside the measured range; nothing is extrapolated.
        """
        if not self.l0[0] <= l0 <= self.l0[-1]:
            raise InputError(
                f"{self.name} was measured at L0 from {self.l0[0]:.4g} to {self.l0[-1]:.4g}, not at {l0:.4g}: "
                "train a point on the other side of it"
            )
        return float(np.interp(math.log(l0), np.log(self.l0), self.values))


def common_l0(curves: Sequence[Curve]) -> tuple[float, float]:
    """The range of L0 that every curve covers.

    Raises:
        InputError: no curves, or they share no L0.
    """
    if not curves:
        raise InputError("no curves were given to find a common L0 of")
    low, high = max(curves, key=lambda c: c.l0[0]), min(curves, key=lambda c: c.l0[-1])
    if low.l0[0] > high.l0[-1]:
        raise InputError(
            f"{low.name} begins at L0 {low.l0[0]:.4g}, above where {high.name} ends ({high.l0[-1]:.4g}): "
            "train points in between"
        )
    return low.l0[0], high.l0[-1]


def matched(curves: Sequence[Curve], l0: float | None = None) -> dict[str, float]:
    """The score of every curve at one L0, by name.

    Args:
        l0: None takes the middle, in logarithm, of the range that all curves cover.

    Raises:
        InputError: a curve does not reach `l0`, or none is common.
    """
    low, high = common_l0(curves)
    return {curve.name: curve.at(math.sqrt(low * high) if l0 is None else l0) for curve in curves}


def pareto(l0: Sequence[float], values: Sequence[float], *, better: str = "lower") -> list[int]:
    """Indexes of the points that no other beats, by rising L0: none has both a lower L0 and a better score.

    Of points equal in both, the first counts. Points that are not finite never do.

    Raises:
        InputError: the lengths differ, or `better` is neither lower nor higher.
    """
    l0, values = numbers_of(l0, "l0").tolist(), numbers_of(values, "scores").tolist()
    if len(l0) != len(values):
        raise InputError(f"{len(l0)} values of l0 and {len(values)} scores: give one score a point")
    sign = _sign(better)
    points = [
        (x, -sign * y, i)
        for i, (x, y) in enumerate(zip(l0, values, strict=True))
        if math.isfinite(x) and math.isfinite(y)
    ]
    kept, best = [], math.inf
    for _, loss, index in sorted(points):
        if loss < best:
            kept.append(index)
            best = loss
    return kept


@dataclass(frozen=True)
class Gap:
    """The difference between two recipes, each with one score a seed, beside the noise between seeds."""

    score: str
    """Name of the score."""
    first: str
    """Name of one recipe."""
    second: str
    """Name of the other."""
    difference: float
    """Mean of the first less mean of the second."""
    noise: float
    """Difference of two seeds of one recipe: sqrt(2) times the pooled standard deviation; nan for one seed each."""
    interval: tuple[float, float] | None
    """95 % interval of the difference (Welch's t); None unless both have two seeds."""
    seeds: tuple[int, int]
    """How many of each."""
    verdict: str
    """Which is better, `first` or `second`, where the interval leaves out 0; else `within noise` or `noise unknown`."""
    better: str = "lower"
    """Which direction is better."""

    def to_json(self) -> dict[str, Any]:
        """Plain values for files."""
        return asdict(self)

    def evidence(self) -> Evidence:
        """The gap with the difference between two seeds of one recipe as its null."""
        return Evidence(
            f"{self.score}_gap", self.difference, self.interval, {"seed_noise": self.noise}, sum(self.seeds), "seeds",
            better=self.better,
        )  # fmt: skip

    def __str__(self) -> str:
        spread = f" [{self.interval[0]:.4g}, {self.interval[1]:.4g}]" if self.interval else ""
        verdict = {"first": f"{self.first} is better", "second": f"{self.second} is better"}.get(
            self.verdict, self.verdict
        )
        return (
            f"{self.score}: {self.first} - {self.second} = {self.difference:.4g}{spread}, "
            f"seed noise {self.noise:.4g} ({self.seeds[0]} and {self.seeds[1]} seeds): {verdict}"
        )


def seed_gap(
    first: Sequence[float | Evidence],
    second: Sequence[float | Evidence],
    *,
    score: str = "score",
    names: tuple[str, str] = ("first", "second"),
    better: str = "lower",
) -> Gap:
    """Compare two recipes by their scores over seeds; both at the same L0, or the gap is one of L0 too.

    Args:
        first: one score a seed, as numbers or `Evidence`.
        second: the same for the other recipe; seeds need not be the same, nor as many.

    Raises:
        InputError: a recipe without scores, a score that is not finite, or an unknown `better`.
    """
    sides = [np.array([e.value if isinstance(e, Evidence) else e for e in by_position(side, "scores")], float)
             for side in (first, second)]  # fmt: skip
    for name, side in zip(names, sides, strict=True):
        if not len(side) or not np.isfinite(side).all():
            raise InputError(f"{name} needs at least one score and only finite ones, got {side.tolist()}")
    sign, difference = _sign(better), float(sides[0].mean() - sides[1].mean())
    freedom = [len(side) - 1 for side in sides]
    squares = sum(float(((side - side.mean()) ** 2).sum()) for side in sides)
    noise = math.sqrt(2 * squares / sum(freedom)) if sum(freedom) else math.nan
    interval = _welch(sides[0], sides[1]) if min(freedom) else None
    verdict = "noise unknown"
    if interval is not None:
        favours_first = difference * sign > 0
        clear = interval[0] > 0 or interval[1] < 0
        verdict = ("first" if favours_first else "second") if clear else "within noise"
    seeds = (len(sides[0]), len(sides[1]))
    return Gap(score, *names, difference, noise, interval, seeds, verdict, better)


def _welch(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """95 % interval of a difference of means, variances not assumed equal."""
    from scipy.stats import t

    variances = [float(side.var(ddof=1)) / len(side) for side in (first, second)]
    total, middle = sum(variances), float(first.mean() - second.mean())
    if not total:
        return middle, middle
    freedom = total**2 / sum(v**2 / (len(s) - 1) for v, s in zip(variances, (first, second), strict=True))
    half = float(t.ppf(0.975, freedom)) * math.sqrt(total)
    return middle - half, middle + half


def _sign(better: str) -> int:
    if better not in ("lower", "higher"):
        raise InputError(f"better is 'lower' or 'higher', got {better!r}")
    return 1 if better == "higher" else -1
