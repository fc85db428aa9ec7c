"""Batched matching pursuit (Mallat and Zhang 1993; the encoder of ITDA): k greedy steps of each row over unit atoms.

    r <- x;  k times:  c = atoms r;  j = argmax |c|;  keep (c_j, j);  r <- r - c_j atom_j

Memory is one chunk of correlations [rows, n], whatever the number of rows. Two ways to the next correlations:

    with a Gram matrix      c <- c - c_j gram[j]: n multiply-adds a step instead of n * d
    without                 r <- r - c_j atom_j and a new product, of all rows of a chunk at once
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Float32, Int32
from torch import Tensor

from .chunks import chunk_rows
from .decode import decode_residual
from .dispatch import kernel
from .operators import operator


class Pursuit(NamedTuple):
    """Entries in order of selection, an atom perhaps more than once; those after a stop are value 0, column 0.

    `residual_squares` is |x - sum of values * atoms|^2, computed from the kept codes.
    """

    values: Float32[Tensor, "tokens k"]
    columns: Int32[Tensor, "tokens k"]
    residual_squares: Float32[Tensor, " tokens"]


def pursuit(
    x: Float[Tensor, "tokens d"],
    atoms: Float32[Tensor, "n d"],
    k: int,
    *,
    gram: Float[Tensor, "n n"] | None = None,
    nonnegative: bool = False,
    tolerance: float = 0.0,
) -> Pursuit:
    """Matching pursuit of every row. Equal correlations go to the lowest column; k may exceed n.

    A row stops early when nothing correlates (when nonnegative: nothing positively), or when its squared residual is
    at most `tolerance` of |x|^2. That test runs on the energy identity |r|^2 <- |r|^2 - c_j^2, which is good to about
    1e-6 |x|^2 in fp32: a smaller tolerance stops there or never. A row whose squared norm or best correlation is not
    finite gets NaN values and a residual that is not finite, so that it is seen.

    Args:
        atoms: rows of unit norm (not checked).
        gram: atoms @ atoms.T. fp32 keeps the method exact to fp32 rounding; fp16 halves the traffic on a GPU and
            moves correlations by up to 2^-11 of a coefficient.
        tolerance: 0 spends all k steps unless nothing is left.

    Raises:
        ValueError: k is not positive, there are no atoms, or gram is not [n, n].
    """
    n = len(atoms)
    if k < 1 or n < 1:
        raise ValueError(f"matching pursuit needs k and the number of atoms to be at least 1, got {k} and {n}")
    if gram is not None and gram.shape != (n, n):
        raise ValueError(f"gram must be {n} x {n} for {n} atoms, got {' x '.join(map(str, gram.shape))}")
    return Pursuit(*_pursuit(x, atoms, k, gram, nonnegative, tolerance))


@operator(
    "pursuit(Tensor x, Tensor atoms, int k, Tensor? gram, bool nonnegative, float tolerance)"
    " -> (Tensor, Tensor, Tensor)",
    fake=lambda x, atoms, k, *_: (
        atoms.new_empty(len(x), k),
        x.new_empty(len(x), k, dtype=torch.int32),
        atoms.new_empty(len(x)),
    ),
)
def _pursuit(x, atoms, k, gram, nonnegative, tolerance):
    run = kernel("pursue", atoms.device, reference)
    n = len(atoms)
    x, atoms = x.float().contiguous(), atoms.contiguous()
    out = Pursuit(x.new_empty(len(x), k), x.new_empty(len(x), k, dtype=torch.int32), x.new_empty(len(x)))
    chunk = chunk_rows(n, x.device.type)
    for start in range(0, len(x), chunk):
        part = x[start : start + chunk]
        values, columns = run(part, atoms, k, gram, nonnegative, tolerance)
        squares = _residual_squares(part, atoms, values, columns)
        pursued = Pursuit(values.masked_fill(~squares.isfinite()[:, None], torch.nan), columns, squares)
        for whole, piece in zip(out, pursued, strict=True):
            whole[start : start + chunk] = piece
    return tuple(out)


def _residual_squares(x: Tensor, atoms: Tensor, values: Tensor, columns: Tensor) -> Tensor:
    rows, k = columns.shape
    indptr = torch.arange(0, rows * k + 1, k, device=x.device)
    zero = x.new_zeros(x.shape[1])
    return decode_residual(indptr, columns.flatten(), values.flatten(), atoms, zero, x, k).squares


def reference(
    x: Tensor, atoms: Tensor, k: int, gram: Tensor | None = None, nonnegative: bool = False, tolerance: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Values and columns [rows, k] by k products of the residual: the specification. Does without `gram`."""
    residual, energy = x.clone(), x.square().sum(1)
    enough = tolerance * energy
    values, columns = x.new_zeros(len(x), k), x.new_zeros(len(x), k, dtype=torch.int32)
    for step in range(k):
        correlation = residual @ atoms.T
        best, column = (correlation if nonnegative else correlation.abs()).max(1)
        live = (energy > enough) & ~(best <= 0)
        value = torch.where(live, correlation.gather(1, column[:, None])[:, 0], 0)
        values[:, step], columns[:, step] = value, column * live
        residual -= value[:, None] * atoms[column]
        energy -= value.square()
    return values, columns
