"""Codes of any count a row, in compressed sparse rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float32, Int32, Int64
from torch import Tensor


class Ragged(NamedTuple):
    """CSR codes: row r holds entries indptr[r] to indptr[r + 1], ascending by column."""

    indptr: Int64[Tensor, " rows+1"]
    indices: Int32[Tensor, " nnz"]
    values: Float32[Tensor, " nnz"]


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
