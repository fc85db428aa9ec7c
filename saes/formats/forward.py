"""The plain forward of every architecture that formats exchange: what a conversion is checked against."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from ...kernels.dispatch import Precision
from ...lab.errors import InputError
from ..architectures.sae import SparseAutoencoder
from ..dictionary import Dictionary
from .layered import Layered
from .portable import Portable

ROWS, SEED = 16, 0
TOLERANCE = 1e-4
"""Relative error of the median row. The median, because a near tie between two codes may fall either way."""


def codes(portable: Portable, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch n"]:
    """Dense codes from the formulas, without kernels."""
    if portable.architecture == "mp":
        return _pursued(portable, x)
    t, kind = portable.tensors, portable.architecture
    plain = (x - t["b_dec"] if portable.centred else x) @ t["W_enc"].T
    if kind == "gated":
        return (plain + t["b_enc"] > 0) * torch.relu(t["r_mag"].exp() * plain + t["b_mag"])
    pre = plain + t["b_enc"]
    if kind == "abstopk":
        return torch.zeros_like(pre).scatter(
            -1, (best := pre.abs().topk(portable.fields["k"]).indices), pre.gather(-1, best)
        )
    if kind == "groupmax":
        groups = pre.reshape(len(pre), portable.fields["k"], -1)
        return torch.where(groups == groups.amax(-1, keepdim=True), groups.relu(), 0).reshape(pre.shape)
    if kind == "topk":
        best = pre.topk(portable.fields["k"])
        return torch.zeros_like(pre).scatter(-1, best.indices, best.values.relu())
    return pre.relu() * (pre > t.get("threshold", torch.zeros(())))


def _pursued(portable: Portable, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch n"]:
    W_dec, b_dec = portable.tensors["W_dec"], portable.tensors["b_dec"]
    threshold, once = portable.fields.get("residual_threshold", 0.0), portable.fields.get("once", False)
    left = x - b_dec if portable.centred else x
    dense, on = x.new_zeros(len(x), len(W_dec)), x.new_ones(len(x), 1)
    bound = portable.fields.get("tolerance", 0.0) * left.square().sum(1, keepdim=True)
    for _ in range(portable.fields["k"]):
        value, latent = (left @ W_dec.T).relu().max(1, keepdim=True)
        on = on * (left.square().sum(1, keepdim=True) > bound)
        again = dense.gather(1, latent) != 0
        dense, left = dense.scatter_add(1, latent, on * value), left - on * value * W_dec[latent[:, 0]]
        on = on * ~(again & torch.tensor(once)) * (left.norm(dim=1, keepdim=True) >= threshold)
    return dense


def reference(portable: Portable, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch o"]:
    """The reconstruction (or the transcoder's output)."""
    if isinstance(portable, Layered):
        return _layered(portable, x)
    out = codes(portable, x) @ portable.tensors["W_dec"] + portable.tensors["b_dec"]
    return out + x @ portable.tensors["W_skip"].T if "W_skip" in portable.tensors else out


def _layered(portable: Layered, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch o"]:
    rows = x.chunk(len(portable.layers), 1)
    parts = [reference(layer, own) for layer, own in zip(portable.layers, rows, strict=True)]
    width = parts[0].shape[1]
    out = torch.stack([torch.nn.functional.pad(part, (width - part.shape[1], 0)) for part in parts]).sum(0)
    skips = portable.tensors.get("W_skip", ())
    return out + torch.cat([own @ skip.T for own, skip in zip(rows, skips, strict=True)], 1) if len(skips) else out


def check(portable: Portable, dictionary: Dictionary, subject: str) -> None:
    """Refuse a conversion whose two sides give different outputs.

    Raises:
        InputError: they do; tells by how much.
    """
    x = probes(portable)
    with _in_fp32(dictionary):
        expected, given = reference(portable, x), dictionary(x.to(dictionary.b_dec.device)).cpu()
    error = ((given - expected).norm(dim=-1) / expected.norm(dim=-1).clamp_min(1e-9)).median()
    if not error <= TOLERANCE:
        raise InputError(
            f"{subject}: the converted dictionary differs by {float(error):.1e} (relative) from the file's"
        )


@contextmanager
def _in_fp32(dictionary: Dictionary) -> Iterator[None]:
    """Products in fp32 whatever the hardware prefers: bf16 ones differ by more than a conversion may."""
    parts = [part for part in dictionary.modules() if isinstance(part, SparseAutoencoder)]
    preferred: list[Precision] = [part.precision for part in parts]
    fp32: list[Precision] = ["fp32" for _ in parts]
    try:
        _set(parts, fp32)
        yield
    finally:
        _set(parts, preferred)


def _set(parts: list[SparseAutoencoder], precisions: Sequence[Precision]) -> None:
    for part, precision in zip(parts, precisions, strict=True):
        part.precision = precision


def probes(portable: Portable) -> Float[Tensor, "16 d"]:
    """Rows on which many latents fire and many do not; other rows in every layer."""
    if isinstance(portable, Layered):
        return torch.cat([probes(layer).roll(number, 0) for number, layer in enumerate(portable.layers)], 1)
    t = portable.tensors
    noise = torch.randn(ROWS, portable.d_in, generator=torch.Generator().manual_seed(SEED))
    rows = t.get("W_enc", t["W_dec"])
    level = 1 + sum(float(t[name].abs().median()) for name in ("threshold", "b_enc") if name in t)
    x = noise * (level / rows.norm(dim=-1).median().clamp_min(1e-9))
    return x + t["b_dec"] if portable.centred else x
