"""Least squares on a given support: the best codes for the atoms that were chosen.

The linear encoder's codes are biased wherever atoms are not orthogonal, however well it finds the support. What is
left of the error after a refit is the support's fault; what goes away was the codes'.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from ...sparse_code import SparseCode

ROWS_AT_ONCE = 1024
CELLS = 1 << 22
"""Entries of gathered atoms, and of their Gram matrices, held at once."""


class Refit(NamedTuple):
    """Codes with the best values for their support."""

    code: SparseCode
    values: Float64[Tensor, " nnz"]
    """The refitted coefficients, before rounding to fp32."""
    x_hat: Float64[Tensor, "rows d"]
    """The refitted reconstruction, `offset` included."""


@torch.no_grad()
def refit(
    x: Float[Tensor, "rows d"], code: SparseCode, atoms: Float[Tensor, "n d"], offset: Float[Tensor, " d"] | None = None
) -> Refit:
    """The same support with the values that minimise ||x - offset - code @ atoms||; fp64, of any sign.

    Of dependent atoms the values of least norm are taken. Entries that are stored as zero stay out of the support.

    Args:
        code: codes of the rows; only where they are not zero counts.
        atoms: decoder rows.
        offset: what is reconstructed without any atom, `b_dec`; None is zero.
    """
    base = torch.zeros_like(x[:1], dtype=torch.float64) if offset is None else offset.double()
    target, x_hat = x.double() - base, torch.zeros_like(x, dtype=torch.float64)
    support = code.where(code.values != 0)
    lengths = support.indptr.diff()
    values = torch.zeros(len(support.indices), dtype=torch.float64, device=x.device)
    order = lengths.argsort()  # a batch is as wide as its longest row
    begin = int((lengths == 0).sum())
    while begin < len(order):
        rows = order[begin : begin + _batch(lengths[order[begin : begin + ROWS_AT_ONCE]], x.shape[1])]
        steps = torch.arange(int(lengths[rows[-1]]), device=x.device)
        held = steps < lengths[rows][:, None]
        place = (support.indptr[rows][:, None] + steps).where(held, 0)
        chosen = atoms[support.indices[place].long()].double() * held[..., None]
        coefficients = _least_squares(chosen, target[rows], held)
        values[place[held]] = coefficients[held]
        x_hat[rows] = (coefficients[:, None] @ chosen)[:, 0]
        begin += len(rows)
    return Refit(replace(support, values=values.float(), width=None), values, x_hat + base)


def _batch(lengths: Tensor, width: int) -> int:
    """How many of the rows of these ascending support sizes fit into `CELLS` together."""
    counts = torch.arange(1, len(lengths) + 1, device=lengths.device)
    return max(1, int((counts * lengths * (lengths + width) <= CELLS).sum()))


def _least_squares(
    atoms: Float64[Tensor, "rows k d"], target: Float64[Tensor, "rows d"], held: Bool[Tensor, "rows k"]
) -> Float64[Tensor, "rows k"]:
    """Normal equations by Cholesky; by the pseudo-inverse where atoms of a row are dependent."""
    gram = atoms @ atoms.mT
    products = atoms @ target[..., None]
    scale = gram.diagonal(dim1=1, dim2=2).amax(1).clamp_min(torch.finfo(gram.dtype).tiny)
    factor, failed = torch.linalg.cholesky_ex(gram + torch.diag_embed((~held).double() * scale[:, None]))
    thin = factor.diagonal(dim1=1, dim2=2).amin(1).square() < 1e-12 * scale
    solution = torch.cholesky_solve(products, factor)
    if (dependent := (failed > 0) | thin).any():
        inverse = torch.linalg.pinv(gram[dependent], rtol=1e-12, hermitian=True)
        solution[dependent] = inverse @ products[dependent]
    return solution[..., 0]
