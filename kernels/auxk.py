"""Dead-latent aid: dead latents learn to explain the residual (Gao et al. 2024, 2406.04093, appendix A.2).

Works on the compacted dead set with dense products (k of the aid is too large for gathers to pay), in row chunks, and
its gradient reaches the encoder as well as the decoder.
"""

from __future__ import annotations

import torch
from jaxtyping import Float32, Int
from torch import Tensor

from .chunks import chunk_rows
from .topk import topk
from .tuples import RowGradients, Weights


def auxk_gradients(
    centred: Float32[Tensor, "batch d"],
    residual: Float32[Tensor, "batch d"],
    weights: Weights,
    latents: Int[Tensor, " dead"],
    k: int,
    coefficient: float,
) -> tuple[RowGradients | None, Float32[Tensor, ""]]:
    """Gradients of `coefficient` * |target - x_hat_dead|^2 / |target - mean target|^2, and that loss.

    Args:
        residual: x_hat - x of the main reconstruction; the target is its negative, held constant.
        latents: ids of those that have not fired for the configured number of rows; ids from n on are nobody's.
        k: how many dead latents explain each row; all of them if fewer are dead. 0 turns the aid off.

    Returns:
        Gradient rows of the dead latents (None where nothing is dead), and the loss before the coefficient.
    """
    if not (k and len(latents)):
        return None, residual.new_zeros(())
    nobody = latents >= len(weights.b_enc)
    W_enc, W_dec, b_enc = (part[latents.clamp_max(len(weights.b_enc) - 1)] for part in weights)
    b_enc = b_enc.masked_fill(nobody, -torch.inf)  # never among a row's codes
    grads = RowGradients(latents, torch.zeros_like(W_enc), torch.zeros_like(W_dec), torch.zeros_like(W_enc[:, :1]))
    variance = (residual.square().sum() - len(residual) * residual.mean(0).square().sum()).clamp_min(1e-12)
    squares = residual.new_zeros(())
    chunk = chunk_rows(len(latents), residual.device.type)
    for x, rest in zip(centred.split(chunk), residual.split(chunk), strict=True):
        codes = _codes(torch.addmm(b_enc, x, W_enc.T), k)
        error = torch.addmm(rest, codes, W_dec)
        squares += error.square().sum()
        error *= 2 * coefficient / variance
        grads.W_dec.addmm_(codes.T, error)
        to_codes = (error @ W_dec.T).mul_(codes > 0)
        grads.W_enc.addmm_(to_codes.T, x)
        grads.b_enc[:, 0] += to_codes.sum(0)
    return grads, squares / variance * ~nobody.all()


def _codes(pre: Float32[Tensor, "rows dead"], k: int) -> Float32[Tensor, "rows dead"]:
    """The k largest entries of each row, cut at zero; the others zero."""
    if k >= pre.shape[1]:
        return pre.relu_()
    kept = topk(pre, k)
    return pre.zero_().scatter_(1, kept.columns.long(), kept.values.clamp_min_(0))
