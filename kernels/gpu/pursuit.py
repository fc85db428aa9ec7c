"""Triton kernels of matching pursuit.

Up to `RESIDENT` atoms a program keeps one row's correlations in registers for all k steps and reads nothing but Gram
rows. Above it, and without a Gram matrix, correlations lie in memory and every step is one launch: what a program
writes is read by the next kernel, never by itself.

Selection is one maximum of 64-bit keys: the score's bits, then the column counted backwards (ties go to the lowest),
then the sign of the correlation. A score that is not positive has the bits of 0; NaN wins, and ends the row.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .compile import Shape, Spec

RESIDENT = 24576
"""Most correlations that fit in the registers of one program of 16 warps without spills (48 of 128 a thread)."""

BLOCK = 2048
"""Correlations read at once where they lie in memory."""


@triton.jit
def _keys(correlation, column, SIGNED: tl.constexpr):
    """The key of every correlation of a block."""
    bits = correlation.to(tl.int32, bitcast=True)
    score = bits & 0x7FFFFFFF if SIGNED else tl.maximum(bits, 0)
    low = ((0x3FFFFFFF - column) << 1) | ((bits >> 31) & 1)
    return (score.to(tl.int64) << 32) | low.to(tl.int64)


@triton.jit
def _selected(key, energy, enough):
    """The coefficient and the column that a key stands for; 0 and 0 where the row has stopped."""
    low = key.to(tl.int32)
    bits = (key >> 32).to(tl.int32)
    best = bits.to(tl.float32, bitcast=True)
    live = (energy > enough) & (bits > 0)
    value = tl.where(live, tl.where((low & 1) == 1, -best, best), 0.0)
    return value, tl.where(live, 0x3FFFFFFF - (low >> 1), 0)


@triton.jit
def _resident_rows(
    correlations, gram, squares, values, columns, n, k, tolerance,
    SIGNED: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr,
):  # fmt: skip
    """All k steps of one row. Its correlations lie in two pieces, so that the Gram row is not loaded all at once."""
    row = tl.program_id(0).to(tl.int64)
    left = tl.arange(0, FIRST)
    right = FIRST + tl.arange(0, SECOND)
    held_left = tl.load(correlations + row * n + left, mask=left < n, other=0.0)
    held_right = tl.load(correlations + row * n + right, mask=right < n, other=0.0)
    energy = tl.load(squares + row)
    enough = tolerance * energy
    for step in range(k):
        key = tl.maximum(tl.max(_keys(held_left, left, SIGNED)), tl.max(_keys(held_right, right, SIGNED)))
        value, column = _selected(key, energy, enough)
        tl.store(values + row * k + step, value)
        tl.store(columns + row * k + step, column)
        energy -= value * value
        other = gram + column.to(tl.int64) * n
        width = tl.where(value != 0, n, 0)
        held_left -= value * tl.load(other + left, mask=left < width, other=0.0).to(tl.float32)
        held_right -= value * tl.load(other + right, mask=right < width, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["step"])
def _step_rows(
    correlations, gram, energies, enough, values, columns, n, k, step,
    SIGNED: tl.constexpr, GRAM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One step of one row: take the step before off its correlations (with a Gram matrix), then select."""
    row = tl.program_id(0).to(tl.int64)
    energy = tl.load(energies + row)
    after = step > 0
    factor = tl.load(values + row * k + step - 1, mask=after, other=0.0)
    other = gram + tl.load(columns + row * k + step - 1, mask=after, other=0).to(tl.int64) * n
    width = tl.where(factor != 0, n, 0)
    keys = tl.zeros([BLOCK], tl.int64)
    for start in range(0, n, BLOCK):
        column = start + tl.arange(0, BLOCK)
        held = tl.load(correlations + row * n + column, mask=column < n, other=0.0)
        if GRAM:
            held -= factor * tl.load(other + column, mask=column < width, other=0.0).to(tl.float32)
            tl.store(correlations + row * n + column, held, mask=column < width)
        keys = tl.maximum(keys, _keys(held, column, SIGNED))
    value, chosen = _selected(tl.max(keys), energy, tl.load(enough + row))
    tl.store(values + row * k + step, value)
    tl.store(columns + row * k + step, chosen)
    tl.store(energies + row, energy - value * value)


def pursue(
    x: Tensor, atoms: Tensor, k: int, gram: Tensor | None, nonnegative: bool, tolerance: float
) -> tuple[Tensor, Tensor]:
    """`kernels.pursuit.reference` on a GPU, for one chunk of rows."""
    rows, n = len(x), len(atoms)
    values, columns = x.new_empty(rows, k), x.new_empty(rows, k, dtype=torch.int32)
    energy, correlations = x.square().sum(1), x @ atoms.T
    if gram is not None and n <= RESIDENT:
        first, second, warps = _pieces(n)
        launch = {"SIGNED": not nonnegative, "FIRST": first, "SECOND": second, "num_warps": warps}
        _resident_rows[(rows,)](
            correlations, gram.contiguous(), energy, values, columns, n, k, float(tolerance), **launch
        )
        return values, columns
    residual, enough = x, tolerance * energy
    state = (correlations, correlations if gram is None else gram.contiguous(), energy, enough, values, columns)
    flags = {"SIGNED": not nonnegative, "GRAM": gram is not None, "BLOCK": _block(n)}
    for step in range(k):
        _step_rows[(rows,)](*state, n, k, step, **flags)
        if gram is None and step + 1 < k:
            residual = residual - values[:, step, None] * atoms.index_select(0, columns[:, step])
            torch.mm(residual, atoms.T, out=correlations)
    return values, columns


def _pieces(n: int) -> tuple[int, int, int]:
    """Widths of the two pieces of a row of n, both powers of two, and warps: at most 48 numbers a thread."""
    first = max(16, triton.next_power_of_2(n) // 2)
    second = max(16, triton.next_power_of_2(max(n - first, 1)))
    return first, second, min(16, max(1, first // 512))


def _block(n: int) -> int:
    return min(BLOCK, triton.next_power_of_2(n))


def specs(shape: Shape) -> list[Spec]:
    """The kernel that serves `shape.n` atoms with a Gram matrix in fp16 and in fp32, and the one without."""
    if shape.n <= RESIDENT:
        return [_resident_spec(shape.n, "fp16"), _resident_spec(shape.n, "fp32"), _step_spec(shape.n, None)]
    return [_step_spec(shape.n, kind) for kind in ("fp16", "fp32", None)]


def _resident_spec(n: int, gram: str) -> Spec:
    first, second, warps = _pieces(n)
    signature = {
        "correlations": "*fp32", "gram": f"*{gram}", "squares": "*fp32", "values": "*fp32", "columns": "*i32",
        "n": "i32", "k": "i32", "tolerance": "fp32", "SIGNED": "constexpr", "FIRST": "constexpr",
        "SECOND": "constexpr",
    }  # fmt: skip
    constants: dict[str, object] = {"SIGNED": True, "FIRST": first, "SECOND": second}
    return Spec(f"pursuit in registers, {gram} Gram", _resident_rows, signature, constants, warps)


def _step_spec(n: int, gram: str | None) -> Spec:
    signature = {
        "correlations": "*fp32", "gram": f"*{gram or 'fp32'}", "energies": "*fp32", "enough": "*fp32",
        "values": "*fp32", "columns": "*i32", "n": "i32", "k": "i32", "step": "i32", "SIGNED": "constexpr",
        "GRAM": "constexpr", "BLOCK": "constexpr",
    }  # fmt: skip
    constants: dict[str, object] = {"SIGNED": True, "GRAM": gram is not None, "BLOCK": _block(n)}
    return Spec(f"pursuit step, {gram or 'no'} Gram", _step_rows, signature, constants)
