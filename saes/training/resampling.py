"""Resampling: dead latents start anew on rows that are reconstructed badly (Bricken et al. 2023, neuron resampling).

A row is drawn with probability proportional to the square of its squared error, at most once: of more dead latents than
rows, those that have been so longest come first. The latent's decoder row becomes the
direction of what that row is to be, its encoder row the direction of what is read, at `SHARE` of the mean norm of the
living encoders. Where codes must exceed a bound it is longer if need be: its row exceeds the bound by half. Its bias is
0, or less the bound where biases hold it, and its moments are forgotten.
"""

from __future__ import annotations

import torch
from jaxtyping import Float32, Int
from torch import Tensor
from torch.nn.functional import normalize

from ..architectures.objective import Objective, Rows
from .optimisers import Optimiser

SHARE = 0.2
"""Of the mean norm of living encoders: a latent that starts small does not upset the others."""

EXCESS = 1.5
"""What a latent's row gives over the bound: it fires there, and on few others."""

SMALL = 0.1
"""Of the mean norm of those rows: one below it counts as of that norm, lest its latent become huge."""


@torch.no_grad()
def resample(
    optimiser: Optimiser,
    objective: Objective,
    idle: Int[Tensor, " n"],
    dead_after: int,
    rows: Rows,
    squares: Float32[Tensor, " batch"],
    generator: torch.Generator,
) -> int:
    """Set the weights of dead latents in place, and the state of them in the optimiser and the objective.

    Args:
        idle: rows since each latent fired, 0 again for those that start anew.
        dead_after: of how many on it is dead; if all are, the mean norm is taken over them.
        rows: the batch that rows are drawn from.
        squares: their squared errors.
        generator: on the CPU.

    Returns:
        How many latents start anew.
    """
    dead = idle >= dead_after
    longest = idle.sort(descending=True, stable=True).indices
    latents = longest[: min(int(dead.sum()), len(squares))]
    if not len(latents):
        return 0
    weights = optimiser.weights
    odds = squares.double().square().cpu().clamp_min(1e-300)
    picks = torch.multinomial(odds / odds.sum(), len(latents), generator=generator).to(dead.device)
    norms = weights.W_enc.norm(dim=1)
    alive = norms[~dead] if not dead.all() else norms
    read, bound = rows.input[picks], torch.as_tensor(objective.bound(), device=dead.device)
    sizes = read.norm(dim=1, keepdim=True)
    length = torch.maximum(SHARE * alive.mean(), EXCESS * bound / sizes.clamp_min(SMALL * sizes.mean() + 1e-12))
    weights.W_enc[latents] = length * normalize(read, dim=1)
    weights.W_dec[latents] = normalize(rows.target[picks], dim=1)
    weights.b_enc[latents] = -bound if objective.biased else 0.0
    optimiser.forget(latents)
    objective.restart(latents, bound)
    objective.settle()
    idle[latents] = 0
    return len(latents)
