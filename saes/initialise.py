"""Starting weights, from the first rows of the stream (recipes compared in Gao et al. 2024, appendix A.1)."""

from __future__ import annotations

import torch
from jaxtyping import Float32
from torch import Tensor

from .sae import SparseAutoencoder

WEISZFELD_STEPS = 50


def geometric_median(x: Float32[Tensor, "rows d"]) -> Float32[Tensor, " d"]:
    """The point with the least summed distance to the rows (Weiszfeld's iteration)."""
    guess = x.mean(0)
    for _ in range(WEISZFELD_STEPS):
        weight = 1 / (x - guess).norm(dim=1).clamp_min(1e-8)
        guess = (weight / weight.sum()) @ x
    return guess


@torch.no_grad()
def initialise(
    dictionary: SparseAutoencoder, x: Float32[Tensor, "rows d"], generator: torch.Generator, blend: float
) -> None:
    """Set all weights in place: unit decoder rows, encoder = decoder transposed and scaled, bias at the median.

    Args:
        x: normalised activations, at least a few thousand rows.
        blend: share of a (centred, unit) data row in every decoder row; the rest is a random direction.
            0 is the published recipe, 1 starts on the data itself.

    The encoder's scale makes the reconstruction of `x` the best multiple of itself.
    """
    n, d = dictionary.W_dec.shape
    dictionary.b_dec.copy_(geometric_median(x))
    random = torch.randn(n, d, generator=generator).to(x.device)
    random /= random.norm(dim=1, keepdim=True)
    picks = torch.randperm(max(n, len(x)), generator=generator)[:n].to(x.device) % len(x)
    data = (x - dictionary.b_dec)[picks]
    data /= data.norm(dim=1, keepdim=True).clamp_min(1e-8)
    rows = blend * data + (1 - blend) * random
    dictionary.W_dec.copy_(rows / rows.norm(dim=1, keepdim=True))
    dictionary.W_enc.copy_(dictionary.W_dec)
    dictionary.b_enc.zero_()
    scale_encoder(dictionary, x)


def scale_encoder(dictionary: SparseAutoencoder, x: Float32[Tensor, "rows d"]) -> None:
    """Multiply the encoder by the least-squares factor between `x - b_dec` and its reconstruction."""
    centred = dictionary.centred(x)
    part = dictionary.decode(dictionary.training_code(centred, None)) - dictionary.b_dec
    dictionary.W_enc.mul_((part * centred).sum() / part.square().sum().clamp_min(1e-12))
