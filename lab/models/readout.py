"""From the residual stream to logits: the final norm and the head."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import InputError
from .wiring import Wiring


def unembed(wiring: Wiring, resid: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows vocab"]:
    """Logits of residual vectors, in the model's dtype."""
    norm, head = _parts(wiring)
    weight = next(head.parameters())
    logits = head(norm(resid.to(weight.device, weight.dtype)))
    cap = wiring.softcap
    return logits if cap is None else cap * torch.tanh(logits / cap)


@torch.no_grad()
def logit_directions(wiring: Wiring, W_dec: Float[Tensor, "n d_model"]) -> Float[Tensor, "n vocab"]:
    """The linear part of `unembed`: the norm's gain and centring folded in, its scale left out."""
    norm, head = _parts(wiring)
    weight = next(head.parameters())
    gain, centred = norm_gain(norm, W_dec.shape[-1], weight)
    rows = W_dec.to(weight.device, torch.float32)
    rows = (rows - rows.mean(-1, keepdim=True) if centred else rows) * gain
    origin = head(torch.zeros_like(rows[:1], dtype=weight.dtype))
    return (head(rows.to(weight.dtype)) - origin).to(W_dec.dtype)


@torch.no_grad()
def norm_gain(norm: nn.Module, d: int, like: Tensor) -> tuple[Float[Tensor, " d"], bool]:
    """The factors a norm multiplies its normalised input by (fp32), and whether it centres that input.

    Read off the norm's own output, so that `weight`, `1 + weight` and norms without weights need no telling
    apart.
    """
    probe = torch.full((d,), 1024.0, device=like.device)
    flat = probe.clone()
    probe[1::2] = -1024.0
    if d % 2:  # keeps the mean at zero
        probe[-3:] = torch.tensor([1024.0, 1024.0, -2048.0], device=like.device)
    at_zero, at_flat, at_probe = (norm(x[None].to(like.dtype))[0].float() for x in (0 * probe, flat, probe))
    gain = (at_probe - at_zero) * probe.square().mean().sqrt() / probe
    return gain, bool((at_flat - at_zero).norm() < 1e-2 * gain.norm())


def _parts(wiring: Wiring) -> tuple[nn.Module, nn.Module]:
    if wiring.readout is None:
        kind = type(wiring.module).__name__
        raise InputError(f"{kind} has no unembedding: logits of directions need a language model with a linear head")
    return wiring.readout
