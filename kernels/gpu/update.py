"""Triton latent-major update: gradients, Adam, projection, unit norm and low-precision copies in one pass.

A fixed number of programs share the latents, each taking every so-manyth: neighbours in a dictionary sorted by
frequency then land on different programs. A row of both gradients lives in registers and never reaches memory.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..tuples import Adam, LowPrecisionCopy, Moments, Residual, RowGradients, Updated, Weights
from .compile import Shape, Spec
from .launch import describe, launch
from .pieces import bias_sum, latent_sum, layout, prepare, warps
from .transpose import owners, transpose

PROGRAMS = 4096
"""Programs that share the latents: over ten waves on 132 processors, and few enough to add up a row of each."""


@triton.jit
def decayed(beta, gap):
    """beta^gap, rounded once: powers in fp32 would bias the moments of a latent that fires at every step."""
    return tl.exp2(gap.to(tl.float64) * tl.log2(beta.to(tl.float64))).to(tl.float32)


@triton.jit
def complement(beta):
    """1 - beta, rounded once: 0.999 rounded to fp32 beforehand would cost five digits."""
    return (1.0 - beta.to(tl.float64)).to(tl.float32)


@triton.jit
def adam_step(p, grad, first, second, start, columns, inside, scalars, keep1, keep2):
    """The entries p after an Adam step; their moments at start + columns are updated in place.

    The scalars (fp32 or fp64) are read here, from cache: kept in registers they would crowd out the rows.
    """
    v = keep2 * tl.load(second + start + columns, mask=inside, other=1.0, eviction_policy="evict_first")
    v += complement(tl.load(scalars + 2)) * grad * grad
    tl.store(second + start + columns, v, mask=inside)
    m = complement(tl.load(scalars + 1)) * grad
    if first is not None:
        m += keep1 * tl.load(first + start + columns, mask=inside, other=0.0, eviction_policy="evict_first")
        tl.store(first + start + columns, m, mask=inside)
    rate = tl.load(scalars).to(tl.float32) / tl.load(scalars + 3).to(tl.float32)
    root = 1.0 / tl.sqrt(tl.load(scalars + 4).to(tl.float32))
    return p - rate * m / (tl.sqrt(v) * root + tl.load(scalars + 5).to(tl.float32))


@triton.jit
def update_kernel(
    pointers, tokens, dz, x, z, residual, piece_ends, piece_enc, piece_dec,
    extra_place, extra_enc, extra_dec, extra_bias, latents, n_latents, scale, scalars,
    W_enc, W_dec, b_enc, first_enc, first_dec, first_bias, second_enc, second_dec, second_bias, touched,
    copy_enc, copy_dec, to_input, n, D: tl.constexpr, PAD: tl.constexpr, TOKENS: tl.constexpr,
    D_OUT: tl.constexpr, PAD_OUT: tl.constexpr, TOKENS_OUT: tl.constexpr,
):  # fmt: skip
    """Every so-manyth latent of all n, or of the first n_latents[0] of `latents`. Decoder rows are D_OUT wide.

    to_input [programs, d], zeros before: each program's sum of bias gradient times encoder row from before the update.
    It is added to in memory, which stays in cache: in registers it would take the room of a second block of warps.
    """
    columns = tl.arange(0, PAD)
    inside = columns < D
    offset = to_input + tl.program_id(0).to(tl.int64) * D + columns
    stop = n
    if latents is not None:
        stop = tl.load(n_latents).to(tl.int32)
    for place in range(tl.program_id(0), stop, tl.num_programs(0)):
        latent = place
        if latents is not None:
            latent = tl.load(latents + place)
        start = latent.to(tl.int64) * D  # pyright: ignore[reportAttributeAccessIssue]
        bias = tl.load(scale) * bias_sum(latent, pointers, dz)
        grad = tl.load(scale) * latent_sum(latent, pointers, tokens, dz, x, piece_ends, piece_enc, D, PAD, TOKENS)
        if extra_place is not None:
            extra = tl.load(extra_place + latent)
            if extra >= 0:
                bias += tl.load(extra_bias + extra)
                grad += tl.load(extra_enc + extra.to(tl.int64) * D + columns, mask=inside, other=0.0)
        keep1, keep2 = tl.load(scalars + 1).to(tl.float32), tl.load(scalars + 2).to(tl.float32)
        if touched is not None:
            gap = tl.load(scalars + 6).to(tl.int32) - tl.load(touched + latent)
            keep2 = decayed(tl.load(scalars + 2), gap)
            if first_enc is not None:
                keep1 = decayed(tl.load(scalars + 1), gap)
        b = adam_step(
            tl.load(b_enc + latent), bias, first_bias, second_bias, latent, 0, latent < n,
            scalars, keep1, keep2,
        )  # fmt: skip
        tl.store(b_enc + latent, b)
        w = tl.load(W_enc + start + columns, mask=inside, other=0.0)
        if bias != 0:
            tl.store(offset, tl.load(offset, mask=inside, other=0.0) + bias * w, mask=inside)
        w = adam_step(w, grad, first_enc, second_enc, start, columns, inside, scalars, keep1, keep2)
        tl.store(W_enc + start + columns, w, mask=inside)
        if copy_enc is not None:
            tl.store(copy_enc + start + columns, w.to(copy_enc.dtype.element_ty), mask=inside)

        columns_out = tl.arange(0, PAD_OUT)
        inside_out = columns_out < D_OUT
        start_out = latent.to(tl.int64) * D_OUT  # pyright: ignore[reportAttributeAccessIssue]
        grad_out = tl.load(scale) * latent_sum(
            latent, pointers, tokens, z, residual, piece_ends, piece_dec, D_OUT, PAD_OUT, TOKENS_OUT
        )
        if extra_place is not None:
            extra = tl.load(extra_place + latent)
            if extra >= 0:
                grad_out += tl.load(extra_dec + extra.to(tl.int64) * D_OUT + columns_out, mask=inside_out, other=0.0)
        row = tl.load(W_dec + start_out + columns_out, mask=inside_out, other=0.0)
        grad_out -= tl.sum(grad_out * row, 0) * row
        row = adam_step(row, grad_out, first_dec, second_dec, start_out, columns_out, inside_out, scalars, keep1, keep2)
        row *= 1.0 / tl.maximum(tl.sqrt(tl.sum(row * row, 0)), 1e-12)
        tl.store(W_dec + start_out + columns_out, row, mask=inside_out)
        if copy_dec is not None:
            tl.store(copy_dec + start_out + columns_out, row.to(copy_dec.dtype.element_ty), mask=inside_out)


@triton.jit
def gradients_kernel(
    pointers, tokens, dz, x, z, residual, piece_ends, piece_enc, piece_dec,
    latents, scale, grad_enc, grad_dec, grad_bias, D: tl.constexpr, PAD: tl.constexpr, TOKENS: tl.constexpr,
    D_OUT: tl.constexpr, PAD_OUT: tl.constexpr, TOKENS_OUT: tl.constexpr,
):  # fmt: skip
    """A program per entry of `latents`: its gradient rows, times scale."""
    place = tl.program_id(0)
    latent = tl.load(latents + place)
    factor = tl.load(scale)
    columns, columns_out = tl.arange(0, PAD), tl.arange(0, PAD_OUT)
    encoder = latent_sum(latent, pointers, tokens, dz, x, piece_ends, piece_enc, D, PAD, TOKENS)
    tl.store(grad_enc + place.to(tl.int64) * D + columns, factor * encoder, mask=columns < D)
    decoder = latent_sum(latent, pointers, tokens, z, residual, piece_ends, piece_dec, D_OUT, PAD_OUT, TOKENS_OUT)
    tl.store(grad_dec + place.to(tl.int64) * D_OUT + columns_out, factor * decoder, mask=columns_out < D_OUT)
    tl.store(grad_bias + place, factor * bias_sum(latent, pointers, dz))


def latent_step(
    codes: tuple[Tensor, Tensor, Tensor],
    out: Residual,
    x: Tensor,
    scale: float | Tensor,
    weights: Weights,
    moments: Moments,
    adam: Adam,
    low_precision: LowPrecisionCopy | None = None,
    extra: RowGradients | None = None,
) -> Updated:
    """`kernels.update.latent_step` on a GPU; x and the residual may be bf16.

    Raises:
        ValueError: d is above what one program holds, or a tensor to be updated is not contiguous.
    """
    n, d = weights.W_enc.shape
    kept = (
        *weights,
        *(moments.first or ()),
        *moments.second,
        *(part for part in low_precision or () if part is not None),
    )
    if not all(part.is_contiguous() for part in kept):
        raise ValueError("weights, moments and low-precision copy are updated in place and must be contiguous")
    lists = transpose(codes, n)
    sums = prepare(lists, codes[2], out, x)
    active = lists.fired > 0
    extra_rows: tuple[Tensor | None, ...] = (None,) * 4
    if extra is not None:
        place = extra.places(n)
        active |= place >= 0
        extra_rows = (place, *(rows.contiguous() for rows in extra[1:]))
    scalars = adam.on(x.device).device
    if scalars is None:  # in the interpreter
        scalars = adam.scalars()
    some = (None, None)
    if moments.touched is not None:
        most = min(n, len(codes[1]) + (0 if extra is None else len(extra.latents)))
        counted = active.cumsum(0)
        some = owners(counted, torch.arange(most, device=x.device)), counted[-1:]
    to_input = torch.zeros(min(n, PROGRAMS), d, device=x.device)
    passed = (
        *sums, *extra_rows, *some, on_device(scale, x), scalars,
        *weights, *(moments.first or (None,) * 3), *moments.second, moments.touched,
        *((None, None) if low_precision is None else (low_precision.W_enc, low_precision.W_dec)), to_input, n,
    )  # fmt: skip
    d_out = weights.W_dec.shape[1]
    launch(update_kernel, len(to_input), passed, layouts(d, d_out), warps(max(d, d_out)))
    if moments.touched is not None:
        moments.touched.copy_(torch.where(active, scalars[6].int(), moments.touched))
    return Updated(to_input.sum(0), lists.fired)


def latent_gradients(
    codes: tuple[Tensor, Tensor, Tensor], out: Residual, x: Tensor, scale: float | Tensor, n_latents: int
) -> RowGradients:
    """`kernels.update.latent_gradients` on a GPU. Waits for the device: how many latents fired sets the sizes."""
    lists = transpose(codes, n_latents)
    sums = prepare(lists, codes[2], out, x)
    latents, d, d_out = lists.fired.nonzero()[:, 0], x.shape[1], out.residual.shape[1]
    rows = [torch.empty(len(latents), width, device=x.device) for width in (d, d_out, 1)]
    passed = (*sums, latents, on_device(scale, x), *rows)
    launch(gradients_kernel, len(latents), passed, layouts(d, d_out), warps(max(d, d_out)))
    return RowGradients(latents, *rows)


def layouts(d: int, d_out: int) -> dict[str, int]:
    """The layout of encoder rows, and that of decoder rows under names ending in _OUT."""
    return layout(d) | {f"{name}_OUT": size for name, size in layout(d_out).items()}


def on_device(scale: float | Tensor, x: Tensor) -> Tensor:
    """The scale as one fp32 entry beside x, where a kernel reads it."""
    if isinstance(scale, Tensor):
        return scale.reshape(1).float()
    return torch.full((1,), scale, device=x.device)


def fp32(*names: str) -> dict[str, str | None]:
    """Parameters of that type."""
    return dict.fromkeys(names, "*fp32")


LISTS = {"pointers": "*i64", "tokens": "*i32", **fp32("dz", "x", "z", "residual")}
PIECES = {"piece_ends": "*i64", **fp32("piece_enc", "piece_dec")}
EXTRA = {"extra_place": "*i32", **fp32("extra_enc", "extra_dec", "extra_bias")}
SOME = {"latents": "*i32", "n_latents": "*i64"}
STATE = fp32(
    "W_enc", "W_dec", "b_enc", "first_enc", "first_dec", "first_bias", "second_enc", "second_dec", "second_bias"
)
WRITTEN = {"copy_enc": "*bf16", "copy_dec": "*bf16", "to_input": "*fp32", "n": "i32"}
BF16_ROWS = {"x": "*bf16", "residual": "*bf16"}


def specs(shape: Shape) -> list[Spec]:
    """The update in its modes, with pieces, extra rows and bf16 copy where they cost most, and compact gradients."""
    everything = {
        **LISTS, **PIECES, **EXTRA, **SOME, **fp32("scale"), "scalars": "*fp64", **STATE, "touched": "*i32", **WRITTEN,
    }  # fmt: skip
    dense = {**everything, **dict.fromkeys((*SOME, "touched"))}
    plain = {**dense, **dict.fromkeys((*PIECES, *EXTRA, "copy_enc", "copy_dec"))}
    no_first = dict.fromkeys(("first_enc", "first_dec", "first_bias"))
    compact = {**LISTS, **PIECES, "latents": "*i64", **fp32("scale", "grad_enc", "grad_dec", "grad_bias")}
    every = {
        "dense Adam": (update_kernel, dense),
        "dense Adam, bf16 rows": (update_kernel, {**dense, **BF16_ROWS}),
        "dense Adam, no pieces, extra rows or low-precision copy": (update_kernel, plain),
        "row-sparse Adam, beta1 = 0": (update_kernel, {**everything, **no_first}),
        "active_row Adam": (update_kernel, everything),
        "compact gradients": (gradients_kernel, compact),
    }
    return [
        describe(label, kernel, passed, layouts(shape.d, shape.d), warps(shape.d))
        for label, (kernel, passed) in every.items()
    ]
