"""Sums over the tokens of a latent, shared by the update and the compact gradients.

A latent that fires on half a batch would keep one program busy long after the others are done. So a program walks the
first `PIECE` tokens of a list at most; further pieces of `PIECE` tokens are summed beforehand by programs of their
own, and their rows added in order. Order and grouping depend on the codes alone: the bits repeat.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..tuples import Residual
from .compile import Shape, Spec
from .launch import describe, launch
from .transpose import Lists, owners

PIECE = tl.constexpr(256)
"""Tokens that one program sums."""
WIDEST = 16384
"""Columns of a row that the registers of one program hold."""


@triton.jit
def walk(start, stop, tokens, factors, rows, D: tl.constexpr, PAD: tl.constexpr, TOKENS: tl.constexpr):
    """The sum [PAD] of factors times rows of the tokens in slots start .. stop."""
    columns = tl.arange(0, PAD)
    total = tl.zeros([PAD], tl.float32)
    for first in tl.range(start, stop, TOKENS, num_stages=3):  # pyright: ignore[reportGeneralTypeIssues]
        slots = first + tl.arange(0, TOKENS)
        there = slots < stop
        token = tl.load(tokens + slots, mask=there, other=0).to(tl.int64)
        factor = tl.load(factors + slots, mask=there, other=0.0)
        mask = there[:, None] & (columns < D)[None, :]
        tile = tl.load(rows + token[:, None] * D + columns[None, :], mask=mask, other=0.0).to(tl.float32)
        total += tl.sum(factor[:, None] * tile, 0)
    return total


@triton.jit
def latent_sum(
    latent, pointers, tokens, factors, rows, piece_ends, piece_rows,
    D: tl.constexpr, PAD: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """The sum [PAD] of `walk` over all tokens of one latent: the first piece here, later ones from memory."""
    start = tl.load(pointers + latent).to(tl.int32)
    stop = tl.load(pointers + latent + 1).to(tl.int32)
    total = walk(start, tl.minimum(stop, start + PIECE), tokens, factors, rows, D, PAD, TOKENS)
    if piece_ends is not None:
        columns = tl.arange(0, PAD)
        further = tl.maximum(stop - start - 1, 0) // PIECE
        first = tl.load(piece_ends + latent) - further  # int64
        for step in tl.range(0, further, num_stages=3):  # pyright: ignore[reportGeneralTypeIssues]
            total += tl.load(piece_rows + (first + step) * D + columns, mask=columns < D, other=0.0)
    return total


@triton.jit
def bias_sum(latent, pointers, dz):
    """The sum of dz over all tokens of one latent."""
    stop = tl.load(pointers + latent + 1).to(tl.int32)
    total = tl.zeros([PIECE], tl.float32)
    for first in range(tl.load(pointers + latent).to(tl.int32), stop, PIECE):
        slots = first + tl.arange(0, PIECE)
        total += tl.load(dz + slots, mask=slots < stop, other=0.0)
    return tl.sum(total, 0)


@triton.jit
def piece_kernel(
    pointers, tokens, factors, rows, piece_ends, piece_rows, owner, n,
    D: tl.constexpr, PAD: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """A program per piece after the first of any latent; owner [bound] is n past the last piece."""
    piece = tl.program_id(0)
    latent = tl.load(owner + piece)
    if latent < n:
        start = tl.load(pointers + latent).to(tl.int32)
        stop = tl.load(pointers + latent + 1).to(tl.int32)
        before = tl.load(piece_ends + latent).to(tl.int32) - (stop - start - 1) // PIECE
        start += (piece - before + 1) * PIECE
        total = walk(start, tl.minimum(stop, start + PIECE), tokens, factors, rows, D, PAD, TOKENS)
        columns = tl.arange(0, PAD)
        tl.store(piece_rows + piece.to(tl.int64) * D + columns, total, mask=columns < D)


class Sums(NamedTuple):
    """The tensors that sums of a latent read, in the order of the kernels' parameters.

    pointers, tokens: `Lists`. dz, z [nnz]: gradients of the codes and codes, in the order of the lists. piece_ends [n]:
    pieces after the first, up to and with each latent; then their rows [bound, d] of dz x and [bound, d_out] of z
    residual. The last three are None where no list can be longer than a piece.
    """

    pointers: Tensor
    tokens: Tensor
    dz: Tensor
    x: Tensor
    z: Tensor
    residual: Tensor
    piece_ends: Tensor | None = None
    piece_enc: Tensor | None = None
    piece_dec: Tensor | None = None


def prepare(lists: Lists, values: Tensor, out: Residual, x: Tensor) -> Sums:
    """Bring codes and gradients into list order and sum the pieces of heavy latents.

    Raises:
        ValueError: rows are wider than one program holds.
    """
    n, widest = len(lists.pointers) - 1, max(x.shape[1], out.residual.shape[1])
    if widest > WIDEST:
        raise ValueError(f"the latent-major kernels hold rows of at most {WIDEST} columns, got d = {widest}")
    encoder = (out.grads[lists.entries], x.contiguous())
    decoder = (values[lists.entries], out.residual.contiguous())
    bound = len(values) // PIECE.value
    if not bound:
        return Sums(lists.pointers, lists.tokens, *encoder, *decoder)
    ends = ((lists.fired - 1).clamp_min(0) // PIECE.value).cumsum(0)
    owner = owners(ends, torch.arange(bound, device=x.device))
    pieces = [torch.empty(bound, rows.shape[1], device=x.device) for _, rows in (encoder, decoder)]
    for factors_and_rows, summed in zip((encoder, decoder), pieces, strict=True):
        passed, d = (lists.pointers, lists.tokens, *factors_and_rows, ends, summed, owner, n), summed.shape[1]
        launch(piece_kernel, bound, passed, layout(d), warps(d))
    return Sums(lists.pointers, lists.tokens, *encoder, *decoder, ends, *pieces)


def layout(d: int) -> dict[str, int]:
    """Columns padded to a power of two (idle lanes cost no traffic), and tokens taken together: more of short rows."""
    padded = triton.next_power_of_2(d)
    return {"D": d, "PAD": padded, "TOKENS": min(max(2048 // padded, 1), 8)}


def warps(d: int) -> int:
    """Warps that share a row: 8 columns a thread up to 2,048 columns, then more."""
    padded = triton.next_power_of_2(d)
    return min(max(padded // 256, 1), 8 if padded <= 4096 else 16)


def specs(shape: Shape) -> list[Spec]:
    """The pieces of heavy latents, from fp32 and from bf16 rows."""
    return [
        describe(
            f"pieces of heavy latents, {kind} rows",
            piece_kernel,
            {
                "pointers": "*i64", "tokens": "*i32", "factors": "*fp32", "rows": f"*{kind}", "piece_ends": "*i64",
                "piece_rows": "*fp32", "owner": "*i32", "n": "i32",
            },
            layout(shape.d),
            warps(shape.d),
        )
        for kind in ("fp32", "bf16")
    ]  # fmt: skip
