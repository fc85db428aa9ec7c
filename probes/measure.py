"""Measuring probes on units they were not fitted on, each score beside nulls that learned as much as it may have.

    auc         chance that a unit of a class scores above one of another; of more than two, the mean over classes
    accuracy    mean over classes of the share that is called right, so that a rare class counts as much (balanced)
    r2          of numbers: 1 - squared error / squared distance from the mean, mean over outputs

    shuffled_labels     the same fit with the training labels dealt to other training units
    token_count         the same kind of probe on the number of tokens alone
    random_features     the same kind on random vectors, one for each token of the vocabulary, of the same width and
                        pooled alike: what can be told without a model
    shuffled_model      the same kind on activations of the model with every weight matrix's entries shuffled

Splits keep groups together; scaling, selection and fitting see the training side only; intervals resample groups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..lab.errors import InputError
from ..lab.evidence import Evidence, bootstrap
from ..lab.rng import generator
from ..lab.sequences import integers_of, numbers_of
from .fitting.fits import FitConfig, fit_all
from .fitting.sparse import auc
from .fitting.splits import Split, folds_of_share, split_labels
from .labels import Bags, Labels, PooledRows, Source
from .probe import Probe

Units = PooledRows | Bags
Score = Callable[[np.ndarray, np.ndarray, np.ndarray], float]
"""From scores [units, outputs], labels and weights of units to a number."""


@dataclass(frozen=True)
class MeasureConfig:
    """Settings of measuring probes on held-out units and against nulls."""

    test_share: float = 0.25
    """Share of the units that scores are taken on; one over a whole number, nearly."""
    folds: int | None = None
    """Score every unit by cross-validation in so many folds in place of one split."""
    repeats: int = 3
    """Shuffles of the labels that their null averages."""
    resamples: int = 1000
    """Of the bootstrap."""
    fit: FitConfig = field(default_factory=FitConfig)
    seed: int = 0
    """Of the split, the nulls and the bootstrap."""

    def __post_init__(self) -> None:
        if not 0 < self.test_share <= 0.5:
            raise InputError(f"test_share is a share above 0 and at most 0.5, got {self.test_share}")
        if self.folds is not None and self.folds < 2:
            raise InputError(f"folds must be at least 2 (or None, for one split), got {self.folds}")
        if self.repeats < 1 or self.resamples < 1:
            raise InputError(f"repeats and resamples must be at least 1, got {self.repeats} and {self.resamples}")

    def splits(self, labels: Labels) -> list[Split]:
        """The one split, or every fold.

        Raises:
            InputError: too few groups.
        """
        if self.folds is not None:
            return split_labels(labels, self.folds, self.seed)
        return split_labels(labels, folds_of_share(self.test_share), self.seed)[:1]


@dataclass(frozen=True, eq=False)
class Measured:
    """One kind of probe on one set of columns."""

    probe: Probe
    """Fitted on the training side of the split; under cross-validation on all units."""
    scores: dict[str, Evidence]
    """By name."""
    read: Float[Tensor, "tested outputs"]
    """Scores of every tested unit."""
    tested: Int[Tensor, " tested"]
    """Indices of the tested units, ascending."""

    def __getitem__(self, name: str) -> Evidence:
        return self.scores[name]


def measure(
    units: Units,
    kinds: Sequence[str],
    config: MeasureConfig | None = None,
    *,
    nulls: Mapping[str, Units | Mapping[str, Mapping[str, float]]] | None = None,
) -> dict[str, Measured]:
    """Probes of every kind, fitted and scored on the same splits.

    Args:
        nulls: other columns for the same units, by the name of the null: probes of the same kinds are fitted on them;
            or what `null_scores` gave for such columns. `shuffled_labels` and, where token counts are known,
            `token_count` are added.

    Raises:
        InputError: labels that cannot be split, a kind that cannot learn them, or columns that are all constant.
    """
    config = config or MeasureConfig()
    labels = units.labels
    if not bool((units.x != units.x[0]).any()):
        raise InputError(f"every unit has the same values at {units.source}: pool otherwise, or probe another site")
    splits = config.splits(labels)
    nulls_by_name: dict[str, Mapping[str, Mapping[str, float]]] = {
        "shuffled_labels": _shuffled(units, kinds, splits, config)
    }
    given = dict(nulls or {})
    if labels.tokens is not None and "token_count" not in given:
        given["token_count"] = counted(labels)
    for name, null_units in given.items():
        nulls_by_name[name] = null_scores(null_units, kinds, config) if isinstance(null_units, Units) else null_units
    measured = {}
    tested = torch.from_numpy(np.sort(np.concatenate([test for _, test in splits])))
    whole = fit_all(kinds, units, config.fit) if config.folds is not None else {}
    for kind, (read, probe) in _out_of_fold(units, kinds, splits, config.fit).items():
        labels_tested, scored = labels.take(tested), read[tested]
        null = {
            score: {name: scores[kind][score] for name, scores in nulls_by_name.items() if kind in scores}
            for score in scores_for(labels)
        }
        scores = evidence_of(scored, labels_tested, null, _held_out(splits, labels, config), config)
        measured[kind] = Measured(whole.get(kind, probe), scores, scored, tested)
    return measured


def null_scores(units: Units, kinds: Sequence[str], config: MeasureConfig) -> dict[str, dict[str, float]]:
    """Every score of every kind on other columns for the same units, without intervals: of use for many sites.

    Where attention has no tokens to read, logistic stands in for it.
    """
    bags = isinstance(units, Bags)
    stands = {kind: "logistic" if kind == "attention" and not bags else kind for kind in kinds}
    fitting = [kind for kind in dict.fromkeys(stands.values()) if (kind == "attention") == bags]
    scores = _scores_of(units, units.labels, fitting, config.splits(units.labels), config) if fitting else {}
    return {kind: scores[stand] for kind, stand in stands.items() if stand in scores}


def counted(labels: Labels) -> PooledRows:
    """The number of tokens of every unit and its logarithm, as columns.

    Raises:
        InputError: token counts are not known.
    """
    if labels.tokens is None:
        raise InputError("these labels know no token counts: give Labels.of(..., tokens=...)")
    tokens = labels.tokens.float()
    return PooledRows(torch.stack([tokens, tokens.clamp_min(1).log()], 1), labels, Source(pooling="token"))


def _out_of_fold(
    units: Units, kinds: Sequence[str], splits: Sequence[Split], fit: FitConfig, labels: Labels | None = None
) -> dict[str, tuple[Tensor, Probe]]:
    """Predictions for the test units of every split, nan elsewhere, and the last of the probes.

    Args:
        labels: what to train on in place of the units' own.
    """
    relabelled = units if labels is None else units.relabelled(labels)
    read_outs: dict[str, tuple[Tensor, Probe]] = {}
    for train, test in splits:
        for kind, probe in fit_all(kinds, relabelled.take(train), _fitting(fit, units)).items():
            said = probe.read(units.take(test))
            read = read_outs[kind][0] if kind in read_outs else torch.full((len(units), said.shape[1]), torch.nan)
            read[torch.from_numpy(test)] = said
            read_outs[kind] = (read, probe)
    return read_outs


def _fitting(fit: FitConfig, units: Units) -> FitConfig:
    """The options, with no more columns for k_sparse than there are."""
    return replace(fit, k=min(fit.k, units.x.shape[1]))


def _scores_of(
    units: Units,
    labels: Labels,
    kinds: Sequence[str],
    splits: Sequence[Split],
    config: MeasureConfig,
    train_labels: Labels | None = None,
) -> dict[str, dict[str, float]]:
    tested = np.sort(np.concatenate([test for _, test in splits]))
    y, ones = labels.take(tested).y.numpy(), np.ones(len(tested))
    return {
        kind: {name: score(read[tested].double().numpy(), y, ones) for name, score in scores_for(labels).items()}
        for kind, (read, _) in _out_of_fold(units, kinds, splits, config.fit, train_labels).items()
    }


def _shuffled(
    units: Units, kinds: Sequence[str], splits: Sequence[Split], config: MeasureConfig
) -> dict[str, dict[str, float]]:
    """The mean over shuffles of the training labels, within the training side of every split."""
    draws = []
    for draw in range(config.repeats):
        scores: list[dict[str, dict[str, float]]] = []
        for number, (train, test) in enumerate(splits):
            rng = generator(config.seed, "shuffled labels", draw, number)
            y = units.labels.y.clone()
            y[torch.from_numpy(train)] = y[torch.from_numpy(train)[torch.randperm(len(train), generator=rng)]]
            shuffled = Labels(y, units.labels.classes, units.labels.groups, units.labels.tokens)
            scores.append(_scores_of(units, units.labels, kinds, [(train, test)], config, shuffled))
        draws += scores
    return {kind: {name: float(np.mean([scores_of[kind][name] for scores_of in draws])) for name in draws[0][kind]}
            for kind in kinds}  # fmt: skip


def scores_for(labels: Labels) -> dict[str, Score]:
    """The scores that such labels have."""
    if not labels.classes:
        return {"r2": r2}
    return {"auc": mean_auc, "accuracy": balanced_accuracy}


def mean_auc(read: np.ndarray, y: np.ndarray, weights: np.ndarray) -> float:
    """AUC of two classes, or its mean over classes each against the rest; nan where a draw lacks one."""
    read, y, weights = _columns(read), numbers_of(y), numbers_of(weights)
    if read.shape[1] == 1:
        return auc(read[:, 0], y, weights)
    if read.shape[1] == 2:
        return auc(read[:, 1] - read[:, 0], y, weights)
    return float(np.mean([auc(read[:, c], (y == c).astype(float), weights) for c in range(read.shape[1])]))


def balanced_accuracy(read: np.ndarray, y: np.ndarray, weights: np.ndarray) -> float:
    """Mean over classes of the weighted share that is called right; nan where a draw lacks one."""
    read, y, weights = _columns(read), integers_of(y).numpy(), numbers_of(weights)
    right = ((read[:, 0] > 0) if read.shape[1] == 1 else read.argmax(1)) == y
    held, called = np.bincount(y, weights), np.bincount(y, weights * right)
    with np.errstate(invalid="ignore"):
        return float(np.mean(called / held))


def r2(read: np.ndarray, y: np.ndarray, weights: np.ndarray) -> float:
    """Explained share of the variance, mean over outputs; below 0 where the mean would have been better."""
    read, y, weights = _columns(read), _columns(y), numbers_of(weights)
    share = weights / weights.sum()
    left, spread = share @ np.square(y - read), share @ np.square(y - share @ y)
    return float(np.mean(1 - left / spread)) if (spread > 0).all() else float("nan")


def _columns(values: Any) -> np.ndarray:
    """Numbers as [units, outputs]; one column is one output."""
    found = numbers_of(values)
    return found[:, None] if found.ndim == 1 else found


def evidence_of(
    read: Float[Tensor, "units outputs"],
    labels: Labels,
    nulls: Mapping[str, Mapping[str, float]],
    held_out: str,
    config: MeasureConfig,
) -> dict[str, Evidence]:
    """Every score of a probe's outputs, with intervals over groups of the units.

    Args:
        labels: of the same units.
        nulls: by score, then by the name of the null.
    """
    outputs, y = read.double().numpy(), labels.y.numpy()
    group = np.unique(labels.groups.numpy(), return_inverse=True)[1].reshape(-1)
    n = int(group.max()) + 1
    evidence = {}
    for name, score in scores_for(labels).items():
        interval = bootstrap(
            lambda weights, score=score: score(outputs, y, weights[group]),
            n,
            seed=config.seed,
            resamples=config.resamples,
        )
        value = score(outputs, y, np.ones(len(y)))
        evidence[name] = Evidence(
            name, value, interval, dict(nulls[name]), n, "groups of test units", held_out, "higher"
        )
    return evidence


def _held_out(splits: Sequence[Split], labels: Labels, config: MeasureConfig) -> str:
    by = "stratified by class" if labels.classes else "not stratified"
    fitted = "scaling, selection and fit saw the others only"
    if config.folds is not None:
        return f"every unit in one of {config.folds} folds, {by}, no group in two; {fitted}"
    return f"{len(splits[0][1])} of {len(labels)} units, {by}, no group on both sides; {fitted}"
