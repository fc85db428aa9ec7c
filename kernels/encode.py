"""Encode and select in row chunks: the k largest of x @ W_enc.T + b_enc without a batch x latents tensor.

Memory is one chunk of pre-activations, whatever the batch. Three precisions propose candidates:

    fp32   plain products
    bf16   bf16 products of fp32 weights, summed in fp32 (hardware with fast bf16)
    int8   int8 products screen, fp32 dot products decide: exact fp32 codes (`cpu.screen`, `cpu.encode`)
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from .chunks import chunk_buffer, chunk_rows
from .dispatch import backend
from .operators import operator
from .topk import reference as select
from .topk import topk
from .tuples import Codes, LowPrecisionCopy


def low_precision_copy(
    W_enc: Tensor, W_dec: Tensor, precision: Literal["fp32", "bf16", "int8"]
) -> LowPrecisionCopy | None:
    """The copies that `precision` reads; None for fp32. The compiled CPU decode reads fp32 rows: no copy for it."""
    if precision == "int8":
        return quantise(W_enc)
    if precision == "fp32":
        return None
    return LowPrecisionCopy(W_enc.bfloat16(), W_dec=None if backend(W_dec.device) == "compiled" else W_dec.bfloat16())


def quantise(rows: Float32[Tensor, "n d"]) -> LowPrecisionCopy:
    """Symmetric int8 rows with one scale a row."""
    from .cpu.encode import quantise as run

    return run(rows)


def encode_topk(
    x: Float[Tensor, "batch d"],
    W_enc: Float32[Tensor, "n d"],
    b_enc: Float32[Tensor, " n"],
    k: int,
    *,
    precision: Literal["fp32", "bf16", "int8"] = "fp32",
    low_precision: LowPrecisionCopy | None = None,
    mask: Bool[Tensor, " n"] | None = None,
) -> Codes:
    """The k largest pre-activations of each row, ascending by column; no relu is applied.

    Args:
        x: rows in the dictionary's input space, already centred.
        low_precision: the copy of the weights that `precision` reads, where the caller keeps one; made here otherwise.
        mask: latents that may be kept.

    Returns:
        values [batch, k] fp32 and columns [batch, k] int32.
    """
    copies = (None, None, None) if low_precision is None else low_precision[:3]
    return Codes(*_encode(x, W_enc, b_enc, k, precision, *copies, mask))


@operator(
    "encode_topk(Tensor x, Tensor W_enc, Tensor b_enc, int k, str precision, Tensor? s_enc, Tensor? s_scale,"
    " Tensor? s_norm, Tensor? mask) -> (Tensor, Tensor)",
    fake=lambda x, W_enc, b_enc, k, *_: (
        x.new_empty(len(x), k, dtype=torch.float32),
        x.new_empty(len(x), k, dtype=torch.int32),
    ),
)
def _encode(x, W_enc, b_enc, k, precision, s_enc, s_scale, s_norm, mask):
    """`encode_topk` with its arguments laid out flat."""
    x = x.float().contiguous()
    low_precision = None if s_enc is None else LowPrecisionCopy(s_enc, s_scale, s_norm)
    if precision == "int8" and mask is None:
        from .cpu.screen import encode_topk as screened

        return tuple(screened(x, W_enc, b_enc, k, low_precision or quantise(W_enc)))
    weight = W_enc
    if precision == "bf16":
        x, weight = x.bfloat16(), W_enc.bfloat16() if low_precision is None else low_precision.W_enc
    out = Codes(x.new_empty(len(x), k, dtype=torch.float32), x.new_empty(len(x), k, dtype=torch.int32))
    chunk = max(1, min(len(x), chunk_rows(len(W_enc), x.device.type)))
    held = chunk_buffer(chunk, len(W_enc), torch.float32, x.device)
    for start in range(0, len(x), chunk):
        part = x[start : start + chunk]
        pre = product(part, weight, held[: len(part)])
        for whole, piece in zip(out, topk(pre, k, bias=b_enc, mask=mask), strict=True):
            whole[start : start + chunk] = piece
    return tuple(out)


def product(x: Tensor, weight: Tensor, out: Float32[Tensor, "rows n"]) -> Float32[Tensor, "rows n"]:
    """x @ weight.T summed in fp32, written to `out`."""
    if x.dtype == torch.float32:
        return torch.mm(x, weight.T, out=out)
    if x.device.type == "cuda":
        return torch.mm(x, weight.T, out_dtype=torch.float32, out=out)
    return out.copy_(x @ weight.T)


def reference(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> Codes:
    """The whole pre-activation matrix, then a stable sort."""
    return select(x.float() @ W_enc.T, k, b_enc)
