"""Schedules of a training run: the learning rate, and the weight that steers a penalty to the asked L0."""

from __future__ import annotations

import math

from ...lab.errors import InputError

INTEGRAL = 0.1
"""Change of the log weight per step and unit of log(L0 / asked L0)."""

PROPORTIONAL = 1.0
"""Immediate share of that error in the log weight: damps the integral, which alone overshoots."""

LARGEST_ERROR = 1.0
"""Errors beyond a factor e count as this, so that a far start does not wind the integral up."""

TRUST = (0.05, 1.0)
"""Smallest and largest share of the way to the asked L0 that bounds move after one batch; the first moves half."""

AGREE, DIFFER = 1.2, 0.7
"""Factors of that share after two errors of one sign (the L0 drifts) and of two signs (the batches are noise)."""

SMALLEST = 1e-6
"""Weight and L0 ratio never count as less: both are read through a logarithm."""


def trapezoid(rows: int, total: int, warmup: float, decay: float, *, cosine: bool = False) -> float:
    """Share of the peak learning rate after `rows` of `total`: a linear rise, then 1, then a fall to 0.

    Args:
        warmup: share of the run over which it rises; the first step is already above zero.
        decay: share of the run, at its end, over which it falls.
        cosine: it falls along half a cosine rather than a line.
    """
    up = (rows + 1) / (warmup * total + 1)
    down = min(1.0, max(0.0, (1 - rows / total) / decay)) if decay else 1.0
    down = (1 - math.cos(math.pi * down)) / 2 if cosine else down
    return max(0.0, min(1.0, up, down))


def ramp(progress: float, start: float, end: float) -> float:
    """0 before `start`, 1 after `end`, linear between."""
    return min(1.0, max(0.0, (progress - start) / (end - start))) if end > start else float(progress >= end)


class L0Control:
    """Steers the weight of a sparsity penalty so that the measured L0 becomes the asked one.

    A proportional-integral controller on logarithms: with e = log(L0 / asked L0), each step adds `INTEGRAL` * e to
    the log weight, and `PROPORTIONAL` * e applies at once. `trust` is the share of the way to the asked L0 that a
    quicker actuator (the bounds of `PenalisedObjective`) should go after a batch: it grows while errors keep
    their sign, and shrinks while they alternate, which is the noise of small batches.

    Args:
        target: the asked L0.
        weight: the penalty's weight where it is given: risen to linearly over `warmup`, never steered.
        warmup: share of the run.
    """

    def __init__(self, target: float, weight: float | None, warmup: float) -> None:
        self.target, self.warmup = target, warmup
        self.fixed = weight is not None
        self.log_weight = math.log(weight or 1.0)
        self.error, self.trust = 0.0, 0.5

    def begin(self, weight: float) -> None:
        """Start from this weight, unless one is given."""
        if not self.fixed:
            self.log_weight = math.log(max(weight, SMALLEST))

    def measure(self, l0: float, progress: float) -> float:
        """Take in one batch's mean L0 and return the weight for this batch."""
        if self.fixed:
            return ramp(progress, 0.0, self.warmup) * math.exp(self.log_weight)
        error = math.log(max(l0 / self.target, SMALLEST))
        error = min(LARGEST_ERROR, max(-LARGEST_ERROR, error))
        factor = AGREE if error * self.error > 0 else DIFFER
        self.error, self.trust = error, min(TRUST[1], max(TRUST[0], factor * self.trust))
        self.log_weight = max(math.log(SMALLEST), self.log_weight + INTEGRAL * error)
        return math.exp(self.log_weight + PROPORTIONAL * error)

    def state_dict(self) -> dict[str, float]:
        """State that a continued run needs."""
        return {"log_weight": self.log_weight, "error": self.error, "trust": self.trust}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue from `state_dict`."""
        self.log_weight, self.error, self.trust = state["log_weight"], state["error"], state["trust"]


def check_share(name: str, value: float) -> None:
    """Refuse a share of the run that is not one.

    Raises:
        InputError: `value` lies outside 0 to 1.
    """
    if not 0 <= value <= 1:
        raise InputError(f"{name} is a share from 0 to 1, got {value}")
