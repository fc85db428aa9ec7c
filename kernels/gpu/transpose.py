"""Codes turned round: for each latent the tokens it fires on, in order, built on the device without a host sync."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Lists(NamedTuple):
    """Latent j owns slots pointers[j] .. pointers[j + 1] of tokens and entries, tokens ascending.

    pointers [n + 1] int64. tokens [nnz] int32: rows of the batch. entries [nnz] int32: positions among the codes.
    Codes at zero lie past pointers[n] and belong to nobody.
    """

    pointers: Tensor
    tokens: Tensor
    entries: Tensor

    @property
    def fired(self) -> Tensor:
        """How many active codes each latent has [n] int64."""
        return self.pointers.diff()


def transpose(codes: tuple[Tensor, Tensor, Tensor], n_latents: int) -> Lists:
    """Sort the codes by latent; the sort is stable, so that every list keeps the order of the tokens.

    Args:
        codes: (indptr [batch + 1], indices [nnz] int32, values [nnz]).
    """
    indptr, indices, values = codes
    keys = torch.where(values != 0, indices, n_latents).int()
    keys, entries = keys.sort(stable=True)
    bounds = torch.arange(n_latents + 1, dtype=torch.int32, device=keys.device)
    return Lists(torch.searchsorted(keys, bounds), owners(indptr[1:], entries), entries.int())


def owners(ends: Tensor, slots: Tensor) -> Tensor:
    """Whose each slot is, where owner i has the slots from ends[i - 1] to ends[i]: int32, len(ends) past the last."""
    return torch.searchsorted(ends, slots, right=True, out_int32=True)
