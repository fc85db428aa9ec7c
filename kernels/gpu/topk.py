"""Exact top-k of each row in Triton, without a sort. The specification is `kernels.topk.reference`.

Cut a row into contiguous groups and order the groups by their first best entry. An entry of the top k lies in one of
the k best groups: otherwise k other groups would each hold an entry ahead of it. So one streaming pass takes group
maxima, a second kernel selects k groups, a third the k largest of their entries. Always exact, ties included, because
the lowest group among equals holds the lowest columns. Short rows are selected from whole. Where k groups hold too
much for one program, torch.topk finds the k-th value and a scan collects the columns.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from ..tuples import Codes
from .compile import Shape, Spec
from .keys import LOWEST, compact, compact_largest, entries, order_key, row_start

SHORT = 4096
"""Rows up to this many columns are selected from whole: one kernel in place of three."""

LIMIT = 16384
"""Keys that one program selects from, in registers."""

TILE = 64
"""Groups whose maxima one program takes."""


class Plan(NamedTuple):
    """How rows of a shape are selected, and why; `group` columns in each of `groups` groups."""

    route: Literal["row", "groups", "scan"]
    group: int
    groups: int
    why: str


def plan(n: int, k: int) -> Plan:
    """The route of rows of n columns: a function of the shape alone, so that runs repeat."""
    if n <= SHORT:
        return Plan("row", 1, n, f"{n} columns fit one program")
    near = 1 << max(5, round(math.log2(n / k) / 2))  # balances n / g maxima against k * g candidates
    for group in (near, near // 2, near * 2):
        groups = triton.cdiv(n, group)
        if group >= 32 and k < groups <= LIMIT and k * group <= LIMIT:
            return Plan("groups", group, groups, f"the {k} best of {groups} groups of {group} columns hold the top {k}")
    if n <= LIMIT:
        return Plan("row", 1, n, f"{n} columns fit one program, and k = {k} leaves nothing to skip")
    return Plan("scan", 1, n, f"k = {k} of {n} columns is too much for one program: torch.topk, then a scan")


def width(keys: int) -> int:
    """Slots of a program that selects from `keys` keys."""
    return max(32, triton.next_power_of_2(keys))


def warps(slots: int) -> int:
    """Warps of a program that selects from `slots` slots: 16 to a thread, up to 16 warps."""
    return min(16, max(1, slots // 512))


@triton.jit
def group_maxima(pre, bias, mask, maxima, n, stride, groups, GROUP: tl.constexpr, TILE: tl.constexpr):
    """maxima[row, g] = largest key of columns g * GROUP to (g + 1) * GROUP; one program per TILE groups of a row."""
    tiles = tl.cdiv(groups, TILE)
    row, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    group = tile * TILE + tl.arange(0, TILE)
    column = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    inside = column < n
    key = order_key(entries(pre + row_start(row, stride), bias, mask, column, inside))
    largest = tl.max(tl.where(inside, key, LOWEST), 1)
    tl.store(maxima + row_start(row, groups) + group, largest, mask=group < groups)


@triton.jit
def best_groups(maxima, chosen, groups, k, SLOTS: tl.constexpr):
    """chosen[row] = ids of the k groups with the largest maxima, ascending; one program per row."""
    row = tl.program_id(0)
    slot = tl.arange(0, SLOTS)
    key = tl.load(maxima + row_start(row, groups) + slot, mask=slot < groups, other=LOWEST)
    place, kept = compact_largest(key, k)
    tl.store(chosen + row_start(row, k) + place, slot, mask=kept)


@triton.jit
def candidate_columns(chosen, slot, inside, GROUP: tl.constexpr):
    """Columns of slots of the chosen groups; slots themselves where the row is whole. Ascending either way."""
    column = slot
    if chosen is not None:
        start = tl.load(chosen + slot // GROUP, mask=inside, other=0) * GROUP
        column = tl.max_contiguous(tl.multiple_of(start + slot % GROUP, GROUP), GROUP)
    return column


@triton.jit
def best_entries(
    pre, bias, mask, chosen, values, columns, n, stride, k, GROUP: tl.constexpr, SLOTS: tl.constexpr
):  # fmt: skip
    """The k largest entries of a row's chosen groups, or of the whole row where `chosen` is None; ascending."""
    row = tl.program_id(0)
    slot = tl.arange(0, SLOTS)
    used = slot < n
    if chosen is not None:
        chosen += row_start(row, k)
        used = slot < k * GROUP
    column = candidate_columns(chosen, slot, used, GROUP)
    inside = used & (column < n)
    pre += row_start(row, stride)
    key = tl.where(inside, order_key(entries(pre, bias, mask, column, inside)), LOWEST)
    place, kept = compact_largest(key, k)
    column = candidate_columns(chosen, slot, kept, GROUP)  # read again: k loads in place of a register a slot
    tl.store(columns + row_start(row, k) + place, column, mask=kept)
    tl.store(values + row_start(row, k) + place, entries(pre, bias, mask, column, kept), mask=kept)


@triton.jit
def entries_reaching(
    pre, bias, mask, bounds, spares, values, columns, n, stride, k, SLOTS: tl.constexpr
):  # fmt: skip
    """Entries of a row above its bound and the first `spares[row]` equal to it, ascending; one program per row."""
    row = tl.program_id(0)
    bound, spare = order_key(tl.load(bounds + row)), tl.load(spares + row)
    pre += row_start(row, stride)
    out = row_start(row, k)
    for first in range(0, n, SLOTS):
        column = first + tl.arange(0, SLOTS)
        inside = column < n
        value = entries(pre, bias, mask, column, inside)
        key = tl.where(inside, order_key(value), LOWEST)
        place, kept = compact(key, bound, spare)
        tl.store(columns + out + place, column, mask=kept)
        tl.store(values + out + place, value, mask=kept)
        out += tl.sum(kept.to(tl.int32))
        spare -= tl.sum((kept & (key == bound)).to(tl.int32))


def topk(
    pre: Float[Tensor, "rows n"],
    k: int,
    bias: Float32[Tensor, " n"] | None = None,
    mask: Bool[Tensor, " n"] | None = None,
) -> Codes:
    """`kernels.topk.topk` on a GPU. Holds `groups` int32 maxima and k group ids a row beside its result."""
    rows, n = pre.shape
    pre = pre if pre.stride(1) == 1 else pre.contiguous()
    stride = pre.stride(0)
    seen = None if mask is None else mask.view(torch.uint8)
    out = Codes(pre.new_empty(rows, k, dtype=torch.float32), pre.new_empty(rows, k, dtype=torch.int32))
    route, group, groups, _ = plan(n, k)
    if not rows:
        return out
    if route == "scan":
        bound, spare = _kth_of_rows(pre, k, bias, mask)
        entries_reaching[(rows,)](pre, bias, seen, bound, spare, *out, n, stride, k, SLOTS=SHORT, num_warps=8)  # pyright: ignore[reportCallIssue]
        return out
    chosen = None
    if route == "groups":
        maxima = pre.new_empty(rows, groups, dtype=torch.int32)
        grid = (rows * triton.cdiv(groups, TILE),)
        group_maxima[grid](pre, bias, seen, maxima, n, stride, groups, GROUP=group, TILE=TILE, num_warps=4)  # pyright: ignore[reportCallIssue]
        chosen, slots = pre.new_empty(rows, k, dtype=torch.int32), width(groups)
        best_groups[(rows,)](maxima, chosen, groups, k, SLOTS=slots, num_warps=warps(slots))  # pyright: ignore[reportCallIssue]
    slots = width(n if chosen is None else k * group)
    best_entries[(rows,)](
        pre, bias, seen, chosen, *out, n, stride, k, GROUP=group, SLOTS=slots, num_warps=warps(slots)  # pyright: ignore[reportCallIssue]
    )  # fmt: skip
    return out


def _kth_of_rows(pre: Tensor, k: int, bias: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The k-th largest entry of each row, and how many equal to it belong to the k largest."""
    whole = pre if bias is None else pre.float() + bias
    if mask is not None:
        whole = whole.masked_fill(~mask, -torch.inf)
    largest = whole.topk(k, dim=1).values.float()
    bound = largest[:, -1:]
    equal = (largest == bound) | (largest.isnan() & bound.isnan())
    return bound[:, 0].contiguous(), equal.sum(1, dtype=torch.int32)


def specs(shape: Shape) -> list[Spec]:
    """Every kernel of `topk` at a shape and the scan of larger k, over fp32 and bf16 rows with bias and mask."""
    route, group, groups, _ = plan(shape.n, shape.k)
    scan = [_spec(entries_reaching, dtype, {"SLOTS": SHORT}, 8) for dtype in ("fp32", "bf16")]
    if route == "scan":
        return scan
    slots = width(shape.n if route == "row" else shape.k * group)
    sizes = {"GROUP": group, "SLOTS": slots} | ({"chosen": None} if route == "row" else {})
    described = [*scan, *(_spec(best_entries, dtype, sizes, warps(slots)) for dtype in ("fp32", "bf16"))]
    if route == "groups":
        described += [_spec(group_maxima, dtype, {"GROUP": group, "TILE": TILE}, 4) for dtype in ("fp32", "bf16")]
        described.append(_spec(best_groups, "keys", {"SLOTS": width(groups)}, warps(width(groups))))
    return described


_TYPES = {
    "bias": "*fp32", "mask": "*u8", "maxima": "*i32", "chosen": "*i32", "values": "*fp32", "columns": "*i32",
    "bounds": "*fp32", "spares": "*i32",
}  # fmt: skip


def _spec(kernel: Any, dtype: str, constants: dict[str, Any], count: int) -> Spec:
    types = _TYPES | {"pre": f"*{dtype}"}
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in kernel.arg_names}
    return Spec(f"topk.{kernel.__name__}[{dtype}]", kernel, signature, constants, count)
