"""Triton kernel of the JumpReLU gradients: a stable sort by latent, then one segment sum a latent. No atomics."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..tuples import JumpGradients, Ragged
from .compile import Shape, Spec

BLOCK = 128
"""Entries a program reads at once: a latent that fires in one row of 64 has 128 in a batch of 8,192."""


@triton.jit
def _theta_sums(order, pointers, values, grads, theta, to_theta, half, l0_coefficient, BLOCK: tl.constexpr):
    """to_theta[j] = -sum over the window of (theta * g + l0_coefficient) / bandwidth, one program a latent."""
    latent = tl.program_id(0)
    first = tl.load(pointers + latent)
    last = tl.load(pointers + latent + 1)
    centre = tl.load(theta + latent)
    sums = tl.zeros([BLOCK], tl.float32)
    for start in range(first, last, BLOCK):
        slots = start + tl.arange(0, BLOCK)
        inside = slots < last
        entries = tl.load(order + slots, mask=inside, other=0)
        value = tl.load(values + entries, mask=inside, other=0.0)
        grad = tl.load(grads + entries, mask=inside, other=0.0)
        inside = inside & (value > centre - half) & (value < centre + half)
        sums += tl.where(inside, centre * grad + l0_coefficient, 0.0)
    tl.store(to_theta + latent, tl.sum(sums) * (-0.5 / half))


def jumprelu_gradients(
    codes: Ragged, grads: Tensor, theta: Tensor, bandwidth: float, l0_coefficient: float
) -> JumpGradients:
    """`kernels.jumprelu.jumprelu_gradients` on a GPU."""
    n = len(theta)
    latents, order = codes.indices.sort(stable=True)
    pointers = torch.searchsorted(latents, torch.arange(n + 1, dtype=latents.dtype, device=latents.device))
    to_theta = torch.empty_like(theta)
    _theta_sums[(n,)](
        order, pointers, codes.values, grads.contiguous(), theta, to_theta, bandwidth / 2, float(l0_coefficient),
        BLOCK=BLOCK, num_warps=1,  # pyright: ignore[reportCallIssue]
    )  # fmt: skip
    return JumpGradients(grads.masked_fill(codes.values <= theta[codes.indices.long()], 0), to_theta)


def specs(shape: Shape) -> list[Spec]:
    """The segment sum; nothing in it depends on the shape."""
    signature = {
        "order": "*i64", "pointers": "*i64", "values": "*fp32", "grads": "*fp32", "theta": "*fp32",
        "to_theta": "*fp32", "half": "fp32", "l0_coefficient": "fp32", "BLOCK": "constexpr",
    }  # fmt: skip
    return [Spec("JumpReLU threshold sums", _theta_sums, signature, {"BLOCK": BLOCK}, warps=1)]
