"""The dispatcher's choice for a shape, operation by operation, each with its reason."""

from __future__ import annotations

import torch

from .chunks import chunk_rows
from .dispatch import LATENTS_PER_CODE, Precision, choose, dense_is_faster


def explain(
    device: torch.device, *, d_in: int, n_latents: int, k: int, batch: int, precision: Precision = "auto"
) -> dict[str, str]:
    """One sentence each for backend, encode, topk, decode and update of a training step.

    Args:
        k: codes a row (the mean, where rows are ragged).
    """
    choice = choose(device, precision)
    rows = min(batch, chunk_rows(n_latents, device.type))
    dense = dense_is_faster(device, n_latents, k)
    ratio = f"{n_latents / k:.0f} latents a code, and dense products win below {LATENTS_PER_CODE.get(device.type, 0)}"
    adam = 24 + (2 if choice.encode == "bf16" else 0)
    return {
        "backend": f"{choice.step}: {choice.why}",
        "encode": f"{choice.encode} products of {rows} rows at a time, {4 * rows * n_latents / 2**20:.0f} MiB",
        "topk": _topk(choice.step, choice.encode, n_latents, k),
        "decode": f"{'dense products' if dense else 'gather of decoder rows'}: {ratio}",
        "update": (
            "gradients by dense products, then one pass over the latents"
            if dense
            else f"one pass over the latents, {adam} bytes a parameter: {2 * adam * n_latents * d_in / 2**20:.0f} MiB"
        ),
    }


def _topk(step: str, encode: str, n: int, k: int) -> str:
    if step == "triton":
        from .gpu.topk import plan

        planned = plan(n, k)
        return f"{planned.route}: {planned.why}"
    if step == "reference":
        return "a stable sort"
    if encode == "int8":
        return "int8 estimates screen, fp32 dot products of the survivors decide"
    return "maxima of groups of 32 columns bound the k-th largest, then the groups that reach it are searched"
