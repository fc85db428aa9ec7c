"""Measures of similarity by name, and `compare_rows`: all of them on one pair of representations, beside their nulls.

    cka, cka_unbiased   linear centred kernel alignment, of all rows
    svcca               mean canonical correlation of the leading principal subspaces, on held-out rows
    regression          variance of y that a linear map of x predicts, on held-out rows
    relative            mean cosine of relative representations, on held-out rows

Textbook forms, by the papers named in each module. The code published with ITDA (Leask et al. 2025) differs from them:
its CKA also scales columns, its SVCCA takes 20 components and solves a non-symmetric problem as if it were symmetric,
and its regression does not centre; figures of both therefore differ.

    measure         unchanged by                                         null
    cka             rotation, scale, shift, order of features            shuffled, spectrum, random_map
    svcca           the same; every invertible map of what is kept       shuffled, spectrum
    regression      the same; every invertible map of x                  shuffled, spectrum
    relative        rotation, scale, order of features; not shift        shuffled, spectrum, random_map

`shuffled` has the rows of y in another order, `spectrum` is noise with the mean and the covariance spectrum of y, and
`random_map` is x itself through a random linear map to the spectrum of y: what a measure that sees geometry should
tell from x, and one that sees linear content cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ....lab.errors import InputError, unknown
from ....lab.evidence import Evidence
from ....lab.rng import generator
from ...evaluation.document_sums import DocumentSums
from .cca import correlated, mean_correlation, whiten
from .moments import cka
from .regression import predicted, r_squared, regressor
from .relative import agreement, mean_agreement, relative
from .rows import Axes, Factors, Fold, Split, axes, checked_pair, factor, one_thread, random_rotation, split_documents

HELD_OUT = "documents that nothing was fitted on"
CKA = ("cka", "cka_unbiased")


@dataclass(frozen=True)
class SimilarityConfig:
    """How representations are compared."""

    held_out: float = 1 / 3
    """Share of the documents that nothing is fitted on."""
    variance: float = 0.9
    """Share of the variance that SVCCA keeps. The paper keeps 0.99, with far more rows: canonical directions of many
    components are overfitted where there are few."""
    ridge: float = 0.1
    """Penalty of the regression, as a share of the mean variance of a feature; 0 is least squares. With a thousand rows
    of 576 features least squares predicts worse than the mean: layer 12 of SmolLM2 from layer 0 at 0, 0.001, 0.1 and 1
    has R^2 -7.6, -1.1, 0.47 and 0.51."""
    anchors: int = 300
    """Anchor rows of relative representations."""
    seed: int = 0
    """Of the split, the anchors, the nulls and the intervals."""

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise InputError(f"held_out={self.held_out} is no share: give a number between 0 and 1, such as 0.33")
        if not 0 < self.variance <= 1:
            raise InputError(f"variance={self.variance} is no share of variance: give a number above 0, at most 1")
        if not 0 <= self.ridge < float("inf"):
            raise InputError(f"ridge={self.ridge} must be at least 0 and finite")
        if self.anchors < 2:
            raise InputError(f"anchors={self.anchors} must be at least 2")


class Fitted(NamedTuple):
    """A measure that fits something: what it makes of one representation, of two, and of summed columns."""

    prepare: Callable[[Factors, Fold, SimilarityConfig], Any]
    columns: Callable[[Any, Any], Mapping[str, Tensor]]
    """One value or vector a held-out row."""
    score: Callable[[Mapping[str, np.ndarray]], float]


FITTED = {
    "svcca": Fitted(lambda x, _, config: whiten(x, config.variance), correlated, mean_correlation),
    "regression": Fitted(lambda x, _, config: regressor(x, config.ridge), predicted, r_squared),
    "relative": Fitted(lambda _, fold, config: relative(fold, config.anchors, config.seed), agreement, mean_agreement),
}
MEASURES = (*CKA, *FITTED)
"""Every measure on rows, by name."""
GEOMETRIC = (*CKA, "relative")
"""Measures that change under a general linear map."""


def check_measures(names: Sequence[str], allowed: Sequence[str] = MEASURES) -> None:
    """Refuse a name that is no measure.

    Raises:
        InputError: an unknown name, with the nearest; or none at all.
    """
    for name in names:
        if name not in allowed:
            raise unknown("measure", name, allowed)
    if not names:
        raise InputError(f"no measure is named: give some of {', '.join(allowed)}")


def compare_rows(
    x: Float[Tensor, "rows d_x"],
    y: Float[Tensor, "rows d_y"],
    documents: Int64[Tensor, " rows"] | None = None,
    config: SimilarityConfig | None = None,
    *,
    measures: Sequence[str] = MEASURES,
    names: tuple[str, str] = ("x", "y"),
) -> dict[str, Evidence]:
    """Every measure of two representations of the same tokens, with intervals over documents and its nulls.

    Args:
        documents: of every row; None takes every row for a document of its own.
        names: for error messages.

    Raises:
        InputError: an unknown measure, different numbers of rows, values that are not finite, constant rows, or
            fewer fitted rows than anchors.
    """
    config = config or SimilarityConfig()
    check_measures(measures)
    x, y = checked_pair(x, y, names)
    documents = torch.arange(len(x)) if documents is None else documents
    split = split_documents(documents, config.held_out, config.seed)
    with one_thread():
        scores = _scores(x, y, documents, split, config, measures)
        geometric = [name for name in measures if name in GEOMETRIC]
        for null, other in controls(x, y, config.seed).items():
            seen = geometric if null == "random_map" else measures
            for name, evidence in _scores(x, other, documents, split, config, seen, intervals=False).items():
                scores[name] = replace(scores[name], nulls=scores[name].nulls | {null: evidence.value})
    return {name: scores[name] for name in measures}


def controls(
    x: Float[Tensor, "rows d_x"], y: Float[Tensor, "rows d_y"], seed: int
) -> dict[str, Float[Tensor, "rows d_y"]]:
    """The rows that replace y in each null, by name (see the module)."""
    order = torch.randperm(len(y), generator=generator(seed, "shuffled rows"))
    ours, theirs = axes(x), axes(y)
    noise = torch.randn(len(y), len(theirs.scales), generator=generator(seed, "spectrum"), dtype=torch.float64)
    white = (x.double() - ours.mean) @ (ours.directions.T / ours.scales) * len(x) ** 0.5
    turned = white @ random_rotation(white.shape[1], generator(seed, "random map"))
    return {
        "shuffled": y[order],
        "spectrum": _stretched(noise, theirs, generator(seed, "directions of noise")),
        "random_map": _stretched(turned, theirs, generator(seed, "directions of the map")),
    }


def _stretched(white: Tensor, like: Axes, rng: torch.Generator) -> Tensor:
    """White rows with the spectrum and the mean of others, in random directions; as many columns as both have."""
    kept = min(white.shape[1], len(like.scales))
    scaled = white[:, :kept] * like.scales[:kept] / len(white) ** 0.5
    return (scaled @ random_rotation(len(like.mean), rng)[:kept] + like.mean).float()


def _scores(
    x: Tensor,
    y: Tensor,
    documents: Tensor,
    split: Split,
    config: SimilarityConfig,
    measures: Sequence[str],
    *,
    intervals: bool = True,
) -> dict[str, Evidence]:
    scores = cka(x, y, documents) if set(CKA) & set(measures) else {}
    chosen = {name: FITTED[name] for name in measures if name in FITTED}
    if not chosen:
        return scores
    folds = [split.fold(side) for side in (x, y)]
    factors = [factor(fold) for fold in folds]
    for name, measure in chosen.items():
        a, b = (measure.prepare(*side, config) for side in zip(factors, folds, strict=True))
        sums = DocumentSums()
        sums.add(documents[split.test], measure.columns(a, b))
        interval = sums.interval(measure.score, seed=config.seed) if intervals else None
        value = measure.score(sums.total)
        scores[name] = Evidence(name, value, interval, {}, len(sums), "documents", HELD_OUT, "higher")
    return scores
