"""Exact top-k of each row, with a defined order: kept entries ascend by column, ties go to the lowest column."""

from __future__ import annotations

import torch
from jaxtyping import Float32, Int32
from torch import Tensor

from . import cpu_topk
from .dispatch import compiled
from .threads import run_rows

Codes = tuple[Float32[Tensor, "rows k"], Int32[Tensor, "rows k"]]


def topk(pre: Float32[Tensor, "rows n"], k: int) -> Codes:
    """The k largest entries of each row of `pre` and their columns, ascending by column.

    Raises:
        ValueError: k is not in 1..n.
    """
    if not 1 <= k <= pre.shape[1]:
        raise ValueError(f"k must be from 1 to the {pre.shape[1]} columns, got {k}")
    if not compiled(pre.device):
        return reference(pre, k)
    values = torch.zeros(pre.shape[0], k)
    columns = torch.zeros(pre.shape[0], k, dtype=torch.int32)
    run_rows(cpu_topk.topk_rows, pre.shape[0], pre.numpy(), k, values.numpy(), columns.numpy())
    return values, columns


def reference(pre: Float32[Tensor, "rows n"], k: int) -> Codes:
    """Stable sort, descending: the specification of `topk`."""
    columns = pre.sort(dim=1, descending=True, stable=True).indices[:, :k].sort(dim=1).values
    return pre.gather(1, columns), columns.int()
