"""Sampled dense-dense product: the gradient to given codes from a given residual, whatever the codes' values."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from .chunks import entry_slices
from .csr import row_of_entry
from .dispatch import kernel
from .operators import operator


def code_gradients(
    indptr: Int[Tensor, " batch+1"],
    indices: Int[Tensor, " nnz"],
    W_dec: Float[Tensor, "n d"],
    residual: Float32[Tensor, "batch d"],
) -> Float32[Tensor, " nnz"]:
    """W_dec[indices] . residual of the entry's row, summed in fp32: only the products that codes name.

    Unlike `decode_residual` it also serves entries at 0, and a residual of any loss.

    Args:
        W_dec: fp32, or its bf16 copy (read as fp32).
    """
    return _code_gradients(indptr, indices, W_dec, residual)


@operator(
    "code_gradients(Tensor indptr, Tensor indices, Tensor W_dec, Tensor residual) -> Tensor",
    fake=lambda indptr, indices, W_dec, residual: residual.new_empty(len(indices), dtype=torch.float32),
)
def _code_gradients(indptr, indices, W_dec, residual):
    run = kernel("code_gradients", W_dec.device, reference)
    return run(indptr, indices, W_dec, residual)


def reference(indptr: Tensor, indices: Tensor, W_dec: Tensor, residual: Tensor) -> Tensor:
    """Both factors gathered, a chunk of entries at a time: the specification of `code_gradients`."""
    rows = row_of_entry(indptr, len(indices))
    out = torch.empty(len(indices), device=W_dec.device)
    for part in entry_slices(len(indices), W_dec.shape[1], W_dec.device.type):
        out[part] = (W_dec[indices[part].long()].float() * residual[rows[part]]).sum(1)
    return out
