"""Do the chances that a probe of two classes gives come true? Reliability, and two ways to mend it.

    ece      expected calibration error: mean over bins of equal size of |share that is positive - mean chance|
    brier    mean squared distance of chance and label

Nulls: `base_rate` gives every unit the training share of positives (calibrated and useless); `uncalibrated` are the
probe's own log odds taken as they are. Both methods learn from scores of training units by probes that have not seen
them, cross-fitted on folds that keep groups together: Platt's two numbers keep a linear probe linear; isotonic
regression may take any rising form and wants some hundred units.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import expit

from ...lab.errors import InputError, unknown
from ...lab.evidence import Evidence, bootstrap
from ...lab.sequences import numbers_of
from ..labels import Bags, Labels, PooledRows
from ..probe import Probe
from .fits import FitConfig, fit
from .logistic import solve_logistic
from .splits import split_labels

BINS = 10
FOLDS = 4
"""Of the cross-fitting within training units."""
UNPENALISED = 1e6
Rows = Float[np.ndarray, " units"]


class Calibration(Protocol):
    """A rising map from scores to chances."""

    def __call__(self, scores: Rows) -> Rows: ...


@dataclass(frozen=True)
class Platt:
    """sigmoid(slope * score + offset)."""

    slope: float
    offset: float

    @classmethod
    def learn(cls, scores: Rows, y: np.ndarray) -> Platt:
        """By logistic regression of labels on scores, which are scaled for the solver only."""
        scores, y = np.asarray(scores), np.asarray(y)
        spread = float(scores.std()) or 1.0
        solved = solve_logistic(scores[:, None] / spread, y, UNPENALISED)
        return cls(float(solved.weight[0, 0]) / spread, float(solved.bias[0]))

    def __call__(self, scores: Rows) -> Rows:
        return expit(self.slope * np.asarray(scores) + self.offset)

    def folded(self, probe: Probe) -> Probe:
        """The probe whose scores are calibrated log odds.

        Raises:
            InputError: a probe with more than one output.
        """
        _check(probe.classes, len(probe.bias))
        platt = {"slope": self.slope, "offset": self.offset}
        return replace(probe, weight=probe.weight * self.slope, bias=probe.bias * self.slope + self.offset,
                       training={**probe.training, "platt": platt})  # fmt: skip


@dataclass(frozen=True, eq=False)
class Isotonic:
    """Between the scores of training units where the share of positives steps up, straight lines."""

    scores: Float[np.ndarray, " knots"]
    chances: Float[np.ndarray, " knots"]

    @classmethod
    def learn(cls, scores: Rows, y: np.ndarray) -> Isotonic:
        """By isotonic regression of labels on scores."""
        from sklearn.isotonic import IsotonicRegression

        regression = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(np.asarray(scores), np.asarray(y))
        return cls(regression.X_thresholds_, regression.y_thresholds_)

    def __call__(self, scores: Rows) -> Rows:
        return np.interp(np.asarray(scores), self.scores, self.chances)


METHODS: dict[str, Callable[[Rows, np.ndarray], Calibration]] = {"platt": Platt.learn, "isotonic": Isotonic.learn}


def calibrate(
    kind: str,
    train: PooledRows | Bags,
    config: FitConfig | None = None,
    method: Literal["platt", "isotonic"] = "platt",
) -> Calibration:
    """Learn chances for probes of a kind from training units alone, by cross-fitting.

    Raises:
        InputError: an unknown method, more than two classes, or too few groups for the folds.
    """
    if method not in METHODS:
        raise unknown("calibration", method, METHODS)
    _check(train.labels.classes)
    scores = np.zeros(len(train))
    for others, held in split_labels(train.labels, FOLDS, (config or FitConfig()).seed):
        probe = fit(kind, train.take(others), config)
        scores[held] = _column(probe.read(train.take(held)).double().numpy())
    return METHODS[method](scores, train.labels.y.numpy())


def reliability(chances: Rows, y: np.ndarray, bins: int = BINS) -> list[dict[str, float]]:
    """Units in bins of equal size by rising chance: mean chance, share that is positive, and number."""
    chances, y = numbers_of(chances, "chances"), numbers_of(y, "labels")
    parts = [part for part in np.array_split(np.argsort(chances, kind="stable"), bins) if len(part)]
    return [
        {"chance": float(chances[part].mean()), "positive": float(y[part].mean()), "units": len(part)} for part in parts
    ]


def calibration_scores(
    chances: Rows, labels: Labels, *, base_rate: float, uncalibrated: Rows | None = None, seed: int = 0
) -> dict[str, Evidence]:
    """`ece` and `brier` of chances for units that neither probe nor calibration has seen.

    Args:
        base_rate: share of positives among training units.
        uncalibrated: the probe's scores of the same units, as log odds.

    Raises:
        InputError: more than two classes, or chances outside 0 to 1.
    """
    _check(labels.classes)
    chances = numbers_of(chances, "chances")
    if not ((chances >= 0) & (chances <= 1)).all():
        raise InputError(
            f"chances lie between 0 and 1, got {chances.min():.3g} to {chances.max():.3g}: calibrate first"
        )
    y = labels.y.numpy()
    group = np.unique(labels.groups.numpy(), return_inverse=True)[1].reshape(-1)
    n, ones = int(group.max()) + 1, np.ones(len(y))
    others = {"base_rate": np.full(len(y), base_rate)}
    if uncalibrated is not None:
        others["uncalibrated"] = expit(numbers_of(uncalibrated, "uncalibrated scores"))
    evidence = {}
    for name, score in {"ece": ece, "brier": brier}.items():
        interval = bootstrap(lambda weights, score=score: score(chances, y, weights[group]), n, seed=seed)
        nulls = {null: score(chances_of, y, ones) for null, chances_of in others.items()}
        evidence[name] = Evidence(
            name, score(chances, y, ones), interval, nulls, n, "groups of test units",
            "test units; probe and calibration were fitted on the others", "lower",
            "a constant at the base rate is calibrated and tells nothing: read ece beside brier",
        )  # fmt: skip
    return evidence


def ece(chances: Rows, y: np.ndarray, weights: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error over bins of equal size by chance; equal chances share a bin."""
    chances, y, weights = map(numbers_of, (chances, y, weights))
    level = np.unique(chances, return_inverse=True)[1].reshape(-1)
    held = np.bincount(level, weights)
    place = np.minimum((held.cumsum() - held / 2) / held.sum() * bins, bins - 1).astype(int)[level]
    gap = np.bincount(place, weights * (y - chances), bins)
    return float(np.abs(gap).sum() / weights.sum())


def brier(chances: Rows, y: np.ndarray, weights: np.ndarray) -> float:
    """Weighted mean of (chance - label)^2."""
    chances, y, weights = map(numbers_of, (chances, y, weights))
    return float(weights @ np.square(chances - y) / weights.sum())


def _column(scores: np.ndarray) -> np.ndarray:
    return scores[:, 0] if scores.shape[1] == 1 else scores[:, 1] - scores[:, 0]


def _check(classes: tuple[str, ...], outputs: int = 1) -> None:
    if len(classes) != 2 or outputs != 1:
        raise InputError(f"calibration is for probes of two classes with one score, not {len(classes)} classes")


def chances_of(scores: torch.Tensor, calibration: Calibration) -> Rows:
    """Chances of the positive class from a probe's scores [units, outputs]."""
    return calibration(_column(scores.double().numpy()))
