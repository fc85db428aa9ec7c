"""Resampling: dead latents start anew on rows that are reconstructed badly (Bricken et al. 2023, neuron resampling).

A row is drawn with probability proportional to the square of its squared error. The latent's decoder row becomes the
direction of what that row is to be, its encoder row the direction of what is read, at `SHARE` of the mean norm of the
living encoders; its bias is 0 and its moments are forgotten.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float32
from torch import Tensor
from torch.nn.functional import normalize

from .objectives import Rows
from .optimisers import Optimiser

SHARE = 0.2
"""Of the mean norm of living encoders: a latent that starts small does not upset the others."""


@torch.no_grad()
def resample(
    optimiser: Optimiser,
    dead: Bool[Tensor, " n"],
    rows: Rows,
    squares: Float32[Tensor, " batch"],
    generator: torch.Generator,
) -> None:
    """Set the weights of dead latents in place, and the optimiser's state of them.

    Args:
        dead: if all latents are, the mean norm is taken over them.
        rows: the batch that rows are drawn from, with replacement.
        squares: their squared errors.
        generator: on the CPU.
    """
    latents = dead.nonzero()[:, 0]
    if not len(latents):
        return
    weights = optimiser.weights
    odds = squares.double().square().cpu().clamp_min(1e-300)
    picks = torch.multinomial(odds / odds.sum(), len(latents), replacement=True, generator=generator).to(dead.device)
    norms = weights.W_enc.norm(dim=1)
    alive = norms[~dead] if not dead.all() else norms
    weights.W_enc[latents] = SHARE * alive.mean() * normalize(rows.input[picks], dim=1)
    weights.W_dec[latents] = normalize(rows.target[picks], dim=1)
    weights.b_enc[latents] = 0
    optimiser.forget(latents)
