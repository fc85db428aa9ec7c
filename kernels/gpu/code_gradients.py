"""Triton kernel of the sampled dense-dense product: one program a row, in blocks of its codes."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .compile import Shape, Spec

CODES = 16
WIDTH = 128
"""Codes and columns a program gathers at once: 512 contiguous bytes of each decoder row, 16 numbers a thread."""


@triton.jit
def _gradient_rows(indptr, indices, weight, residual, grads, d, CODES: tl.constexpr, WIDTH: tl.constexpr):
    """grads[p] = weight[indices[p]] . residual[r] for the entries p of row r."""
    row = tl.program_id(0).to(tl.int64)
    last = tl.load(indptr + row + 1)
    for first in range(tl.load(indptr + row), last, CODES):
        entries = first + tl.arange(0, CODES)
        inside = entries < last
        latents = tl.load(indices + entries, mask=inside, other=0).to(tl.int64)
        sums = tl.zeros([CODES], tl.float32)
        for start in range(0, d, WIDTH):
            columns = start + tl.arange(0, WIDTH)
            within = columns < d
            right = tl.load(residual + row * d + columns, mask=within, other=0.0).to(tl.float32)
            place = weight + latents[:, None] * d + columns[None, :]
            left = tl.load(place, mask=inside[:, None] & within[None, :], other=0.0).to(tl.float32)
            sums += tl.sum(left * right[None, :], axis=1)
        tl.store(grads + entries, sums, mask=inside)


def code_gradients(indptr: Tensor, indices: Tensor, W_dec: Tensor, residual: Tensor) -> Tensor:
    """`kernels.code_gradients.code_gradients` on a GPU."""
    grads = torch.empty(len(indices), device=residual.device)
    if len(indices):
        rows, d = residual.shape
        tile: dict[str, Any] = {"CODES": CODES, "WIDTH": WIDTH}
        _gradient_rows[(rows,)](indptr, indices, W_dec.contiguous(), residual.contiguous(), grads, d, **tile)
    return grads


def specs(shape: Shape) -> list[Spec]:
    """The product, over fp32 and bf16 decoders."""
    return [
        Spec(
            f"code gradients, {kind}",
            _gradient_rows,
            {
                "indptr": "*i64", "indices": "*i32", "weight": f"*{kind}", "residual": "*fp32", "grads": "*fp32",
                "d": "i32", "CODES": "constexpr", "WIDTH": "constexpr",
            },
            {"CODES": CODES, "WIDTH": WIDTH},
        )
        for kind in ("fp32", "bf16")
    ]  # fmt: skip
