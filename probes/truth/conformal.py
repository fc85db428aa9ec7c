"""Inductive conformal prediction: sets of labels that hold the right one as often as asked (Vovk et al. 2005).

A read-out is measured on calibration bags it has not seen; a label stays in the set of a new bag unless it would make
that bag stranger than all but a share alpha of them. A set of one label is an answer, any other an abstention.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from ...lab.errors import InputError, unknown
from ...lab.sequences import integers_of, numbers_of

COVERAGES = ("marginal", "class")


def binary_strangeness(scores: Float[np.ndarray, " rows"]) -> Float[np.ndarray, "rows 2"]:
    """Strangeness exp(-(2y - 1) f) of rows, from a score f that is above 0 for y = 1."""
    bounded = np.clip(np.asarray(scores, np.float64), -700, 700)
    return np.exp(np.stack([bounded, -bounded], 1))


def multiclass_strangeness(probabilities: Float[np.ndarray, "rows classes"]) -> Float[np.ndarray, "rows classes"]:
    """(1 - (P_y - max of the others)) / 2 of each row for every y: 0 for a sure label, 1 for one surely wrong."""
    P = np.asarray(probabilities, np.float64)
    top = np.sort(P, 1)
    others = np.where(top[:, -1:] == P, top[:, -2:-1], top[:, -1:])
    return (1 - (P - others)) / 2


def least_points(alpha: float) -> int:
    """Calibration points without which no label can ever be excluded: 1/alpha - 1."""
    return math.ceil(1 / alpha - 1 - 1e-9)


@dataclass(frozen=True)
class Conformal:
    """Strangeness of calibration bags under their own labels.

    Raises:
        InputError: alpha is no share, the kind of coverage is unknown, a score is not finite, or there are too few
            points: with fewer than 1/alpha - 1 no label can ever be excluded.
    """

    strangeness: Float[np.ndarray, " points"]
    """Of every calibration point under its own label."""
    labels: Int[np.ndarray, " points"]
    """Their labels."""
    alpha: float = 0.1
    """Rate at which the set may miss the right label."""
    coverage: Literal["marginal", "class"] = "marginal"
    """`marginal` holds over all bags together, `class` (Mondrian) within each class: it needs enough of each."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "strangeness", numbers_of(self.strangeness, "calibration scores"))
        object.__setattr__(self, "labels", integers_of(self.labels, "calibration labels").numpy())
        if not 0 < self.alpha < 1:
            raise InputError(f"alpha is a share between 0 and 1, got {self.alpha}")
        if self.coverage not in COVERAGES:
            raise unknown("coverage", self.coverage, COVERAGES)
        if not np.isfinite(self.strangeness).all():
            raise InputError("some calibration scores are nan or infinite: leave those bags out")
        classes = [None] if self.coverage == "marginal" else np.unique(self.labels).tolist()
        for label in classes:
            n = len(self.labels) if label is None else int((self.labels == label).sum())
            if n < (needed := least_points(self.alpha)):
                of = "" if label is None else f" of class {label}"
                raise InputError(
                    f"{n} calibration points{of} can exclude no label at alpha {self.alpha:g}: give at least {needed}, "
                    f"or an alpha of at least {1 / (n + 1):.3g}"
                )

    @classmethod
    def fit(
        cls,
        strangeness: Float[np.ndarray, "points classes"],
        labels: Int[np.ndarray, " points"],
        alpha: float = 0.1,
        coverage: Literal["marginal", "class"] = "marginal",
    ) -> Conformal:
        """From the strangeness of calibration points under every label."""
        own = integers_of(labels, "calibration labels").numpy()
        return cls(numbers_of(strangeness, "calibration scores")[np.arange(len(own)), own], own, alpha, coverage)

    def p_values(self, strangeness: Float[np.ndarray, "rows classes"]) -> Float[np.ndarray, "rows classes"]:
        """The share of calibration points at least as strange as each row under each label, itself counted."""
        strangeness = numbers_of(strangeness, "scores")
        p = np.empty(strangeness.shape)
        for label in range(strangeness.shape[1]):
            calibration = self.strangeness if self.coverage == "marginal" else self.strangeness[self.labels == label]
            ordered = np.sort(calibration)
            above = len(ordered) - np.searchsorted(ordered, strangeness[:, label], side="left")
            p[:, label] = (above + 1) / (len(ordered) + 1)
        return p

    def sets(self, strangeness: Float[np.ndarray, "rows classes"]) -> Bool[np.ndarray, "rows classes"]:
        """Mask of the labels that stay in each set."""
        return self.p_values(strangeness) > self.alpha

    def answers(self, strangeness: Float[np.ndarray, "rows classes"]) -> Int[np.ndarray, " rows"]:
        """The only label of a row's set; -1 where it holds none or several."""
        kept = self.sets(strangeness)
        return np.where(kept.sum(1) == 1, kept.argmax(1), -1)
