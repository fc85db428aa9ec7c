"""Triton sparse decode: plain, and with residual and code gradient.

The columns of a row are taken in chunks, so that any width d runs at full use without padding. Where every row holds
the same small number of codes, the tile of decoder rows that gives a chunk of x_hat is still in registers when that
chunk's residual is known, and gives its share of the code gradients too: one gather serves both. Ragged rows take a
second kernel for the gradients.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..tuples import Residual
from .compile import Shape, Spec
from .launch import describe, launch

BLOCK = 64
"""Codes taken together in a ragged row."""
TILE = 8192
"""Entries of decoder rows held at once: 64 a thread in four warps."""
WIDEST = 256
"""Rows of more codes than this count as ragged."""


@triton.jit
def fused_kernel(
    indptr, indices, values, W_dec, b_dec, x, residual, squares, grads,
    D: tl.constexpr, CODES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A program per row of at most CODES codes: residual, its squared norm and the code gradients."""
    row = tl.program_id(0).to(tl.int64)
    start = tl.load(indptr + row)
    slots = tl.arange(0, CODES)
    there = slots < tl.load(indptr + row + 1) - start
    z = tl.load(values + start + slots, mask=there, other=0.0)
    latents = tl.load(indices + start + slots, mask=there, other=0).to(tl.int64)
    square = tl.zeros([COLUMNS], tl.float32)
    dz = tl.zeros([CODES], tl.float32)
    for first in tl.range(0, D, COLUMNS, num_stages=3):  # pyright: ignore[reportGeneralTypeIssues]
        columns = first + tl.arange(0, COLUMNS)
        inside = columns < D
        tile = tl.load(
            W_dec + latents[:, None] * D + columns[None, :], mask=(z != 0)[:, None] & inside[None, :], other=0.0
        ).to(tl.float32)
        error = tl.sum(z[:, None] * tile, 0) + tl.load(b_dec + columns, mask=inside, other=0.0)
        error -= tl.load(x + row * D + columns, mask=inside, other=0.0).to(tl.float32)
        tl.store(residual + row * D + columns, error, mask=inside)
        square += error * error
        dz += tl.sum(tile * error[None, :], 1)
    tl.store(squares + row, tl.sum(square, 0))
    tl.store(grads + start + slots, tl.where(z != 0, dz, 0.0), mask=there)


@triton.jit
def ragged_kernel(
    indptr, indices, values, W_dec, b_dec, x, out, squares,
    D: tl.constexpr, CODES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A program per row: out = x_hat, or with x its residual, and the squared norm of that."""
    row = tl.program_id(0).to(tl.int64)
    start, stop = tl.load(indptr + row), tl.load(indptr + row + 1)
    square = tl.zeros([COLUMNS], tl.float32)
    for first in range(0, D, COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        inside = columns < D
        total = tl.load(b_dec + columns, mask=inside, other=0.0)
        for block in tl.range(start, stop, CODES, num_stages=3):  # pyright: ignore[reportGeneralTypeIssues]
            slots = block + tl.arange(0, CODES)
            z = tl.load(values + slots, mask=slots < stop, other=0.0)
            latents = tl.load(indices + slots, mask=slots < stop, other=0).to(tl.int64)
            tile = tl.load(
                W_dec + latents[:, None] * D + columns[None, :], mask=(z != 0)[:, None] & inside[None, :], other=0.0
            ).to(tl.float32)
            total += tl.sum(z[:, None] * tile, 0)
        if x is not None:
            total -= tl.load(x + row * D + columns, mask=inside, other=0.0).to(tl.float32)
            square += total * total
        tl.store(out + row * D + columns, total, mask=inside)
    if squares is not None:
        tl.store(squares + row, tl.sum(square, 0))


@triton.jit
def code_gradients_kernel(
    indptr, indices, values, W_dec, residual, grads,
    D: tl.constexpr, CODES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A program per row: W_dec[latent] . residual for each of its codes, 0 for those at zero."""
    row = tl.program_id(0).to(tl.int64)
    start, stop = tl.load(indptr + row), tl.load(indptr + row + 1)
    for block in range(start, stop, CODES):
        slots = block + tl.arange(0, CODES)
        z = tl.load(values + slots, mask=slots < stop, other=0.0)
        latents = tl.load(indices + slots, mask=slots < stop, other=0).to(tl.int64)
        dz = tl.zeros([CODES], tl.float32)
        for first in tl.range(0, D, COLUMNS, num_stages=3):  # pyright: ignore[reportGeneralTypeIssues]
            columns = first + tl.arange(0, COLUMNS)
            inside = columns < D
            tile = tl.load(
                W_dec + latents[:, None] * D + columns[None, :], mask=(z != 0)[:, None] & inside[None, :], other=0.0
            ).to(tl.float32)
            error = tl.load(residual + row * D + columns, mask=inside, other=0.0).to(tl.float32)
            dz += tl.sum(tile * error[None, :], 1)
        tl.store(grads + slots, dz, mask=slots < stop)


def blocks(d: int, codes: int) -> dict[str, int]:
    """Tile of a gather: `codes` padded to a power of two, and as many columns as `TILE` allows, up to 128.

    A power of two that divides d leaves no idle lanes; where only small ones do, a masked tail costs less.
    """
    padded = max(triton.next_power_of_2(codes), 2)
    most = min(128, TILE // padded)
    divisor = min(d & -d, most)
    return {
        "D": d,
        "CODES": padded,
        "COLUMNS": divisor if 2 * divisor >= most else min(most, triton.next_power_of_2(d)),
    }


def warps(tile: dict[str, int]) -> int:
    """Warps for a tile: up to 64 of its entries a thread."""
    return max(1, tile["CODES"] * tile["COLUMNS"] // 2048)


def decode(indptr: Tensor, indices: Tensor, values: Tensor, W_dec: Tensor, b_dec: Tensor) -> Tensor:
    """`kernels.decode.decode` on a GPU."""
    batch, d = len(indptr) - 1, W_dec.shape[1]
    out = torch.empty(batch, d, device=W_dec.device)
    tile = blocks(d, BLOCK)
    passed = (indptr, indices, values, W_dec.contiguous(), b_dec, None, out, None)
    launch(ragged_kernel, batch, passed, tile, warps(tile))
    return out


def decode_residual(
    indptr: Tensor, indices: Tensor, values: Tensor, W_dec: Tensor, b_dec: Tensor, x: Tensor, width: int | None = None
) -> Residual:
    """`kernels.decode.decode_residual` on a GPU.

    The residual takes x's dtype: with x in bf16 the update gathers half the bytes. Norms and gradients are fp32, and
    with `width` they are taken before that rounding.

    Args:
        width: the most codes a row holds; without it, or above `WIDEST`, decoder rows are gathered twice.
    """
    batch, d = x.shape
    W_dec, x = W_dec.contiguous(), x.contiguous()
    out = Residual(torch.empty_like(x), torch.empty(batch, device=x.device), torch.empty(len(values), device=x.device))
    codes = BLOCK if width is None or width > WIDEST else width
    tile = blocks(d, codes)
    passed = (indptr, indices, values, W_dec, b_dec, x)
    if codes == width:
        launch(fused_kernel, batch, (*passed, *out), tile, warps(tile))
    else:
        launch(ragged_kernel, batch, (*passed, *out[:2]), tile, warps(tile))
        launch(code_gradients_kernel, batch, (*passed[:4], out.residual, out.grads), tile, warps(tile))
    return out


READ = {"indptr": "*i64", "indices": "*i32", "values": "*fp32"}
ROWS = {"b_dec": "*fp32", "x": "*fp32"}


def specs(shape: Shape) -> list[Spec]:
    """Every kernel of this file at a shape: fixed and ragged, decoder rows in bf16 and in fp32."""
    described = []
    tile, ragged = blocks(shape.d, shape.k), blocks(shape.d, BLOCK)
    for kind in ("bf16", "fp32"):
        read = {**READ, "W_dec": f"*{kind}"}
        written = {"squares": "*fp32", "grads": "*fp32"}
        every = {
            f"decode_residual, fixed width, {kind}": (
                fused_kernel, {**read, **ROWS, "residual": "*fp32", **written}, tile),
            f"decode_residual, ragged, {kind}": (
                ragged_kernel, {**read, **ROWS, "out": "*fp32", "squares": "*fp32"}, ragged),
            f"code gradients, ragged, {kind}": (
                code_gradients_kernel, {**read, "residual": "*fp32", "grads": "*fp32"}, ragged),
            f"decode, {kind}": (
                ragged_kernel, {**read, "b_dec": "*fp32", "x": None, "out": "*fp32", "squares": None}, ragged),
        }  # fmt: skip
        described += [
            describe(label, kernel, passed, size, warps(size)) for label, (kernel, passed, size) in every.items()
        ]
    return described
