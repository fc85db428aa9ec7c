"""Sparse decode over CSR codes: plain, and fused with residual, loss and the gradient to the codes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float32, Int
from torch import Tensor

from . import cpu_step
from .dispatch import compiled
from .threads import run_rows


class Residual(NamedTuple):
    """Of one batch: x_hat - x [batch, d], its squared norms [batch], and W_dec[index] . residual per code [nnz]."""

    residual: Float32[Tensor, "batch d"]
    squares: Float32[Tensor, " batch"]
    grads: Float32[Tensor, " nnz"]


def decode(
    indptr: Int[Tensor, " batch+1"],
    indices: Int[Tensor, " nnz"],
    values: Float32[Tensor, " nnz"],
    W_dec: Float32[Tensor, "n d"],
    b_dec: Float32[Tensor, " d"],
) -> Float32[Tensor, "batch d"]:
    """x_hat = codes @ W_dec + b_dec."""
    if not compiled(W_dec.device):
        return decode_reference(indptr, indices, values, W_dec, b_dec)
    out = torch.empty(len(indptr) - 1, W_dec.shape[1])
    run_rows(cpu_step.decode_rows, len(out), *_numpy(indptr, indices, values, W_dec, b_dec, out))
    return out


def decode_residual(
    indptr: Tensor,
    indices: Tensor,
    values: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    x: Float32[Tensor, "batch d"],
) -> Residual:
    """Decode, subtract x and take the gradient of half the squared error to the codes, in one gather.

    Codes at zero (cut by the relu) get no gradient.
    """
    if not compiled(W_dec.device):
        return residual_reference(indptr, indices, values, W_dec, b_dec, x)
    out = Residual(torch.empty_like(x), torch.empty(len(x)), torch.empty(len(indices)))
    run_rows(cpu_step.residual_rows, len(x), *_numpy(indptr, indices, values, W_dec, b_dec, x, *out))
    return out


def _numpy(*tensors: Tensor) -> tuple:
    return tuple(tensor.detach().numpy() for tensor in tensors)


def row_of_entry(indptr: Tensor, nnz: int) -> Tensor:
    """The row that each of the nnz entries belongs to."""
    counts = indptr[1:] - indptr[:-1]
    return torch.repeat_interleave(torch.arange(len(counts), device=indptr.device), counts, output_size=nnz)


def decode_reference(indptr: Tensor, indices: Tensor, values: Tensor, W_dec: Tensor, b_dec: Tensor) -> Tensor:
    """Scatter to a dense [batch, n] matrix and multiply: the specification of `decode`."""
    dense = torch.zeros(len(indptr) - 1, len(W_dec), device=W_dec.device)
    dense.index_put_((row_of_entry(indptr, len(indices)), indices.long()), values, accumulate=True)
    return dense @ W_dec + b_dec


def residual_reference(
    indptr: Tensor, indices: Tensor, values: Tensor, W_dec: Tensor, b_dec: Tensor, x: Tensor
) -> Residual:
    """The specification of `decode_residual`."""
    residual = decode_reference(indptr, indices, values, W_dec, b_dec) - x
    rows = row_of_entry(indptr, len(indices))
    grads = (W_dec[indices.long()] * residual[rows]).sum(1) * (values > 0)
    return Residual(residual, residual.square().sum(1), grads)
