"""Fitting probes by kind.

    mean_difference, ridge, lda   in closed form (see `moments.py`)
    logistic                      L2-penalised logistic regression (multinomial for more than two classes)
    multinomial                   the same with one row of weights a class, for two classes too
    k_sparse                      logistic regression on the k columns whose class means differ most
    mlp, attention                not linear (see `nonlinear.py`); attention reads Bags

Where it is not set otherwise, each coordinate of activations is scaled by its own spread and codes all by one number,
and the mean difference is taken of rows as they are; classes weigh the same in sum. Both are written in the probe.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ...lab.errors import InputError, unknown
from ..labels import Bags, Labels, PooledRows, Source
from ..probe import Probe
from .logistic import solve_logistic
from .moments import CLOSED, Affine, ClosedForm, Moments, ridge_to_numbers
from .nonlinear import AttentionFit, MLPFit, fit_attention, fit_mlp
from .scaling import SCALINGS, Scaling
from .sparse import by_mean_difference
from .splits import split_labels

INNER_FOLDS = 4
"""Of the cross-validation within training units that chooses among penalties."""


@dataclass(frozen=True)
class FitConfig:
    """Settings of fitting probes; each kind reads its own fields."""

    scaling: str | None = None
    """`coordinate`, `overall`, `centre` or `none`; by default as the kind and the rows ask for (see `fits.py`)."""
    class_weights: Literal["balanced", "none"] = "balanced"
    """`balanced`: classes weigh the same in sum; `none`: units do."""
    l2: tuple[float, ...] = (0.1,)
    """Penalties of the logistic kinds: half the squared weights against the mean cross-entropy. Of several, the one
    with the least cross-entropy in cross-validation within the training units, groups kept together."""
    penalty: float | None = None
    """Of ridge, over the mean eigenvalue of the covariance; by default chosen by generalised cross-validation."""
    shrinkage: float | None = None
    """Of LDA's covariance, from 0 to 1; by default by oracle approximating shrinkage."""
    k: int = 5
    """Columns that k_sparse reads."""
    mlp: MLPFit = field(default_factory=MLPFit)
    attention: AttentionFit = field(default_factory=AttentionFit)
    seed: int = 0
    """Of folds within the training units, and of the kinds that are fitted by steps."""

    def __post_init__(self) -> None:
        if self.scaling is not None and self.scaling not in SCALINGS:
            raise unknown("scaling", self.scaling, SCALINGS)
        if self.class_weights not in ("balanced", "none"):
            raise unknown("class weights", self.class_weights, ("balanced", "none"))
        object.__setattr__(self, "l2", tuple(self.l2))
        if not self.l2 or min(self.l2) <= 0:
            raise InputError(f"l2 takes penalties above 0, got {self.l2}")
        if self.penalty is not None and not self.penalty > 0:
            raise InputError(f"penalty must be above 0, got {self.penalty}")
        if self.shrinkage is not None and not 0 <= self.shrinkage <= 1:
            raise InputError(f"shrinkage is a share from 0 to 1, got {self.shrinkage}")
        if self.k < 1:
            raise InputError(f"k must be at least 1, got {self.k}")

    @property
    def balanced(self) -> bool:
        """True if all classes have the same total weight."""
        return self.class_weights == "balanced"

    def scaling_for(self, kind: str, source: Source) -> str:
        """The scaling that a kind gets on such rows."""
        if self.scaling is not None:
            return self.scaling
        return "none" if kind == "mean_difference" else "overall" if source.dictionary else "coordinate"

    def weights(self, labels: Labels) -> Tensor:
        """One weight a unit, fp64."""
        return labels.weights if self.balanced else torch.ones(len(labels), dtype=torch.float64)


Fit = Callable[[PooledRows, FitConfig], Probe]


def fit(kind: str, units: PooledRows | Bags, config: FitConfig | None = None) -> Probe:
    """A probe of one kind on these units.

    Raises:
        InputError: an unknown kind, labels it cannot learn, rows where it needs bags or bags where it needs rows.
    """
    return fit_all([kind], units, config)[kind]


def fit_all(kinds: Sequence[str], units: PooledRows | Bags, config: FitConfig | None = None) -> dict[str, Probe]:
    """Probes of several kinds on the same units; those in closed form share their sums.

    Raises:
        InputError: as `fit`.
    """
    config = config or FitConfig()
    require_kinds(kinds)
    probes: dict[str, Probe] = {}
    if closed := [kind for kind in kinds if kind in CLOSED]:
        rows = _rows(closed[0], units)
        moments = Moments.of(rows.x, rows.labels, products=closed != ["mean_difference"])
        probes = fit_closed(closed, moments, rows.labels.classes, rows.source, config)
    for kind in kinds:
        if kind not in CLOSED:
            probes[kind] = (
                _fit_attention(units, config) if kind == "attention" else FITS[kind](_rows(kind, units), config)
            )
    seen = {"units": len(units), "groups": int(units.labels.groups.unique().numel()), "weights": config.class_weights}
    return {kind: replace(probes[kind], training={**seen, **probes[kind].training}) for kind in kinds}


def require_kinds(kinds: Sequence[str]) -> None:
    """Refuse kinds that there are not.

    Raises:
        InputError: an unknown kind, with the nearest; or none at all.
    """
    if not kinds:
        raise InputError(f"no kind of probe is named: give some of {', '.join(KINDS)}")
    for kind in kinds:
        if kind not in KINDS:
            raise unknown("kind of probe", kind, KINDS)


def fit_closed(
    kinds: Sequence[str], moments: Moments, classes: tuple[str, ...], source: Source, config: FitConfig
) -> dict[str, Probe]:
    """Probes in closed form from sums, wherever they were summed.

    Raises:
        InputError: numbers to predict for another kind than ridge.
    """
    probes = {}
    for kind in kinds:
        scaling = moments.scaling(config.scaling_for(kind, source))
        scaled, options = moments.scaled(scaling, config.balanced), ClosedForm(config.penalty, config.shrinkage)
        if classes:
            affine = CLOSED[kind](scaled, options)
        elif kind == "ridge":
            affine = ridge_to_numbers(scaled, moments.cross(scaling), options)
        else:
            raise InputError(f"a {kind} probe needs classes and these labels are numbers: use ridge")
        probes[kind] = folded(kind, affine, classes, source, scaling)
    return probes


def folded(kind: str, affine: Affine, classes: tuple[str, ...], source: Source, scaling: Scaling) -> Probe:
    """A linear probe for rows as they are, from weights for scaled rows (fp64 until the end)."""
    wide = Scaling(scaling.kind, scaling.mean.double(), scaling.spread.double())
    weight, bias = wide.fold(affine.weight, affine.bias)
    kept = Scaling(scaling.kind, scaling.mean.float(), scaling.spread.float())
    return Probe(kind, weight.float(), bias.float(), classes, source, kept, affine.facts)


def _logistic(rows: PooledRows, config: FitConfig) -> Probe:
    rows.labels.require_classes("logistic")
    return _fit_logistic("logistic", rows, config)


def _multinomial(rows: PooledRows, config: FitConfig) -> Probe:
    """With two classes, half of the binary weights for one and half against the other: the same softmax."""
    rows.labels.require_classes("multinomial")
    probe = _fit_logistic("multinomial", rows, config)
    if not rows.labels.binary:
        return probe
    weight, bias = torch.cat([-probe.weight, probe.weight]) / 2, torch.cat([-probe.bias, probe.bias]) / 2
    return replace(probe, weight=weight, bias=bias)


def _k_sparse(rows: PooledRows, config: FitConfig) -> Probe:
    rows.labels.require_classes("k_sparse", 2)
    if config.k > rows.x.shape[1]:
        raise InputError(f"k={config.k} is more than the {rows.x.shape[1]} columns there are: give a smaller k")
    columns = by_mean_difference(rows.x.float().numpy(), rows.labels.y.numpy(), config.k)
    narrow = _fit_logistic("k_sparse", replace(rows, x=rows.x[:, columns]), config)
    d = rows.x.shape[1]
    weight = torch.zeros(1, d).index_copy_(1, torch.from_numpy(columns), narrow.weight)
    mean = torch.zeros(d).index_copy_(0, torch.from_numpy(columns), narrow.scaling.mean)
    spread = torch.full((d,), torch.inf).index_copy_(0, torch.from_numpy(columns), narrow.scaling.spread)
    facts = {**narrow.training, "columns": columns.tolist()}
    return replace(narrow, weight=weight, scaling=Scaling(narrow.scaling.kind, mean, spread), training=facts)


def _mlp(rows: PooledRows, config: FitConfig) -> Probe:
    scaling = Scaling.of(rows.x.float(), config.scaling_for("mlp", rows.source))
    return fit_mlp(rows, scaling, config.weights(rows.labels), config.mlp, config.seed)


def _fit_attention(units: PooledRows | Bags, config: FitConfig) -> Probe:
    if not isinstance(units, Bags):
        raise InputError("an attention probe pools the tokens itself: give it Bags, with pooling='bag'")
    units.labels.require_classes("attention")
    scaling = Scaling.of(units.x.float(), config.scaling_for("attention", units.source))
    return fit_attention(units, scaling, config.weights(units.labels), config.attention, config.seed)


def _fit_logistic(kind: str, rows: PooledRows, config: FitConfig) -> Probe:
    """Logistic regression with the best of the penalties."""
    scaling = Scaling.of(rows.x.double(), config.scaling_for(kind, rows.source))
    x, labels = scaling(rows.x.double()).numpy(), rows.labels
    l2 = config.l2[0] if len(config.l2) == 1 else _best_penalty(rows, config, kind)
    solved = solve_logistic(x, labels.y.numpy(), 1 / (l2 * len(x)), config.weights(labels).numpy())
    facts: dict[str, Any] = {"l2": l2, "converged": solved.converged}
    affine = Affine(torch.from_numpy(solved.weight), torch.from_numpy(solved.bias), facts)
    return folded(kind, affine, labels.classes, rows.source, scaling)


def _best_penalty(rows: PooledRows, config: FitConfig, kind: str) -> float:
    """The penalty with the least cross-entropy on folds of the training units, each scaled by its own others."""
    from sklearn.metrics import log_loss

    losses = dict.fromkeys(config.l2, 0.0)
    y, weights = rows.labels.y.numpy(), config.weights(rows.labels).numpy()
    for train, test in split_labels(rows.labels, INNER_FOLDS, config.seed):
        scaling = Scaling.of(rows.x[train].double(), config.scaling_for(kind, rows.source))
        x = scaling(rows.x.double()).numpy()
        for l2 in losses:
            solved = solve_logistic(x[train], y[train], 1 / (l2 * len(train)), weights[train])
            odds = x[test] @ solved.weight.T + solved.bias
            odds = np.concatenate([-odds, odds], 1) / 2 if rows.labels.binary else odds
            chances = torch.from_numpy(odds).softmax(1).numpy()
            losses[l2] += log_loss(y[test], chances, sample_weight=weights[test], labels=range(chances.shape[1]))
    return min(losses, key=losses.__getitem__)


def _rows(kind: str, units: PooledRows | Bags) -> PooledRows:
    if isinstance(units, Bags):
        raise InputError(f"a {kind} probe reads one row a text: pool the bags first, as in bags.pooled('mean')")
    return units


FITS: dict[str, Fit] = {"logistic": _logistic, "multinomial": _multinomial, "k_sparse": _k_sparse, "mlp": _mlp}
"""Kinds that are solved on rows in memory, by name."""
KINDS = (*CLOSED, *FITS, "attention")
"""Every kind of probe."""
