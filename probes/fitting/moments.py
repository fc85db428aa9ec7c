"""Probes in closed form, from sums that are exact however the rows are cut into batches: mean difference, ridge, LDA.

With counts n_c, means m_c and second moments of every class (fp64), all weighted w_c = n / (C n_c) where classes are
balanced, and after the scaling of the fit:

    mean_difference  w_c = m_c, b_c = -|m_c|^2 / 2: the nearest mean; of two classes the mass-mean direction m_1 - m_0
                     with the threshold half way (Marks and Tegmark 2023, arXiv 2310.06824)
    lda              w_c = S^-1 m_c, b_c = -m_c' S^-1 m_c / 2 + log prior, S the covariance within classes, shrunk to a
                     multiple of the identity (mass-mean with covariance); how much is told by the oracle approximating
                     shrinkage of Chen et al. 2010 (arXiv 0907.4698) unless it is given
    ridge            least squares for +1 and -1 (or for numbers), penalty relative to the mean eigenvalue; the one of
                     `PENALTIES` with the least generalised cross-validation error (Golub, Heath and Wahba 1979) unless
                     it is given
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from ...lab.errors import InputError
from ...lab.storage import State
from ..labels import Labels
from .scaling import Scaling

WIDEST = 4608
"""Columns that products of all pairs are kept for; 170 MB for each class."""
PENALTIES = tuple(10.0**power for power in range(-4, 4))
"""Of ridge, over the mean eigenvalue of the covariance."""
ROWS_AT_ONCE = 8192


class Affine(NamedTuple):
    """Weights for scaled rows, and what a reader should know of the fit."""

    weight: Float64[Tensor, "outputs d"]
    bias: Float64[Tensor, " outputs"]
    facts: dict[str, Any]


class Moments:
    """Counts, sums and second moments of rows by class, or of rows and the numbers that go with them.

    Args:
        d: width of the rows.
        classes: number of classes; 0 for numbers.
        outputs: numbers that go with a row.
        products: keep the products of all pairs of columns, as ridge and LDA need; else their squares only.

    Raises:
        InputError: too wide for products.
    """

    def __init__(self, d: int, classes: int, outputs: int = 1, *, products: bool = True) -> None:
        if products and d > WIDEST:
            raise InputError(
                f"ridge and LDA of {d} columns would need {d} x {d} products for each class (at most {WIDEST}): "
                "use mean_difference, logistic or k_sparse"
            )
        parts = max(classes, 1)
        zeros = lambda *shape: torch.zeros(*shape, dtype=torch.float64)  # noqa: E731
        self.classes, self.products = classes, products
        self.counts, self.sums = zeros(parts), zeros(parts, d)
        self.seconds = zeros(parts, d, d) if products else zeros(parts, d)
        self.targets = {} if classes else {"sum": zeros(outputs), "square": zeros(outputs), "cross": zeros(d, outputs)}

    @classmethod
    def of(cls, x: Tensor, labels: Labels, *, products: bool = True) -> Moments:
        """The moments of rows in memory."""
        moments = cls(x.shape[1], len(labels.classes), 1 if labels.classes else labels.y.shape[1], products=products)
        for rows, y in zip(x.split(ROWS_AT_ONCE), labels.y.split(ROWS_AT_ONCE), strict=True):
            moments.add(rows, y)
        return moments

    @torch.no_grad()
    def add(self, x: Tensor, y: Tensor) -> None:
        """Add rows [rows, d] with their classes [rows] or numbers [rows, outputs]."""
        rows = x.double().cpu()
        for c in range(len(self.counts)):
            part = rows[y == c] if self.classes else rows
            self.counts[c] += len(part)
            self.sums[c] += part.sum(0)
            self.seconds[c] += part.T @ part if self.products else part.square().sum(0)
        if not self.classes:
            targets = y.double()
            for name, value in {
                "sum": targets.sum(0),
                "square": targets.square().sum(0),
                "cross": rows.T @ targets,
            }.items():
                self.targets[name] += value

    @property
    def rows(self) -> int:
        """Rows seen."""
        return int(self.counts.sum())

    def scaling(self, kind: str) -> Scaling:
        """The scaling that all rows give, whatever their class."""
        mean = self.sums.sum(0) / self.rows
        seconds = self.seconds.sum(0)
        squares = seconds.diagonal() if self.products else seconds
        return Scaling.from_moments(mean, (squares / self.rows - mean.square()).clamp_min(0), kind)

    def scaled(self, scaling: Scaling, balanced: bool) -> ScaledMoments:
        """Scaled moments for the closed forms.

        Raises:
            InputError: a class without a row.
        """
        if not bool((self.counts > 0).all()):
            raise InputError(
                f"class {int(self.counts.argmin())} has no row among {self.rows}: give rows of every class"
            )
        weights = self.rows / len(self.counts) / self.counts if balanced else torch.ones_like(self.counts)
        share = weights * self.counts / self.rows
        means = (self.sums / self.counts[:, None] - scaling.mean) / scaling.spread
        scatter = None
        if self.products:
            raw = self.sums / self.counts[:, None]
            scatter = torch.zeros_like(self.seconds[0])
            for c in range(len(share)):
                scatter += share[c] * (self.seconds[c] / self.counts[c] - torch.outer(raw[c], raw[c]))
            scatter = scatter / scaling.spread / scaling.spread[:, None]
        return ScaledMoments(self.rows, share, means, scatter)

    def cross(self, scaling: Scaling) -> tuple[Tensor, Tensor, Tensor]:
        """Of the numbers: mean [outputs], variance [outputs], covariance with the scaled columns [d, outputs]."""
        mean, n = self.targets["sum"] / self.rows, self.rows
        covariance = self.targets["cross"] / n - torch.outer(self.sums[0] / n, mean)
        return mean, self.targets["square"] / n - mean.square(), covariance / scaling.spread[:, None]

    def merge(self, other: Moments) -> None:
        """Add the moments of other rows.

        Raises:
            InputError: the other has other classes or columns, or keeps other products.
        """
        if self.seconds.shape != other.seconds.shape or self.classes != other.classes:
            raise InputError(
                f"moments of {self.classes} classes {tuple(self.seconds.shape)} and of {other.classes} "
                f"{tuple(other.seconds.shape)} do not add up: merge moments of the same site and labels"
            )
        self.counts, self.sums = self.counts + other.counts, self.sums + other.sums
        self.seconds = self.seconds + other.seconds
        self.targets = {name: value + other.targets[name] for name, value in self.targets.items()}

    def state_dict(self) -> State:
        """Every sum."""
        return {"counts": self.counts, "sums": self.sums, "seconds": self.seconds, "targets": dict(self.targets)}

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` gave."""
        self.counts, self.sums, self.seconds = (state[name].clone() for name in ("counts", "sums", "seconds"))
        self.targets = {name: value.clone() for name, value in state.get("targets", {}).items()}


@dataclass(frozen=True)
class ScaledMoments:
    """Moments after scaling and class weights."""

    rows: int
    share: Float64[Tensor, " classes"]
    """Weighted share of every class."""
    means: Float64[Tensor, "classes d"]
    within: Float64[Tensor, "d d"] | None
    """Covariance within classes."""


class ClosedForm(NamedTuple):
    """Options that closed forms take."""

    penalty: float | None = None
    shrinkage: float | None = None


def mean_difference(moments: ScaledMoments, _: ClosedForm) -> Affine:
    """The nearest class mean."""
    return _one_column(moments.means, -moments.means.square().sum(1) / 2, {})


def lda(moments: ScaledMoments, options: ClosedForm) -> Affine:
    """Linear discriminant analysis with a shrunk covariance."""
    S = moments.within
    assert S is not None, "LDA is given products"
    d, degrees = len(S), max(1, moments.rows - len(moments.share))
    level = S.trace() / d if bool(S.trace() > 0) else torch.ones((), dtype=S.dtype)
    shrinkage = _oracle_shrinkage(S, degrees) if options.shrinkage is None else options.shrinkage
    S = (1 - shrinkage) * S + shrinkage * level * torch.eye(d, dtype=S.dtype)
    S.diagonal()[S.diagonal() == 0] = level  # constant columns: their means are zero
    factor = torch.linalg.cholesky(S + 1e-10 * level * torch.eye(d, dtype=S.dtype))
    weight = torch.cholesky_solve(moments.means.T, factor).T
    bias = -(weight * moments.means).sum(1) / 2 + moments.share.log()
    return _one_column(weight, bias, {"shrinkage": float(shrinkage)})


def ridge(moments: ScaledMoments, options: ClosedForm) -> Affine:
    """Ridge regression on +1 for a row's own class and -1 for the others."""
    share, means, within = moments.share, moments.means, moments.within
    assert within is not None, "ridge is given products"
    centre = share @ means
    between = means - centre
    covariance = within + torch.einsum("c,ci,cj->ij", share, between, between)
    two = len(share) == 2
    own = 2 * share[1:] - 1 if two else 2 * share - 1
    cross = 2 * (share[:, None] * between)[1:].T if two else 2 * (share[:, None] * between).T
    return _least_squares(covariance, cross, centre, own, 1 - own.square(), moments.rows, options.penalty)


def ridge_to_numbers(moments: ScaledMoments, cross: tuple[Tensor, Tensor, Tensor], options: ClosedForm) -> Affine:
    """Ridge regression on numbers; `cross` from `Moments.cross`."""
    assert moments.within is not None, "ridge is given products"
    mean, variance, covariance = cross
    return _least_squares(moments.within, covariance, moments.means[0], mean, variance, moments.rows, options.penalty)


CLOSED: dict[str, Callable[[ScaledMoments, ClosedForm], Affine]] = {
    "mean_difference": mean_difference, "ridge": ridge, "lda": lda,
}  # fmt: skip


def _least_squares(
    covariance: Tensor, cross: Tensor, centre: Tensor, mean: Tensor, variance: Tensor, rows: int, penalty: float | None
) -> Affine:
    """Weights [outputs, d] of the penalty that is given, or that generalised cross-validation prefers."""
    eigenvalues, basis = torch.linalg.eigh(covariance)
    eigenvalues, turned = eigenvalues.clamp_min(0), basis.T @ cross
    level = eigenvalues.mean().clamp_min(torch.finfo(torch.float64).tiny)

    def error(candidate: float) -> float:
        shrunk = turned / (eigenvalues + candidate * level)[:, None]
        left = variance - (2 * shrunk * turned - eigenvalues[:, None] * shrunk.square()).sum(0)
        freedom = 1 - (1 + (eigenvalues / (eigenvalues + candidate * level)).sum()) / rows
        return float((left / variance).sum() / freedom.square()) if freedom > 0 else float("inf")

    chosen = min(PENALTIES, key=error) if penalty is None else penalty
    weight = (basis @ (turned / (eigenvalues + chosen * level)[:, None])).T
    return Affine(weight, mean - weight @ centre, {"penalty": chosen})


def _oracle_shrinkage(S: Tensor, n: int) -> float:
    d, trace, square = len(S), S.trace(), S.square().sum()
    above = (1 - 2 / d) * square + trace.square()
    below = (n + 1 - 2 / d) * (square - trace.square() / d)
    return float((above / below).clamp(max=1)) if below > 0 else 1.0


def _one_column(weight: Tensor, bias: Tensor, facts: dict[str, Any]) -> Affine:
    """Of two classes, the second against the first."""
    if len(weight) == 2:
        return Affine(weight[1:] - weight[:1], bias[1:] - bias[:1], facts)
    return Affine(weight, bias, facts)
