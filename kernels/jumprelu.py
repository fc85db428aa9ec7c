"""JumpReLU and its straight-through gradients (Rajamanoharan et al. 2024, arXiv 2407.14435, sections 3 and 4).

The unit is z * 1[z > theta]. Its derivative to theta is a spike at z = theta, estimated by a rectangle: with
K = 1[|z - theta| < bandwidth / 2] / bandwidth, summed over a batch of gradients g to the unit's output,

    d theta = -theta * sum(g K) - l0_coefficient * sum(K)          d z = g * 1[z > theta]

where the second term comes from adding l0_coefficient * (number of active latents) to the summed loss. So a code
holds what is active and what lies in the window's lower half, and nothing else has a gradient.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from .dispatch import kernel
from .threshold import encode_above
from .tuples import JumpGradients, LowPrecisionCopy, Ragged


def encode_jumprelu(
    x: Float[Tensor, "batch d"],
    W_enc: Float32[Tensor, "n d"],
    b_enc: Float32[Tensor, " n"],
    theta: Float32[Tensor, " n"],
    bandwidth: float,
    *,
    precision: Literal["fp32", "bf16", "int8"] = "fp32",
    low_precision: LowPrecisionCopy | None = None,
) -> Ragged:
    """The raw pre-activations above theta - bandwidth / 2: the active ones and the window's lower half.

    Decode `jumprelu_values` of it. Precision, low-precision copy, NaN and host waits as in `encode_above`.

    Raises:
        ValueError: bandwidth is not positive.
    """
    _check(bandwidth)
    return encode_above(x, W_enc, b_enc, theta - bandwidth / 2, precision=precision, low_precision=low_precision)


def jumprelu_values(codes: Ragged, theta: Float32[Tensor, " n"]) -> Float32[Tensor, " nnz"]:
    """The values that are decoded: those above theta, and 0 for the rest of the window."""
    return codes.values.masked_fill(codes.values <= theta[codes.indices.long()], 0)


def jumprelu_gradients(
    codes: Ragged,
    grads: Float32[Tensor, " nnz"],
    theta: Float32[Tensor, " n"],
    bandwidth: float,
    l0_coefficient: float,
) -> JumpGradients:
    """Straight-through gradients of one batch, summed over its rows in their order: equal bits on every run.

    Args:
        codes: of `encode_jumprelu`, with the raw pre-activations.
        grads: gradient of the loss to every entry's decoded value, also of those at 0 (`sampled.code_gradients`).
        l0_coefficient: weight of the number of active latents in the summed loss.

    Raises:
        ValueError: bandwidth is not positive.
    """
    _check(bandwidth)
    run = kernel("jumprelu_gradients", theta.device, reference)
    return run(codes, grads, theta, bandwidth, l0_coefficient)


def reference(codes: Ragged, grads: Tensor, theta: Tensor, bandwidth: float, l0_coefficient: float) -> JumpGradients:
    """The specification of `jumprelu_gradients`, its sums in fp64."""
    columns = codes.indices.long()
    centre, half = theta[columns], bandwidth / 2
    inside = (codes.values > centre - half) & (codes.values < centre + half)
    terms = torch.where(inside, centre.double() * grads.double() + l0_coefficient, 0.0)
    sums = torch.zeros(len(theta), dtype=torch.float64, device=theta.device).index_add_(0, columns, terms)
    return JumpGradients(grads.masked_fill(codes.values <= centre, 0), (sums / -bandwidth).float())


def _check(bandwidth: float) -> None:
    if not bandwidth > 0:
        raise ValueError(f"bandwidth must be positive, got {bandwidth}")
