"""`Steps`: a distribution on finitely many values, with quantiles that never interpolate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from jaxtyping import Float, Int

from ....lab.errors import InputError


@dataclass(frozen=True)
class Steps:
    """Values in rising order, and the share of the whole at or below each; the last share is 1."""

    values: Float[np.ndarray, " steps"]
    shares: Float[np.ndarray, " steps"]

    @classmethod
    def of(cls, values: Float[np.ndarray, " n"], counts: Float[np.ndarray, " n"] | Int[np.ndarray, " n"]) -> Self:
        """From ascending values and how often each occurs; those that never do are left out.

        Raises:
            InputError: nothing occurs.
        """
        held = np.asarray(counts) > 0
        if not held.any():
            raise InputError("a distribution of nothing has no quantiles: give at least one value")
        total = np.cumsum(np.asarray(counts, dtype=np.float64)[held])
        return cls(np.asarray(values, dtype=np.float64)[held], total / total[-1])

    @classmethod
    def of_sample(cls, sample: Float[np.ndarray, " n"]) -> Self:
        """The empirical distribution of a few numbers."""
        return cls.of(*np.unique(np.asarray(sample), return_counts=True))

    def quantile(self, q: float) -> float:
        """The smallest value with at least the share q at or below it."""
        return float(self.values[min(np.searchsorted(self.shares, q), len(self.values) - 1)])

    def below(self, limits: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """The share of values strictly below each limit."""
        return np.concatenate([[0.0], self.shares])[np.searchsorted(self.values, limits, side="left")]

    @property
    def maximum(self) -> float:
        """The largest value."""
        return float(self.values[-1])
