"""When sparse codes over given atoms are unique, and when one threshold finds them.

    by maximum    mu < 1 / (2 K - 1), mu the largest coherence, K the most atoms in a code: the theorem
    by quantile   q* = sup { q : mu_q < 1 / (2 K_q - 1) }, quantiles of both: what the literature reports

The second is no uniqueness: some pair of the share 1 - q* can always be exchanged. Both stand side by side.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ....lab.errors import InputError
from .steps import Steps


class Uniqueness(NamedTuple):
    """The verdict on atoms and codes."""

    q_star: float
    """The stability metric, in [0, 1]."""
    limit: float
    """1 / (2 K - 1) at the largest K."""
    by_maximum: bool
    """True if the theorem holds: every code is the only one as sparse."""
    isometry: bool
    """True if (K - 1) mu < 1: no K atoms are dependent."""


def stability(coherence: Steps, l0: Steps) -> float:
    """q*: the largest share q at which the q-quantiles of coherence and L0 satisfy the condition; 0 if none does.

    A code of no atoms counts as one of one atom, for which any coherence below 1 will do.
    """
    limits = 1 / (2 * np.maximum(l0.values, 1) - 1)
    # the condition holds at q exactly where q is at most the share of pairs below the limit of q's own L0
    allowed, begins = coherence.below(limits), np.concatenate([[0.0], l0.shares[:-1]])
    reached = np.minimum(allowed, l0.shares)[allowed > begins]
    return float(reached.max()) if len(reached) else 0.0


def uniqueness(coherence: Steps, maximum: float, l0: Steps) -> Uniqueness:
    """Both verdicts, from coherence over pairs, its exact maximum, and atoms in use over tokens."""
    most = max(l0.maximum, 1.0)
    limit = 1 / (2 * most - 1)
    return Uniqueness(stability(coherence, l0), limit, maximum < limit, (most - 1) * maximum < 1)


class Threshold(NamedTuple):
    """The thresholds at which a one-layer encoder with the ideal weights finds exactly the support of every code."""

    low: float
    high: float

    @property
    def feasible(self) -> bool:
        """True if a threshold exists: low < threshold < high."""
        return self.low < self.high

    def __str__(self) -> str:
        shown = f"{self.low:.4g} < threshold < {self.high:.4g}"
        return shown if self.feasible else f"infeasible ({self.low:.4g} is not below {self.high:.4g})"


def threshold_conditions(coherence: float, k: float, smallest: float, largest: float) -> Threshold:
    """eps K dmax < threshold < dmin - eps (K - 1) dmax; feasible where dmin > eps (2 K - 1) dmax.

    Args:
        coherence: eps, the largest |<d_i, d_j>| of unit atoms.
        k: K, the most atoms in a code.
        smallest, largest: dmin and dmax, the range of code magnitudes for unit atoms.

    Raises:
        InputError: a negative coherence, k below 1, or magnitudes that are not 0 < smallest <= largest.
    """
    if not coherence >= 0 or not k >= 1 or not 0 < smallest <= largest:
        raise InputError(
            "threshold conditions take coherence >= 0, k >= 1 and 0 < smallest <= largest, got "
            f"coherence={coherence}, k={k}, smallest={smallest}, largest={largest}"
        )
    return Threshold(coherence * k * largest, smallest - coherence * (k - 1) * largest)
