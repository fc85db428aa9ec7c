"""k-sparse probing: can k latents alone say whether a label holds? (Gurnee et al. 2023, arXiv 2305.01610)

The k latents whose means differ most between the classes are chosen on the training split, a logistic regression is
fitted on them there, and accuracy, AUC and F1 are taken on the test split. The split keeps all rows of a group
(by default equal rows of activations) on one side and is stratified by label; selection, standardising and fitting
see the training split only. Beside every score stand the same probe on k random latents and with shuffled
training labels, on k principal components and on k coordinates, and a probe on all coordinates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ...lab.errors import InputError
from ...lab.evidence import Evidence, bootstrap
from ...lab.rng import derive_seed
from ...lab.sequences import by_position, numbers_of
from ..labels import LEAST, classes_of, group_numbers
from .logistic import solve_logistic
from .splits import folds_of_share, group_folds

Rows = np.ndarray


@dataclass(frozen=True)
class SparseProbeConfig:
    """Settings of probing one label."""

    k: tuple[int, ...] = (1, 2, 5)
    """Numbers of latents to probe with."""
    test_share: float = 0.25
    """Share of the rows that scores are taken on; one over a whole number, nearly."""
    strength: float = 1.0
    """Inverse L2 strength of the logistic regression (scikit-learn's C) on standardised columns."""
    repeats: int = 5
    """Draws of random latents and of shuffled labels that the nulls average."""
    seed: int = 0
    """Of the split, the nulls and the bootstrap."""

    def __post_init__(self) -> None:
        if not self.k or min(self.k) < 1:
            raise InputError(f"k needs numbers of latents of at least 1, got {self.k}")
        if not 0 < self.test_share <= 0.5:
            raise InputError(f"test_share is a share above 0 and at most 0.5, got {self.test_share}")
        if not self.strength > 0 or self.repeats < 1:
            raise InputError(f"strength must be above 0 and repeats at least 1, got {self.strength}, {self.repeats}")


@dataclass(frozen=True)
class SparseProbe:
    """Results of sparse probes of one label."""

    scores: dict[str, Evidence]
    """`accuracy_k1`, `auc_k1`, `f1_k1` and so on for every k, and `accuracy_full`, ... of all coordinates."""
    chosen: dict[int, list[int]]
    """The latents chosen for every k, strongest first."""
    rows: dict[str, int]
    """Rows of `train` and `test`."""
    positives: dict[str, float]
    """Class balance: share of rows with the label, in `train` and `test`."""
    held_out: str
    """Description of the split."""

    def __getitem__(self, name: str) -> Evidence:
        return self.scores[name]

    def to_json(self) -> dict[str, Any]:
        """Plain values for files."""
        return {
            "scores": {name: evidence.to_json() for name, evidence in self.scores.items()},
            "chosen": {str(k): latents for k, latents in self.chosen.items()},
            "rows": self.rows,
            "positives": self.positives,
            "held_out": self.held_out,
        }


def sparse_probe(
    latents: Float[Tensor, "rows n_latents"],
    x: Float[Tensor, "rows d"],
    labels: Sequence[Any] | Tensor,
    *,
    groups: Sequence[Any] | None = None,
    config: SparseProbeConfig | None = None,
    others: Mapping[str, Float[Tensor, "rows m"]] | None = None,
) -> SparseProbe:
    """Probe one binary label.

    Args:
        latents: codes of every row, dense.
        x: what the codes were made from, for the baselines.
        labels: two values of any kind; the one that sorts last is the positive class.
        groups: rows of one group stay on one side of the split; None groups equal rows of `x`.
        others: codes of other dictionaries for the same rows, by name; probed alike, as further nulls.

    Raises:
        InputError: lengths differ, there is one class or more than two, a number is not finite, k is above
            n_latents, or a class has too few rows or groups to split.
    """
    config = config or SparseProbeConfig()
    z, dense, y = _checked(latents, x, labels, config)
    own = groups is None
    ids = np.unique(dense, axis=0, return_inverse=True)[1].reshape(-1) if own else group_numbers(groups, len(y))
    train, test = split(y, ids, config)
    data = _Split(y, train, test, ids[test], config)
    centred = dense - dense[train].mean(0)
    components = np.linalg.svd(centred[train], full_matrices=False)[2]
    bases = {"pca": centred @ components.T, "neurons": dense}
    bases |= {name: codes.detach().float().cpu().numpy() for name, codes in (others or {}).items()}
    scores, chosen = {}, {}
    for k in config.k:
        chosen[k] = by_mean_difference(z[train], y[train], k)
        nulls = {"random_latents": data.random_columns(z, k), "shuffled_labels": data.shuffled(z, k)}
        nulls |= {
            name: data.scores(basis, by_mean_difference(basis[train], y[train], min(k, basis.shape[1])))
            for name, basis in bases.items()
        }
        scores |= data.evidence(f"k{k}", data.decisions(z, chosen[k]), nulls)
    everything = np.arange(dense.shape[1])
    scores |= data.evidence(
        "full", data.decisions(dense, everything), {"shuffled_labels": data.shuffled(dense, len(everything))}
    )
    sides = {"train": train, "test": test}
    return SparseProbe(
        scores,
        {k: columns.tolist() for k, columns in chosen.items()},
        {name: len(side) for name, side in sides.items()},
        {name: float(y[side].mean()) for name, side in sides.items()},
        data.held_out,
    )


def by_mean_difference(z: Rows, y: Rows, k: int) -> np.ndarray:
    """The k columns [k] with the largest |mean over positives - mean over negatives|; ties to the lower index."""
    z, y = numbers_of(z), numbers_of(y)
    difference = np.abs(z[y == 1].mean(0) - z[y == 0].mean(0))
    return np.argsort(-difference, kind="stable")[:k]


def split(y: Rows, groups: Rows, config: SparseProbeConfig) -> tuple[np.ndarray, np.ndarray]:
    """Indexes [train] and [test], stratified by label, every group on one side.

    Raises:
        InputError: the groups leave a side without one of the classes.
    """
    return group_folds(y, groups, folds_of_share(config.test_share), config.seed)[0]


@dataclass
class _Split:
    """One split of one label, and the probes fitted on it."""

    y: Rows
    train: np.ndarray
    test: np.ndarray
    test_groups: np.ndarray
    config: SparseProbeConfig
    rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(derive_seed(self.config.seed, "probe nulls"))

    @property
    def held_out(self) -> str:
        return (
            f"{len(self.test)} rows of {len(self.y)}, stratified by label, no group on both sides; latents, scaling "
            "and probe were fitted on the others"
        )

    def decisions(self, columns: Rows, chosen: np.ndarray, y: Rows | None = None) -> np.ndarray:
        """Log odds [test] of a logistic regression on the chosen columns, fitted on the training split."""
        rows = columns[:, chosen].astype(np.float64)
        mean, spread = rows[self.train].mean(0), rows[self.train].std(0)
        rows = (rows - mean) / np.where(spread > 0, spread, 1)
        probe = solve_logistic(rows[self.train], (self.y if y is None else y)[self.train], self.config.strength)
        return rows[self.test] @ probe.weight[0] + probe.bias[0]

    def scores(self, columns: Rows, chosen: np.ndarray, y: Rows | None = None) -> dict[str, float]:
        """Every score of one probe on the test split."""
        odds, weights = self.decisions(columns, chosen, y), np.ones(len(self.test))
        return {name: score(odds, self.y[self.test], weights) for name, score in SCORES.items()}

    def random_columns(self, z: Rows, k: int) -> dict[str, float]:
        """The mean over draws of k columns that are not constant on the training split."""
        alive = np.flatnonzero(z[self.train].std(0) > 0)
        draws = (self.rng.choice(alive, min(k, len(alive)), replace=False) for _ in range(self.config.repeats))
        return _mean([self.scores(z, draw) for draw in draws if len(draw)])

    def shuffled(self, z: Rows, k: int) -> dict[str, float]:
        """The mean over shuffles of the training labels, columns chosen again for each."""
        found = []
        for _ in range(self.config.repeats):
            y = self.y.copy()
            y[self.train] = self.rng.permutation(y[self.train])
            found.append(self.scores(z, by_mean_difference(z[self.train], y[self.train], k), y))
        return _mean(found)

    def evidence(self, suffix: str, odds: np.ndarray, nulls: dict[str, dict[str, float]]) -> dict[str, Evidence]:
        """Every score of these log odds, with intervals over test groups."""
        y = self.y[self.test]
        unit = np.unique(self.test_groups, return_inverse=True)[1]
        found = {}
        for name, score in SCORES.items():
            interval = bootstrap(
                lambda weights, score=score: score(odds, y, weights[unit]), unit.max() + 1, seed=self.config.seed
            )
            beside = {null: values[name] for null, values in nulls.items() if name in values}
            full = f"{name}_{suffix}"
            found[full] = Evidence(
                full, score(odds, y, np.ones(len(y))), interval, beside, int(unit.max()) + 1, "groups of test rows",
                self.held_out, "higher",
            )  # fmt: skip
        return found


def accuracy(odds: Rows, y: Rows, weights: Rows) -> float:
    """Weighted share of rows on the right side of even odds."""
    odds, y, weights = map(numbers_of, (odds, y, weights))
    return float(weights @ ((odds > 0) == y) / weights.sum())


def auc(odds: Rows, y: Rows, weights: Rows) -> float:
    """Weighted chance that a positive has higher odds than a negative, ties counted half; nan without both."""
    odds, y, weights = map(numbers_of, (odds, y, weights))
    level = np.unique(odds, return_inverse=True)[1]
    positive = np.bincount(level, weights * y)
    negative = np.bincount(level, weights * (1 - y))
    below = negative.cumsum() - negative / 2
    pairs = positive.sum() * negative.sum()
    return float(positive @ below / pairs) if pairs else float("nan")


def f1(odds: Rows, y: Rows, weights: Rows) -> float:
    """Weighted harmonic mean of precision and recall of the positive class; 0 where none is found."""
    odds, y, weights = map(numbers_of, (odds, y, weights))
    told = odds > 0
    both, either = weights @ (told & (y == 1)), weights @ told + weights @ (y == 1)
    return float(2 * both / either) if either else 0.0


SCORES: dict[str, Callable[[Rows, Rows, Rows], float]] = {"accuracy": accuracy, "auc": auc, "f1": f1}


def _mean(found: list[dict[str, float]]) -> dict[str, float]:
    """The mean of every score; nothing for no draws."""
    return {name: float(np.mean([scores[name] for scores in found])) for name in SCORES} if found else {}


def _checked(
    latents: Tensor, x: Tensor, labels: Sequence[Any] | Tensor, config: SparseProbeConfig
) -> tuple[Rows, Rows, Rows]:
    z, dense = (t.detach().float().cpu().numpy() for t in (latents, x))
    told = by_position(labels, "labels")
    if not len(z) == len(dense) == len(told):
        raise InputError(f"{len(z)} rows of latents, {len(dense)} of x and {len(told)} labels: give one label a row")
    classes, y = classes_of(told)
    if len(classes) != 2:
        shown = ", ".join(classes[:6]) + (", ..." if len(classes) > 6 else "")
        raise InputError(f"a probe needs labels of two classes, got {len(classes)} ({shown})")
    counts = np.bincount(y)
    if counts.min() < LEAST:
        least = classes[counts.argmin()]
        raise InputError(f"only {counts.min()} rows are labelled {least}: a probe needs at least {LEAST} of each class")
    for name, values in {"latents": z, "x": dense}.items():
        if not np.isfinite(values).all():
            bad = int((~np.isfinite(values)).any(1).sum())
            raise InputError(f"{bad} of {len(values)} rows of {name} are nan or infinite: leave them out")
    if max(config.k) > z.shape[1]:
        raise InputError(f"k={max(config.k)} is more than the {z.shape[1]} latents there are")
    return z, dense, y
