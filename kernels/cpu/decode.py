"""Compiled CPU loops of the sparse decode, plain and with residual and code gradient."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..tuples import Residual
from .compiled import compiled
from .products import add_rows, dot, dot_rows
from .threads import run_rows


@compiled
def decode_rows(start, stop, indptr, indices, values, weight, bias, out):
    """out[r] = bias + sum of values * weight[indices] over the codes of row r."""
    for r in range(start, stop):
        own = slice(indptr[r], indptr[r + 1])
        out[r] = bias
        add_rows(out[r], values[own], indices[own], weight)


@compiled
def residual_rows(start, stop, indptr, indices, values, weight, bias, x, residual, squares, grads):
    """residual[r] = x_hat - x, squares[r] = |residual[r]|^2, grads[p] = weight[indices[p]] . residual[r].

    The decoder rows of one token are read twice in a row, the second time from cache.
    """
    for r in range(start, stop):
        own = slice(indptr[r], indptr[r + 1])
        row, codes = residual[r], values[own]
        for i in range(row.shape[0]):
            row[i] = bias[i] - x[r, i]
        add_rows(row, codes, indices[own], weight)
        squares[r] = dot(row, row)
        dot_rows(row, indices[own], weight, grads[own])
        for p in range(own.start, own.stop):
            grads[p] = grads[p] if values[p] != 0 else np.float32(0)


def decode(indptr: Tensor, indices: Tensor, values: Tensor, W_dec: Tensor, b_dec: Tensor) -> Tensor:
    """`kernels.decode.decode` on a CPU."""
    out = torch.empty(len(indptr) - 1, W_dec.shape[1])
    run_rows(decode_rows, len(out), *arrays(indptr, indices, values, W_dec.float(), b_dec, out))
    return out


def decode_residual(
    indptr: Tensor, indices: Tensor, values: Tensor, W_dec: Tensor, b_dec: Tensor, x: Tensor, width: int | None = None
) -> Residual:
    """`kernels.decode.decode_residual` on a CPU; `width` is not needed here."""
    out = Residual(torch.empty_like(x), torch.empty(len(x)), torch.empty(len(indices)))
    run_rows(residual_rows, len(x), *arrays(indptr, indices, values, W_dec.float(), b_dec, x, *out))
    return out


def arrays(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    """The tensors' memory as numpy arrays."""
    return tuple(tensor.detach().numpy() for tensor in tensors)
