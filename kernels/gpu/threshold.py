"""Triton kernels of the threshold selection: count each row, sum the counts, fill. No atomics: columns ascend."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..tuples import Ragged
from .compile import Shape, Spec

BLOCK = 2048
WARPS = 8
"""Columns a program reads at once, and its warps: 8 columns a thread."""


@triton.jit
def _tile(pre, bias, bound, row, start, n, BLOCK: tl.constexpr):
    """One tile of a row: columns, pre-activations and whether each is kept."""
    columns = start + tl.arange(0, BLOCK)
    inside = columns < n
    value = tl.load(pre + row * n + columns, mask=inside, other=0.0)
    value += tl.load(bias + columns, mask=inside, other=0.0)
    limit = tl.load(bound + columns, mask=inside, other=0.0)
    return columns, value, inside & ((value > limit) | (value != value) | (limit != limit))


@triton.jit
def _count_rows(pre, bias, bound, counts, n, BLOCK: tl.constexpr):
    """counts[r] = entries kept in row r."""
    row = tl.program_id(0).to(tl.int64)
    kept = tl.zeros([BLOCK], tl.int32)
    for start in range(0, n, BLOCK):
        _, _, keep = _tile(pre, bias, bound, row, start, n, BLOCK)
        kept += keep.to(tl.int32)
    tl.store(counts + row, tl.sum(kept))


@triton.jit
def _fill_rows(pre, bias, bound, indptr, indices, values, n, BLOCK: tl.constexpr):
    """Write the kept entries of row r from indptr[r] on."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(indptr + row)
    for start in range(0, n, BLOCK):
        columns, value, keep = _tile(pre, bias, bound, row, start, n, BLOCK)
        place = tl.cumsum(keep.to(tl.int32))
        tl.store(indices + slot + place - 1, columns, mask=keep)
        tl.store(values + slot + place - 1, value, mask=keep)
        slot += tl.sum(keep.to(tl.int32))


def above(pre: Tensor, bias: Tensor, bound: Tensor) -> Ragged:
    """`kernels.threshold.above` on a GPU. The host reads the output's size once."""
    rows, n = pre.shape
    block = _block(n)
    indptr = torch.zeros(rows + 1, dtype=torch.int64, device=pre.device)
    if rows:
        counts = torch.empty(rows, dtype=torch.int32, device=pre.device)
        _count_rows[(rows,)](pre, bias, bound, counts, n, BLOCK=block, num_warps=WARPS)  # pyright: ignore[reportCallIssue]
        torch.cumsum(counts, 0, dtype=torch.int64, out=indptr[1:])
    nnz = int(indptr[-1])
    out = Ragged(indptr, pre.new_empty(nnz, dtype=torch.int32), pre.new_empty(nnz))
    if nnz:
        _fill_rows[(rows,)](pre, bias, bound, *out, n, BLOCK=block, num_warps=WARPS)  # pyright: ignore[reportCallIssue]
    return out


def _block(n: int) -> int:
    return min(BLOCK, triton.next_power_of_2(n))


def specs(shape: Shape) -> list[Spec]:
    """Both kernels at `shape`."""
    inputs = {"pre": "*fp32", "bias": "*fp32", "bound": "*fp32"}
    outputs = {"indptr": "*i64", "indices": "*i32", "values": "*fp32"}
    last = {"n": "i32", "BLOCK": "constexpr"}
    constants: dict[str, object] = {"BLOCK": _block(shape.n)}
    return [
        Spec("threshold count", _count_rows, {**inputs, "counts": "*i32", **last}, constants, WARPS),
        Spec("threshold fill", _fill_rows, {**inputs, **outputs, **last}, constants, WARPS),
    ]
