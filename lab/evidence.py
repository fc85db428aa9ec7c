"""`Evidence`: a score beside its null, with a confidence interval and what it was measured on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

MARK = " †"
"""Stands after a score that is not better than one of its nulls, by `unbeaten`; tables explain it below."""

_LOSS: dict[str, Callable[[float], float]] = {
    "lower": float,
    "higher": lambda score: -score,
    "nearest one": lambda score: abs(score - 1),
}


def unbeaten(
    value: float | None,
    nulls: Mapping[str, float | None],
    better: str = "lower",
    interval: Sequence[float | None] | None = None,
) -> list[str]:
    """Names of the nulls that a score is not better than, from end to end of its interval.

    A null that is None or not finite is not named: it was not measured. A value that is not finite names none.

    Args:
        better: the direction that is better: lower, higher, or nearest one.
        interval: both ends of the score's interval; without it, the value alone is compared.
    """
    loss = _LOSS[better]
    known = {name: null for name, null in nulls.items() if null is not None and np.isfinite(null)}
    if value is None or not np.isfinite(value):
        return []
    ends = [end for end in interval or () if end is not None and np.isfinite(end)]
    worst = max(map(loss, [value, *ends]))
    return [name for name, null in known.items() if worst >= loss(null)]


def mark(
    value: float | None,
    nulls: Mapping[str, float | None],
    better: str = "lower",
    interval: Sequence[float | None] | None = None,
) -> str:
    """`MARK` if a score is not better than one of its nulls by `unbeaten`, otherwise nothing."""
    return MARK if unbeaten(value, nulls, better, interval) else ""


@dataclass(frozen=True)
class Evidence:
    """One measured number. A number without its null is not a result."""

    name: str
    """Name of the quantity in the field's words: fvu, ce_recovered_zero, ..."""
    value: float
    """The score."""
    interval: tuple[float, float] | None = None
    """95 % bootstrap interval over `unit`."""
    nulls: dict[str, float] = field(default_factory=dict)
    """Score of each control by its name."""
    n: int = 0
    """Number of units measured."""
    unit: str = "documents"
    """Kind of unit that is resampled for the interval."""
    held_out: str = ""
    """Data kept out of training."""
    better: str = "lower"
    """Direction of better values: lower, higher, or nearest one."""
    note: str = ""
    """Caveat that a reader must know before believing the number: a known failure, or how few cases it rests on."""
    missing: dict[str, str] = field(default_factory=dict)
    """Reason of each control that was asked for and could not be measured, by its name."""

    def beats_nulls(self) -> bool:
        """True if the score has nulls, all were measured, and its whole interval is better than each of them.

        A score without an interval is compared by its value. Nulls have no intervals, and where they were measured on
        the same units, a paired difference would be clear earlier.
        """
        if not self.nulls or self.unmeasured or not np.isfinite(self.value):
            return False
        return not self.unbeaten()

    def unbeaten(self) -> list[str]:
        """Names of the measured nulls that the score is not better than, from end to end of its interval."""
        return unbeaten(self.value, self.nulls, self.better, self.interval)

    def mark(self) -> str:
        """`MARK` if the score is not better than one of its nulls, otherwise nothing."""
        return MARK if self.unbeaten() else ""

    @property
    def unmeasured(self) -> dict[str, str]:
        """Reason of each control that has no value, by its name: those missing, and those that are not finite."""
        infinite = {name: "not a finite number" for name, null in self.nulls.items() if not np.isfinite(null)}
        return {**infinite, **self.missing}

    def to_json(self) -> dict[str, Any]:
        """Plain values for files."""
        return asdict(self)

    def __str__(self) -> str:
        spread = f" [{self.interval[0]:.4g}, {self.interval[1]:.4g}]" if self.interval else ""
        nulls = ", ".join(f"{name} {value:.4g}" for name, value in self.nulls.items())
        missing = "".join(f"; null {name} not measured: {reason}" for name, reason in self.missing.items())
        return f"{self.name} {self.value:.4g}{spread}" + (f" (nulls: {nulls})" if nulls else "") + missing


def bootstrap(
    statistic: Callable[[np.ndarray], float], n_units: int, *, seed: int = 0, resamples: int = 1000
) -> tuple[float, float] | None:
    """95 % percentile interval of `statistic(weights)` under resampling of units with replacement.

    Args:
        statistic: maps unit weights [n_units] (how often each unit was drawn) to the score, so that ratios of
            sums are resampled as ratios of sums.

    Returns:
        None where there are fewer than two units.
    """
    if n_units < 2:
        return None
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(n_units, np.full(n_units, 1 / n_units), size=resamples)
    values = np.array([statistic(draw) for draw in draws.astype(np.float64)])
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def known_mean(values: np.ndarray) -> float:
    """The mean over the units that have a value; nan where none has."""
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else float("nan")


def mean_interval(values: np.ndarray, *, seed: int = 0) -> tuple[float, float] | None:
    """95 % interval of the mean over the units that have a value; None where fewer than two have."""
    values = values[np.isfinite(values)]
    return bootstrap(lambda weights: float(weights @ values / weights.sum()), len(values), seed=seed)
