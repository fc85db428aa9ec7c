"""The m-th largest entry of a flat tensor in Triton, found on the device. The specification is `kernels.kth.reference`.

Four passes fix the key's bytes from the highest down: each counts the next byte among the entries that agree with the
bytes fixed so far, with integer atomics, whose order never shows. Every program works the fixed bytes out again from
the earlier counts, 256 numbers a pass, so that nothing but counts is carried.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float32
from torch import Tensor

from ..tuples import Kth
from .compile import Shape, Spec
from .keys import LOWEST, key_value, order_key

BLOCK = 4096
"""Entries a program counts: 16 a thread at 8 warps."""


@triton.jit
def fixed_bytes(counts, m, PASSES: tl.constexpr):
    """The top PASSES bytes of the m-th largest key (offset to be unsigned), and its rank among keys that share them."""
    prefix = tl.zeros([], tl.uint32)
    rank = tl.zeros([], tl.int32) + m
    place = tl.arange(0, 256)
    for level in tl.static_range(PASSES):  # pyright: ignore[reportGeneralTypeIssues]
        count = tl.load(counts + level * 256 + 255 - place)  # largest byte first
        before = tl.cumsum(count, 0) < rank
        prefix = (prefix << 8) | (255 - tl.sum(before.to(tl.int32))).to(tl.uint32)  # pyright: ignore[reportOperatorIssue]
        rank -= tl.sum(tl.where(before, count, 0))
    return prefix, rank


@triton.jit
def count_bytes(values, counts, size, m, PASSES: tl.constexpr, BLOCK: tl.constexpr):
    """Add up how often each next byte follows the PASSES bytes fixed so far, into counts[PASSES]."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    key = (order_key(tl.load(values + place, mask=inside, other=0.0)) ^ LOWEST).to(tl.uint32, bitcast=True)
    if PASSES > 0:
        prefix, _ = fixed_bytes(counts, m, PASSES)
        inside = inside & ((key >> (32 - 8 * PASSES)) == prefix)
    byte = ((key >> (24 - 8 * PASSES)) & 255).to(tl.int32)
    histogram = tl.histogram(byte, 256, mask=inside)
    slot = tl.arange(0, 256)
    tl.atomic_add(counts + PASSES * 256 + slot, histogram, mask=histogram > 0, sem="relaxed")


@triton.jit
def store_kth(counts, m, value, spare):
    """Write the value of the m-th largest key and its rank among equals; one program."""
    key, rank = fixed_bytes(counts, m, 4)  # pyright: ignore[reportArgumentType]
    tl.store(value, key_value(key.to(tl.int32, bitcast=True) ^ LOWEST))
    tl.store(spare, rank)


def kth_largest(values: Float32[Tensor, " size"], m: int) -> Kth:
    """`kernels.kth.kth_largest` on a GPU: five launches, 4 KiB of counts, no wait for the device."""
    values = values.contiguous()
    counts = torch.zeros(4, 256, dtype=torch.int32, device=values.device)
    kth = Kth(values.new_empty(()), values.new_empty((), dtype=torch.int32))
    grid = (triton.cdiv(len(values), BLOCK),)
    for passes in range(4):
        count_bytes[grid](values, counts, len(values), m, PASSES=passes, BLOCK=BLOCK, num_warps=8)  # pyright: ignore[reportCallIssue]
    store_kth[(1,)](counts, m, *kth)
    return kth


def specs(shape: Shape) -> list[Spec]:
    """The kernels of `kth_largest`: the first and the last pass, and the result. The same at every shape."""
    counted = {
        "values": "*fp32",
        "counts": "*i32",
        "size": "i32",
        "m": "i32",
        "PASSES": "constexpr",
        "BLOCK": "constexpr",
    }
    stored = {"counts": "*i32", "m": "i32", "value": "*fp32", "spare": "*i32"}
    passes = [Spec(f"kth.count_bytes[{p}]", count_bytes, counted, {"PASSES": p, "BLOCK": BLOCK}, 8) for p in (0, 3)]
    return [*passes, Spec("kth.store_kth", store_kth, stored, {})]
