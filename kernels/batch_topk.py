"""Ragged selection: the batch * k largest pre-activations of a whole batch."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from .chunks import chunk_rows
from .encode import encode_topk
from .kth import among_largest, kth_largest
from .threshold import encode_above
from .tuples import LowPrecisionCopy, Ragged

HEADROOM = 3
"""Candidates a row in the first pass, in multiples of k: 3 measured fastest of 1 to 4 on a CPU."""

MARGIN = 1e-3
"""How far below the bound a second look keeps candidates: more than products of another split of rows can differ."""


def encode_batch_topk(
    x: Float[Tensor, "batch d"],
    W_enc: Float32[Tensor, "n d"],
    b_enc: Float32[Tensor, " n"],
    k: int,
    *,
    precision: Literal["fp32", "bf16", "int8"] = "fp32",
    low_precision: LowPrecisionCopy | None = None,
) -> Ragged:
    """The batch * k largest pre-activations of the batch, less those at or below zero.

    The selection of BatchTopK (Bussmann et al. 2024, section 3).

    Ties go to the earlier row, then column; NaN counts as larger than everything, and is kept. Exact for any spread
    over rows: `HEADROOM` * k candidates of each row give a bound that the final one cannot be below, and rows that
    have every candidate kept are encoded again, one chunk at a time, for all that reaches the bound.
    The output's size depends on the data: on a GPU the host waits for it, and twice more where rows are encoded again.

    Raises:
        ValueError: k is not in 1..n.
    """
    batch, n = len(x), len(W_enc)
    if not 1 <= k <= n:
        raise ValueError(f"k must be from 1 to the {n} latents, got {k}")
    width = min(n, HEADROOM * k)
    largest = encode_topk(x, W_enc, b_enc, width, precision=precision, low_precision=low_precision)
    pool = Ragged(torch.arange(batch + 1, device=x.device) * width, largest.columns.flatten(), largest.values.flatten())
    whole = torch.full((batch,), width == n, device=x.device)  # rows of which every possible candidate is in the pool
    while batch:
        kth = kth_largest(pool.values, min(batch * k, len(pool.values)))
        kept = _filter(pool, among_largest(pool.values, kth) & ~(pool.values <= 0))
        cut_short = (kept.indptr.diff() == pool.indptr.diff()) & ~whole
        rows = cut_short.nonzero()[: chunk_rows(n, x.device.type), 0]
        if not len(rows):
            return kept
        whole = whole.index_fill(0, rows, True)
        bound = (kth.value.clamp(0, torch.finfo().max) * (1 - MARGIN)).nan_to_num(torch.inf)
        pool = _replace(
            pool, rows, encode_above(x[rows], W_enc, b_enc, bound, precision=precision, low_precision=low_precision)
        )
    return pool


def _filter(codes: Ragged, keep: Tensor) -> Ragged:
    """The codes where `keep`."""
    before = torch.cat([codes.indptr.new_zeros(1), keep.cumsum(0)])
    return Ragged(before[codes.indptr], codes.indices[keep], codes.values[keep])


def _replace(codes: Ragged, rows: Tensor, renewed: Ragged) -> Ragged:
    """`codes` with all of `rows` (ascending) replaced by `renewed`."""
    counts = codes.indptr.diff()
    replaced = torch.zeros_like(counts, dtype=torch.bool).index_fill(0, rows, True)
    stays = ~replaced.repeat_interleave(counts)
    counts = counts.index_copy(0, rows, renewed.indptr.diff())
    enters = replaced.repeat_interleave(counts)
    indices, values = codes.indices.new_empty(len(enters)), codes.values.new_empty(len(enters))
    indices[enters], indices[~enters] = renewed.indices, codes.indices[stays]
    values[enters], values[~enters] = renewed.values, codes.values[stays]
    return Ragged(torch.cat([counts.new_zeros(1), counts.cumsum(0)]), indices, values)


def _ragged(keep: Tensor, columns: Tensor, values: Tensor) -> Ragged:
    counts = keep.sum(1)
    return Ragged(torch.cat([counts.new_zeros(1), counts.cumsum(0)]), columns[keep], values[keep])


def reference(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> Ragged:
    """A stable sort of the whole batch of pre-activations: the specification of `encode_batch_topk`."""
    pre = x.float() @ W_enc.T + b_enc
    kept = pre.flatten().sort(descending=True, stable=True).indices[: len(x) * k]
    keep = torch.zeros(pre.numel(), dtype=torch.bool, device=x.device).index_fill_(0, kept, True).view_as(pre)
    columns = torch.arange(len(W_enc), dtype=torch.int32, device=x.device).expand_as(pre)
    return _ragged(keep & ~(pre <= 0), columns, pre)
