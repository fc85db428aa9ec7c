"""Encode and select in row chunks: the k largest of x @ W_enc.T + b_enc without a batch x latents tensor.

Memory is one chunk of pre-activations, whatever the batch. Three precisions propose candidates:

    fp32   plain products
    bf16   bf16 products of fp32 weights (hardware with fast bf16)
    int8   int8 products screen, fp32 dot products decide: exact fp32 codes (`cpu_encode`)
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Float32, Int8
from torch import Tensor

from . import cpu_encode
from .threads import run_rows
from .topk import Codes, topk

CHUNK_BYTES = 32 << 20
"""Pre-activations held at once. 32 MiB stays in a last-level cache; 16-75 MiB measured alike."""


class Shadow(NamedTuple):
    """Low-precision copy of the encoder that the screen reads: rows, one scale and one norm a latent."""

    rows: Int8[Tensor, "n d"]
    scale: Float32[Tensor, " n"]
    norm: Float32[Tensor, " n"]


def quantise(rows: Float32[Tensor, "n d"]) -> Shadow:
    """Symmetric int8 rows with one scale a row."""
    shadow = Shadow(torch.empty(rows.shape, dtype=torch.int8), torch.empty(len(rows)), torch.empty(len(rows)))
    run_rows(cpu_encode.quantise_rows, len(rows), rows.numpy(), *(part.numpy() for part in shadow))
    return shadow


def chunk_rows(n_latents: int) -> int:
    """Rows per chunk of pre-activations: a multiple of 64 within `CHUNK_BYTES`."""
    return max(64, CHUNK_BYTES // (4 * n_latents) // 64 * 64)


def encode_topk(
    x: Float[Tensor, "batch d"],
    W_enc: Float32[Tensor, "n d"],
    b_enc: Float32[Tensor, " n"],
    k: int,
    *,
    precision: Literal["fp32", "bf16", "int8"] = "fp32",
    shadow: Shadow | None = None,
) -> Codes:
    """The k largest pre-activations of each row, ascending by column; no relu is applied.

    Args:
        x: rows in the dictionary's input space, already centred.
        shadow: the int8 copy of `W_enc` where the caller keeps one; made here otherwise.

    Returns:
        values [batch, k] fp32 and columns [batch, k] int32.
    """
    x = x.float().contiguous()
    if precision == "int8":
        return _screened(x, W_enc, b_enc, k, shadow or quantise(W_enc))
    if precision == "bf16":
        weight = W_enc.bfloat16()
        parts = [topk((part.bfloat16() @ weight.T).float() + b_enc, k) for part in x.split(chunk_rows(len(W_enc)))]
    else:
        parts = [topk(torch.addmm(b_enc, part, W_enc.T), k) for part in x.split(chunk_rows(len(W_enc)))]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def _screened(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, shadow: Shadow) -> Codes:
    batch, n = len(x), len(W_enc)
    values, columns = torch.zeros(batch, k), torch.zeros(batch, k, dtype=torch.int32)
    quantised = quantise(x)
    rescored = torch.zeros(batch, dtype=torch.int32)
    chunk = max(1, min(chunk_rows(n), batch))
    products = torch.empty(chunk, n, dtype=torch.int32)
    for start in range(0, batch, chunk):
        rows = slice(start, min(start + chunk, batch))
        held = products[: rows.stop - rows.start]
        torch._int_mm(quantised.rows[rows], shadow.rows.T, out=held)
        run_rows(
            cpu_encode.screen_rows,
            len(held),
            held.numpy(),
            x[rows].numpy(),
            quantised.scale[rows].numpy(),
            quantised.norm[rows].numpy(),
            W_enc.numpy(),
            b_enc.numpy(),
            shadow.scale.numpy(),
            shadow.norm.numpy(),
            k,
            values[rows].numpy(),
            columns[rows].numpy(),
            rescored[rows].numpy(),
        )
    return values, columns


def reference(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> Codes:
    """The whole pre-activation matrix, then a stable sort."""
    from .topk import reference as select

    return select(x.float() @ W_enc.T + b_enc, k)
