"""Compiled CPU loop of the sampled dense-dense product."""

from __future__ import annotations

import torch
from torch import Tensor

from .compiled import compiled
from .products import dot_rows
from .threads import run_rows


@compiled
def gradient_rows(start, stop, indptr, indices, weight, residual, grads):
    """grads[p] = weight[indices[p]] . residual[r] for the entries p of rows start..stop."""
    for r in range(start, stop):
        first, last = indptr[r], indptr[r + 1]
        dot_rows(residual[r], indices[first:last], weight, grads[first:last])


def code_gradients(indptr: Tensor, indices: Tensor, W_dec: Tensor, residual: Tensor) -> Tensor:
    """`kernels.code_gradients.code_gradients` on a CPU."""
    grads = torch.empty(len(indices))
    inputs = (part.detach().contiguous().numpy() for part in (indptr, indices, W_dec.float(), residual.float()))
    run_rows(gradient_rows, len(residual), *inputs, grads.numpy())
    return grads
