"""Ragged selection: the batch * k largest pre-activations of a whole batch, or all above a threshold."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from .encode import Shadow, chunk_rows, encode_topk

HEADROOM = 4
"""Candidates a row in the first pass, in multiples of k. Rows that use all of them are encoded again with more."""


class Ragged(NamedTuple):
    """CSR codes: indptr [batch + 1] int64, indices [nnz] int32, values [nnz]."""

    indptr: Tensor
    indices: Tensor
    values: Tensor


def encode_batch_topk(
    x: Float[Tensor, "batch d"],
    W_enc: Float32[Tensor, "n d"],
    b_enc: Float32[Tensor, " n"],
    k: int,
    *,
    precision: Literal["fp32", "bf16", "int8"] = "fp32",
    shadow: Shadow | None = None,
) -> Ragged:
    """The batch * k largest positive pre-activations of the batch; ties go to the earlier row, then column.

    Exact for any spread over rows: a row whose candidates all reach the batch threshold is encoded again with
    four times as many until none is cut short.
    """
    batch, n = len(x), len(W_enc)
    width = min(n, HEADROOM * k)
    values, columns = encode_topk(x, W_enc, b_enc, width, precision=precision, shadow=shadow)
    while True:
        bound = values.flatten().kthvalue(values.numel() - batch * k + 1).values
        full = (values.amin(1) >= bound.clamp_min(0)).nonzero()[:, 0] if width < n else values.new_zeros(0)
        if not len(full):
            break
        width = min(n, HEADROOM * width)
        wide_values = values.new_full((batch, width), -torch.inf)
        wide_columns = columns.new_zeros(batch, width)
        wide_values[:, : values.shape[1]], wide_columns[:, : values.shape[1]] = values, columns
        wide_values[full], wide_columns[full] = encode_topk(
            x[full], W_enc, b_enc, width, precision=precision, shadow=shadow
        )
        values, columns = wide_values, wide_columns
    above = values > bound
    tied = values == bound
    spare = batch * k - above.sum()
    keep = (above | (tied & (tied.flatten().cumsum(0).view_as(tied) <= spare))) & (values > 0)
    return _ragged(keep, columns, values)


def encode_threshold(
    x: Float[Tensor, "batch d"],
    W_enc: Float32[Tensor, "n d"],
    b_enc: Float32[Tensor, " n"],
    threshold: Float32[Tensor, ""],
) -> Ragged:
    """All pre-activations above max(threshold, 0), in row chunks."""
    parts = []
    for part in x.float().split(chunk_rows(len(W_enc))):
        pre = torch.addmm(b_enc, part, W_enc.T)
        columns = torch.arange(len(W_enc), dtype=torch.int32, device=x.device).expand_as(pre)
        parts.append(_ragged(pre > threshold.clamp_min(0), columns, pre))
    starts = torch.tensor([0] + [len(part.indices) for part in parts[:-1]], device=x.device).cumsum(0)
    indptr = [part.indptr[:-1] + start for part, start in zip(parts, starts, strict=True)]
    total = starts[-1:] + len(parts[-1].indices)
    return Ragged(
        torch.cat([*indptr, total]),
        torch.cat([p.indices for p in parts]),
        torch.cat([p.values for p in parts]),
    )


def _ragged(keep: Tensor, columns: Tensor, values: Tensor) -> Ragged:
    counts = keep.sum(1)
    return Ragged(torch.cat([counts.new_zeros(1), counts.cumsum(0)]), columns[keep], values[keep])


def reference(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> Ragged:
    """A stable sort of the whole batch of pre-activations: the specification of `encode_batch_topk`."""
    pre = x.float() @ W_enc.T + b_enc
    kept = pre.flatten().sort(descending=True, stable=True).indices[: len(x) * k]
    keep = torch.zeros(pre.numel(), dtype=torch.bool, device=x.device).index_fill_(0, kept, True).view_as(pre)
    columns = torch.arange(len(W_enc), dtype=torch.int32, device=x.device).expand_as(pre)
    return _ragged(keep & (pre > 0), columns, pre)
