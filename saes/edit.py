"""Edits: activations written in place of those of the model, where a token mask says so."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..lab.text.packing import TokenBatch

Replace = Callable[[Float[Tensor, "rows d"]], Float[Tensor, "rows d"]]


def splice_edit(replace: Replace, mask: Bool[Tensor, "batch tokens"]) -> Callable[[Tensor], Tensor]:
    """An edit for `HookedModel.editing`: rows in `mask` are replaced, all others kept bit for bit.

    Args:
        replace: from rows [n, d] to rows of the same shape; heads of `z` are flattened into d.
    """

    def edit(x: Tensor) -> Tensor:
        if not mask.any():
            return x
        flat = x.reshape(*mask.shape, -1)
        spliced = flat.clone()
        spliced[mask] = replace(flat[mask]).to(flat.device, flat.dtype)
        return spliced.view_as(x)

    return edit


def predicting(batch: TokenBatch) -> Bool[Tensor, "R T"]:
    """Usable positions whose next token is usable and of the same document."""
    found = torch.zeros_like(batch.usable)
    found[:, :-1] = batch.usable[:, :-1] & batch.usable[:, 1:] & (batch.doc[:, :-1] == batch.doc[:, 1:])
    return found
