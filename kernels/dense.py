"""The sparse step with dense products: faster where a large share of the latents is active.

A gather does few operations a byte and a matrix product many, so sparse rows pay off only above some number of latents
per active code; `dispatch.dense_is_faster` knows it. Early JumpReLU training and very small dictionaries lie below.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .csr import row_of_entry
from .tuples import Residual, RowGradients


def scattered(indptr: Tensor, indices: Tensor, values: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """The dense matrix [batch, n] of some codes, and the rows and columns of their entries."""
    rows, columns = row_of_entry(indptr, len(indices)), indices.long()
    matrix = values.new_zeros(len(indptr) - 1, n)
    return matrix.index_put_((rows, columns), values, accumulate=True), rows, columns


def decode(indptr: Tensor, indices: Tensor, values: Tensor, W_dec: Tensor, b_dec: Tensor) -> Tensor:
    """`kernels.decode.decode` by one matrix product."""
    return torch.addmm(b_dec, scattered(indptr, indices, values, len(W_dec))[0], W_dec.float())


def decode_residual(
    indptr: Tensor, indices: Tensor, values: Tensor, W_dec: Tensor, b_dec: Tensor, x: Tensor, width: int | None = None
) -> Residual:
    """`kernels.decode.decode_residual` by two matrix products; `width` is not needed here."""
    matrix, rows, columns = scattered(indptr, indices, values, len(W_dec))
    residual = torch.addmm(b_dec, matrix, W_dec.float()).sub_(x)
    grads = torch.mm(residual, W_dec.float().T, out=matrix)[rows, columns]
    return Residual(residual.to(x.dtype), residual.square().sum(1), grads * (values != 0))


def latent_gradients(
    codes: tuple[Tensor, Tensor, Tensor], out: Residual, x: Tensor, scale: float | Tensor, n_latents: int
) -> tuple[RowGradients, Tensor]:
    """Gradients of all latents by two matrix products, and how often each fired [n] int64; rows may be bf16.

    Products are of fp32: the codes' gradients stay exact, and rows in bf16 are widened.
    """
    values, active = codes[2], codes[2] != 0
    z, _, columns = scattered(*codes[:2], values * active, n_latents)
    W_dec = torch.mm(z.T, out.residual.float()).mul_(scale)
    dz = scattered(*codes[:2], out.grads * active, n_latents)[0]
    rows = torch.arange(n_latents, device=x.device)
    bias = dz.sum(0).mul_(scale)
    fired = torch.zeros(n_latents, dtype=torch.int64, device=x.device).index_add_(0, columns, active.long())
    return RowGradients(rows, torch.mm(dz.T, x.float()).mul_(scale), W_dec, bias[:, None]), fired
