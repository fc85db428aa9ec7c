"""Rows of two representations that are to be compared: checked, centred, and split by document."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from threadpoolctl import threadpool_limits
from torch import Tensor

from ....lab.errors import InputError
from ....lab.rng import generator


def one_thread() -> AbstractContextManager[object]:
    """For factorisations of a few hundred columns: a second thread gains little, and where cores are shared the two
    wait for one another (an SVD of 1,400 x 576 took 0.4 s with one thread and 6.9 s with two on two busy cores)."""
    return threadpool_limits(1)


class Fold(NamedTuple):
    """Rows of one representation: those that something is fitted on, and those it is measured on."""

    fit: Float[Tensor, "fit d"]
    test: Float[Tensor, "test d"]


class Factors(NamedTuple):
    """Both folds about the mean of the fitted rows, and the singular value decomposition of those."""

    fit: Float[Tensor, "fit d"]
    test: Float[Tensor, "test d"]
    left: Float[Tensor, "fit r"]
    scales: Float[Tensor, " r"]
    """Falling; those that are rounding are left out."""
    right: Float[Tensor, "r d"]


def factor(fold: Fold) -> Factors:
    """Centre and factor.

    Raises:
        InputError: every fitted row is the same.
    """
    mean = fold.fit.mean(0)
    fit = fold.fit - mean
    left, scales, right = torch.linalg.svd(fit, full_matrices=False)
    rank = int((scales > scales[0] * max(fit.shape) * torch.finfo(scales.dtype).eps).sum())
    if not rank:
        raise InputError(f"all {len(fit)} fitted rows are the same: constant features have nothing to compare")
    return Factors(fit, fold.test - mean, left[:, :rank].contiguous(), scales[:rank], right[:rank])


class Split(NamedTuple):
    """Which rows are fitted on and which are held out; no document is on both sides."""

    fit: Int64[Tensor, " fit"]
    test: Int64[Tensor, " test"]

    def fold(self, x: Float[Tensor, "rows d"]) -> Fold:
        """Both parts of a representation's rows."""
        return Fold(x[self.fit], x[self.test])


def split_documents(documents: Int64[Tensor, " rows"], held_out: float, seed: int) -> Split:
    """Hold out a share of the documents, drawn from `seed`: at least one, and never all.

    Raises:
        InputError: `held_out` is no share, or all rows are of one document.
    """
    if not 0 < held_out < 1:
        raise InputError(f"held_out={held_out} is no share: give a number between 0 and 1, such as 0.33")
    names, place = documents.unique(return_inverse=True)
    if len(names) < 2:
        raise InputError(f"the {len(documents)} rows are of one document: fitting and measuring need at least 2")
    count = min(max(1, round(held_out * len(names))), len(names) - 1)
    chosen = torch.zeros(len(names), dtype=torch.bool)
    chosen[torch.randperm(len(names), generator=generator(seed, "held-out documents"))[:count]] = True
    return Split((~chosen[place]).nonzero()[:, 0], chosen[place].nonzero()[:, 0])


def checked_rows(x: Float[Tensor, "rows d"], name: str) -> Float[Tensor, "rows d"]:
    """The rows in fp32, once they are known to be comparable.

    Raises:
        InputError: not a matrix of at least 4 rows, a value that is not finite, or rows that are all the same.
    """
    if x.ndim != 2 or len(x) < 4:
        raise InputError(f"{name} has shape {tuple(x.shape)}: give a matrix of at least 4 rows")
    bad = x.isfinite().all(1).logical_not().nonzero()
    if len(bad):
        raise InputError(f"{name} holds nan or inf in row {int(bad[0])}: leave such rows out")
    if bool((x == x[:1]).all()):
        raise InputError(f"every row of {name} is the same: constant features have nothing to compare")
    return x.float()


def checked_pair(
    x: Float[Tensor, "rows d_x"], y: Float[Tensor, "rows d_y"], names: tuple[str, str] = ("x", "y")
) -> tuple[Float[Tensor, "rows d_x"], Float[Tensor, "rows d_y"]]:
    """Both in fp32, once row i of both can be the same token.

    Raises:
        InputError: as `checked_rows`, or different numbers of rows.
    """
    if len(x) != len(y):
        raise InputError(
            f"{names[0]} has {len(x)} rows and {names[1]} {len(y)}: row i of both must be the same token, "
            "so align them first"
        )
    return checked_rows(x, names[0]), checked_rows(y, names[1])


class Axes(NamedTuple):
    """Principal axes of rows: mean, singular values of the centred rows, falling, and directions [r, d], in fp64."""

    mean: Float[Tensor, " d"]
    scales: Float[Tensor, " r"]
    directions: Float[Tensor, "r d"]


def axes(x: Float[Tensor, "rows d"]) -> Axes:
    """By the eigenvectors of the covariance, those of no variance left out."""
    mean = x.double().mean(0)
    centred = x.double() - mean
    energy, directions = torch.linalg.eigh(centred.T @ centred)
    kept = energy > energy[-1] * 1e-12
    return Axes(mean, energy[kept].sqrt().flip(0), directions[:, kept].T.flip(0))


def random_rotation(width: int, rng: torch.Generator) -> Float[Tensor, "width width"]:
    """A uniformly drawn orthogonal matrix, fp64."""
    q, r = torch.linalg.qr(torch.randn(width, width, generator=rng, dtype=torch.float64))
    return q * r.diagonal().sign()
