"""The plain forward of every architecture that formats exchange: what a conversion is checked against."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from ...lab.errors import InputError
from ..dictionary import Dictionary
from ..sae import SparseAutoencoder
from .portable import Portable

ROWS, SEED = 16, 0
TOLERANCE = 1e-4
"""Relative error of the median row. The median, because a near tie between two codes may fall either way."""


def codes(portable: Portable, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch n"]:
    """Dense codes from the formulas, without kernels."""
    t = portable.tensors
    plain = (x - t["b_dec"] if portable.centred else x) @ t["W_enc"].T
    kind = portable.fields.get("activation", portable.architecture)
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


def reference(portable: Portable, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch o"]:
    """The reconstruction (or the transcoder's output)."""
    out = codes(portable, x) @ portable.tensors["W_dec"] + portable.tensors["b_dec"]
    return out + x @ portable.tensors["W_skip"].T if "W_skip" in portable.tensors else out


def check(portable: Portable, dictionary: Dictionary, subject: str) -> None:
    """Refuse a conversion whose two sides give different outputs.

    Raises:
        InputError: they do; tells by how much.
    """
    x = probes(portable)
    with _in_fp32(dictionary):
        expected, found = reference(portable, x), dictionary(x.to(dictionary.b_dec.device)).cpu()
    error = ((found - expected).norm(dim=-1) / expected.norm(dim=-1).clamp_min(1e-9)).median()
    if not error <= TOLERANCE:
        raise InputError(
            f"{subject}: the converted dictionary differs by {float(error):.1e} (relative) from the file's"
        )


@contextmanager
def _in_fp32(dictionary: Dictionary) -> Iterator[None]:
    """Products in fp32 whatever the hardware prefers: bf16 ones differ by more than a conversion may."""
    if not isinstance(dictionary, SparseAutoencoder):
        yield
        return
    preferred, dictionary.precision = dictionary.precision, "fp32"
    try:
        yield
    finally:
        dictionary.precision = preferred


def probes(portable: Portable) -> Float[Tensor, "16 d"]:
    """Rows on which many latents fire and many do not."""
    t = portable.tensors
    noise = torch.randn(ROWS, portable.d_in, generator=torch.Generator().manual_seed(SEED))
    level = 1 + sum(float(t[name].abs().median()) for name in ("threshold", "b_enc") if name in t)
    x = noise * (level / t["W_enc"].norm(dim=-1).median().clamp_min(1e-9))
    return x + t["b_dec"] if portable.centred else x
