"""Pursuits that an ITDA encodes with: greedy steps over unit atoms, signed or not, with coefficients refitted or not.

mp            each step keeps the correlation of one atom with what is left (Mallat and Zhang 1993)
nonnegative   the same over positive correlations alone
omp           after each step all coefficients are the least-squares ones (Pati et al. 1993)
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from ....kernels.chunks import chunk_rows
from ....kernels.pursuit import Pursuit, pursuit

Encoder = Literal["mp", "omp", "nonnegative"]
ENCODERS = get_args(Encoder)

BASIS_BYTES = 1 << 26
"""Orthonormal supports held at once."""
DEPENDENT = 1e-3
"""An atom is no news to a support when less than this share of it lies outside."""
NOISE = 1e-6
"""Correlations below this share of |x| are rounding."""


def encode(
    x: Float[Tensor, "rows d"],
    atoms: Float32[Tensor, "n d"],
    k: int,
    encoder: Encoder = "mp",
    *,
    gram: Float[Tensor, "n n"] | None = None,
    tolerance: float = 0.0,
) -> Pursuit:
    """At most k codes a row by the named pursuit; fewer once the squared residual is at most `tolerance` of |x|^2.

    Args:
        atoms: rows of unit norm.
        gram: atoms @ atoms.T, which orthogonal pursuit does without.
    """
    if encoder == "omp":
        return orthogonal_pursuit(x, atoms, k, tolerance=tolerance)
    return pursuit(x, atoms, k, gram=gram, nonnegative=encoder == "nonnegative", tolerance=tolerance)


@torch.no_grad()
def orthogonal_pursuit(
    x: Float[Tensor, "rows d"], atoms: Float32[Tensor, "n d"], k: int, *, tolerance: float = 0.0
) -> Pursuit:
    """Orthogonal matching pursuit of every row: an atom at most once, coefficients by least squares on the support.

    A row stops when its squared residual is at most `tolerance` of |x|^2, or nothing outside the support is left that
    correlates. A row that is not finite gets NaN values. Memory is one chunk of correlations [rows, n] and of
    orthonormal supports [rows, k, d], whatever the number of rows.

    Raises:
        ValueError: k is not positive or there are no atoms.
    """
    (n, d), x = atoms.shape, x.float()
    if k < 1 or n < 1:
        raise ValueError(f"orthogonal pursuit needs k and the number of atoms to be at least 1, got {k} and {n}")
    steps = min(k, n, d)
    chunk = max(1, min(chunk_rows(n, x.device.type), BASIS_BYTES // (4 * steps * d)))
    values, columns = x.new_zeros(len(x), k), x.new_zeros(len(x), k, dtype=torch.int32)
    squares = x.new_zeros(len(x))
    for start in range(0, len(x), chunk):
        rows = slice(start, start + chunk)
        support = _Support(x[rows], steps)
        for step in range(steps):
            support.extend(step, atoms, tolerance)
        values[rows, :steps], columns[rows, :steps] = support.coefficients(), support.columns
        squares[rows] = support.left.square().sum(1)
    return Pursuit(values.masked_fill_(~squares.isfinite()[:, None], torch.nan), columns, squares)


class _Support:
    """The chosen atoms of a chunk of rows as lower @ basis: `lower` is the Cholesky factor of their Gram matrix."""

    def __init__(self, x: Float32[Tensor, "rows d"], k: int) -> None:
        self.energy, self.left = x.square().sum(1), x.clone()
        self.basis = x.new_zeros(len(x), k, x.shape[1])
        self.lower = torch.eye(k, device=x.device).repeat(len(x), 1, 1)
        self.along = x.new_zeros(len(x), k)  # x_hat = along @ basis
        self.columns = x.new_zeros(len(x), k, dtype=torch.int32)
        self.live = torch.ones(len(x), dtype=torch.bool, device=x.device)

    def extend(self, step: int, atoms: Float32[Tensor, "n d"], tolerance: float) -> None:
        """Take the atom with the largest correlation into every support that is not done."""
        correlation = self.left @ atoms.T
        if step:
            correlation.scatter_(1, self.columns[:, :step].long(), 0)
        best, column = correlation.abs_().max(1)
        self.live &= (self.left.square().sum(1) > tolerance * self.energy) & (best > NOISE * self.energy.sqrt())
        known, fresh = self.basis[:, :step], atoms[column]
        inside = torch.zeros_like(self.along[:, :step])
        for _ in range(2):  # once leaves what rounding makes of a support that is nearly dependent
            part = torch.einsum("rkd,rd->rk", known, fresh)
            fresh = fresh - torch.einsum("rk,rkd->rd", part, known)
            inside += part
        size = fresh.norm(dim=1)
        self.live &= size > DEPENDENT
        fresh = torch.where(self.live[:, None], fresh / size[:, None], 0)
        self.basis[:, step] = fresh
        self.lower[:, step, :step] = inside * self.live[:, None]
        self.lower[:, step, step] = torch.where(self.live, size, 1)
        self.columns[:, step] = column * self.live
        self.along[:, step] = (self.left * fresh).sum(1)
        self.left -= self.along[:, step, None] * fresh

    def coefficients(self) -> Float32[Tensor, "rows k"]:
        """Of the atoms: c with c @ lower = along."""
        return torch.linalg.solve_triangular(self.lower.mT, self.along[..., None], upper=True)[..., 0]
