"""Exact top-k of each row, with a defined order: kept entries ascend by column, ties go to the lowest column."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from .dispatch import kernel
from .operators import operator
from .tuples import Codes


def topk(
    pre: Float[Tensor, "rows n"],
    k: int,
    *,
    bias: Float32[Tensor, " n"] | None = None,
    mask: Bool[Tensor, " n"] | None = None,
) -> Codes:
    """The k largest entries of each row of `pre` (plus `bias`, added in fp32).

    Equal entries go to the lowest column. NaN counts as larger than everything, so that it is seen.

    Args:
        pre: fp32, bf16 or fp16.
        mask: columns that may be kept (the dead, a Matryoshka prefix); the others count as -inf.

    Raises:
        ValueError: k is not in 1..n.
    """
    if not 1 <= k <= pre.shape[1]:
        raise ValueError(f"k must be from 1 to the {pre.shape[1]} columns, got {k}")
    return Codes(*_topk(pre, k, bias, mask))


@operator(
    "topk(Tensor pre, int k, Tensor? bias, Tensor? mask) -> (Tensor, Tensor)",
    fake=lambda pre, k, bias, mask: (
        pre.new_empty(len(pre), k, dtype=torch.float32),
        pre.new_empty(len(pre), k, dtype=torch.int32),
    ),
)
def _topk(pre, k, bias, mask):
    run = kernel("topk", pre.device, reference)
    return tuple(run(pre, k, bias, mask))


def reference(pre: Tensor, k: int, bias: Tensor | None = None, mask: Tensor | None = None) -> Codes:
    """Stable sort, descending: the specification of `topk`."""
    pre = pre.float() if bias is None else pre.float() + bias
    if mask is not None:
        pre = pre.masked_fill(~mask, -torch.inf)
    columns = pre.sort(dim=1, descending=True, stable=True).indices[:, :k].sort(dim=1).values
    return Codes(pre.gather(1, columns), columns.int())
