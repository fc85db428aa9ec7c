"""Encode and keep every pre-activation above its latent's bound, in row chunks: any count a row.

Memory is one chunk of pre-activations and the codes. A NaN pre-activation is kept, so that it is seen downstream.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from .chunks import chunk_buffer, chunk_rows
from .csr import concatenate
from .dispatch import kernel
from .encode import product, quantise
from .operators import operator
from .tuples import LowPrecisionCopy, Ragged


def encode_above(
    x: Float[Tensor, "batch d"],
    W_enc: Float32[Tensor, "n d"],
    b_enc: Float32[Tensor, " n"],
    bound: Float32[Tensor, " n"] | Float32[Tensor, ""],
    *,
    precision: Literal["fp32", "bf16", "int8"] = "fp32",
    low_precision: LowPrecisionCopy | None = None,
) -> Ragged:
    """Every pre-activation strictly above its latent's bound; no relu is applied.

    The output's size depends on the data: on a GPU the host waits once a chunk.

    Args:
        x: rows in the dictionary's input space, already centred.
        bound: one a latent, or one for all.
        precision: int8 (CPU only) screens with int8 products; the values are exact and an entry is missed only
            at a rounding error of six deviations.
        low_precision: the copy of the weights that `precision` reads, where the caller keeps one; made here otherwise.
    """
    x = x.float().contiguous()
    bound = bound.float().expand(len(W_enc)).contiguous()
    if precision == "int8":
        from .cpu.threshold import encode_above as screened

        return screened(x, W_enc, b_enc, bound, low_precision or quantise(W_enc))
    weight = W_enc
    if precision == "bf16":
        x, weight = x.bfloat16(), W_enc.bfloat16() if low_precision is None else low_precision.W_enc
    chunk = max(1, min(len(x), chunk_rows(len(W_enc), x.device.type)))
    held = chunk_buffer(chunk, len(W_enc), torch.float32, x.device)
    return concatenate([above(product(part, weight, held[: len(part)]), b_enc, bound) for part in x.split(chunk)])


def encode_threshold(
    x: Float[Tensor, "batch d"],
    W_enc: Float32[Tensor, "n d"],
    b_enc: Float32[Tensor, " n"],
    threshold: Float32[Tensor, ""],
) -> Ragged:
    """All pre-activations above max(threshold, 0): what BatchTopK keeps at inference."""
    return encode_above(x, W_enc, b_enc, threshold.clamp_min(0))


def above(pre: Float32[Tensor, "rows n"], bias: Float32[Tensor, " n"], bound: Float32[Tensor, " n"]) -> Ragged:
    """The entries of `pre + bias` (added in fp32) that exceed their column's bound or are NaN."""
    return Ragged(*_above(pre, bias, bound))


def _some(pre: Tensor, bias: Tensor, bound: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    size = torch.library.get_ctx().new_dynamic_size()
    indptr = pre.new_empty(len(pre) + 1, dtype=torch.int64)
    return indptr, pre.new_empty(size, dtype=torch.int32), pre.new_empty(size)


@operator("above(Tensor pre, Tensor bias, Tensor bound) -> (Tensor, Tensor, Tensor)", fake=_some)
def _above(pre, bias, bound):
    run = kernel("above", pre.device, reference)
    return tuple(run(pre.contiguous(), bias, bound))


def reference(pre: Tensor, bias: Tensor, bound: Tensor) -> Ragged:
    """Masks of the size of `pre`: the specification of `above`."""
    pre = pre + bias
    keep = ~(pre <= bound)
    counts = keep.sum(1)
    columns = torch.arange(pre.shape[1], dtype=torch.int32, device=pre.device).expand_as(pre)
    return Ragged(torch.cat([counts.new_zeros(1), counts.cumsum(0)]), columns[keep], pre[keep])
