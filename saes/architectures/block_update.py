"""Updating the weights block by block: each block of latents against its own residual (one block for most objectives).

Blocks are consecutive rows, so that the kernels work on views of weights, moments and low-precision copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels.dispatch import fixed_sizes
from ...kernels.tuples import Adam, LowPrecisionCopy, Moments, Residual, RowGradients, Updated, Weights
from ...kernels.update import latent_gradients, latent_step


class LatentBlock(NamedTuple):
    """A block of consecutive latents that is updated against one residual."""

    latents: slice
    codes: tuple[Tensor, Tensor, Tensor]
    """(indptr, indices, values), with indices from the block's start. Entries at zero get no gradient."""
    out: Residual


class State(NamedTuple):
    """Weights, moments and low-precision copies, which an update changes."""

    weights: Weights
    moments: Moments
    low_precision: LowPrecisionCopy | None

    def block(self, latents: slice) -> State:
        """Views of some rows of everything."""
        weights, moments, low_precision = self
        first = None if moments.first is None else Weights(*(part[latents] for part in moments.first))
        second = Weights(*(part[latents] for part in moments.second))
        touched = None if moments.touched is None else moments.touched[latents]
        if low_precision is not None:
            rows = (None if copy is None else copy[latents] for copy in low_precision)
            low_precision = LowPrecisionCopy(*rows)  # pyright: ignore[reportArgumentType]
        return State(Weights(*(part[latents] for part in weights)), Moments(first, second, touched), low_precision)


def step_parts(
    parts: Sequence[LatentBlock], x: Tensor, scale: Tensor, state: State, adam: Adam, extra: RowGradients | None
) -> Updated:
    """Call `kernels.update.latent_step` for every block of latents.

    Args:
        x: input of the encoder [batch, d_in].
        scale: factor on every gradient except those of `extra`.
        extra: further gradient rows.
    """
    if len(parts) == 1:
        (part,) = parts
        return latent_step(
            part.codes, part.out, x, scale, state.weights, state.moments, adam, state.low_precision, extra
        )
    updates = []
    for part in parts:
        weights, moments, low_precision = state.block(part.latents)
        rows = None if extra is None else _within(extra, part.latents)
        updates.append(latent_step(part.codes, part.out, x, scale, weights, moments, adam, low_precision, rows))
    to_input = torch.stack([updated.to_input for updated in updates]).sum(0)
    return Updated(to_input, torch.cat([updated.fired for updated in updates]))


def gradient_rows(
    parts: Sequence[LatentBlock], x: Tensor, scale: Tensor, n_latents: int, extra: RowGradients | None
) -> tuple[RowGradients, Tensor]:
    """The gradient rows that `step_parts` would apply, and how many codes of each latent had one [n_latents]."""
    blocks, fired = [], torch.zeros(n_latents, dtype=torch.int64, device=x.device)
    for latents, codes, out in parts:
        counts = fired[latents]
        counts.index_add_(0, codes[1].long(), (codes[2] != 0).long())
        gradients = latent_gradients(codes, out, x, scale, len(counts))
        blocks.append(gradients._replace(latents=gradients.latents + (latents.start or 0)))
    rows = blocks[0] if len(blocks) == 1 else RowGradients(*(torch.cat(kind) for kind in zip(*blocks, strict=True)))
    return rows if extra is None else rows.plus(extra.owned(n_latents)), fired


def _within(rows: RowGradients, latents: slice) -> RowGradients:
    """The gradient rows of a block's latents, counted from its start; where sizes are fixed the others are nobody's."""
    inside = (rows.latents >= latents.start) & (rows.latents < latents.stop)
    size = latents.stop - latents.start
    rows = rows._replace(latents=torch.where(inside, rows.latents - latents.start, size))
    return rows if fixed_sizes(rows.latents.device) else rows.owned(size)
