"""`reach_l0`: the penalty coefficient at which a trainer comes to an asked L0, found by training again and again.

L0 falls about as a power of the coefficient, so steps are taken in logarithms: first as if L0 were inversely
proportional to it, then along the line through the two nearest trials, inside the bracket once there is one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Generic, NamedTuple, TypeVar

Result = TypeVar("Result")

FASTEST = 30.0
"""Most that a coefficient is multiplied or divided by from one trial to the next."""
SLOPES = (-3.0, -0.3)
"""Of log L0 over log coefficient, steepest and flattest: what two trials suggest is kept within these."""
NONE = 0.5
"""An L0 below counts as this: its logarithm has no bound."""


class Trial(NamedTuple, Generic[Result]):
    """One training."""

    coefficient: float
    l0: float
    result: Result

    def off(self, wanted: float) -> float:
        """How far its L0 is from another, in logarithms: positive where it is larger."""
        return math.log(max(self.l0, NONE) / wanted)


def reach_l0(
    train: Callable[[float], tuple[float, Result]], wanted: float, start: float, *, trials: int, tolerance: float
) -> list[Trial[Result]]:
    """Every trial made, the nearest to the wanted L0 last; it is within the tolerance, or the trials ran out.

    Args:
        train: from a coefficient to the L0 that it led to, and whatever else is to be kept.
        wanted: the L0 asked for.
        start: the first coefficient.
        trials: the most trainings.
        tolerance: share of the wanted L0 that it may be off by.
    """
    made: list[Trial[Result]] = []
    coefficient = start
    while len(made) < trials:
        made.append(Trial(coefficient, *train(coefficient)))
        if abs(made[-1].l0 / wanted - 1) <= tolerance:
            return made
        coefficient = _next(made, wanted)
    return sorted(made, key=lambda trial: abs(trial.off(wanted)), reverse=True)


def _next(made: Sequence[Trial[Result]], wanted: float) -> float:
    """The coefficient to try after these."""
    ordered = sorted(made, key=lambda trial: trial.coefficient)
    for low, high in pairwise(ordered):
        if low.off(wanted) > 0 > high.off(wanted):
            share = low.off(wanted) / (low.off(wanted) - high.off(wanted))
            return low.coefficient * (high.coefficient / low.coefficient) ** min(max(share, 0.1), 0.9)
    last, slope = made[-1], -1.0
    if len(made) > 1 and made[-2].coefficient != last.coefficient:
        run = math.log(last.coefficient / made[-2].coefficient)
        slope = min(max((last.off(wanted) - made[-2].off(wanted)) / run, SLOPES[0]), SLOPES[1])
    return last.coefficient * min(max(math.exp(-last.off(wanted) / slope), 1 / FASTEST), FASTEST)
