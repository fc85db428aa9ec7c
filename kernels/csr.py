"""Codes of any count a row, in compressed sparse rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .tuples import Ragged


def concatenate(parts: Sequence[Ragged]) -> Ragged:
    """The rows of all parts, in order. Sizes come from shapes, so that no device is waited for.

    Raises:
        ValueError: there are no parts.
    """
    if not parts:
        raise ValueError("concatenate needs at least one part, got none")
    starts, total = [], 0
    for part in parts:
        starts.append(part.indptr[:-1] + total)
        total += len(part.indices)
    end = parts[-1].indptr.new_full((1,), total)
    return Ragged(
        torch.cat([*starts, end]), torch.cat([p.indices for p in parts]), torch.cat([p.values for p in parts])
    )


def row_of_entry(indptr: Tensor, nnz: int) -> Tensor:
    """The row that each of the nnz entries belongs to."""
    counts = indptr[1:] - indptr[:-1]
    return torch.repeat_interleave(torch.arange(len(counts), device=indptr.device), counts, output_size=nnz)
