"""Dead-latent aid: dead latents learn to explain the residual (Gao et al. 2024, 2406.04093, appendix A.2).

Works on the compacted dead set with dense products, and its gradient reaches the encoder as well as the decoder.
"""

from __future__ import annotations

import torch
from jaxtyping import Float32, Int
from torch import Tensor

from ..kernels.update import Extra, Weights


def auxk_gradients(
    centred: Float32[Tensor, "batch d"],
    residual: Float32[Tensor, "batch d"],
    weights: Weights,
    latents: Int[Tensor, " dead"],
    k: int,
    coefficient: float,
) -> tuple[Extra | None, Float32[Tensor, ""]]:
    """Gradients of `coefficient` * |target - x_hat_dead|^2 / |target - mean target|^2, and that loss.

    Args:
        residual: x_hat - x of the main reconstruction; the target is its negative, held constant.
        latents: ids of those that have not fired for the configured number of rows.
        k: how many dead latents explain each row; all of them if fewer are dead. 0 turns the aid off.

    Returns:
        Gradient rows of the dead latents (None where nothing is dead), and the loss before the coefficient.
    """
    if not (k and len(latents)):
        return None, residual.new_zeros(())
    W_enc, W_dec = weights.W_enc[latents], weights.W_dec[latents]
    pre = torch.addmm(weights.b_enc[latents], centred, W_enc.T)
    codes = pre.relu()
    if k < len(latents):
        bound = codes.topk(k, dim=1, sorted=True).values[:, -1:]
        codes = codes * (codes >= bound)
    error = codes @ W_dec + residual
    variance = (residual - residual.mean(0)).square().sum().clamp_min(1e-12)
    scaled = error * (2 * coefficient / variance)
    to_codes = (scaled @ W_dec.T) * (codes > 0)
    extra = Extra(latents, to_codes.T @ centred, codes.T @ scaled, to_codes.sum(0)[:, None])
    return extra, error.square().sum() / variance
