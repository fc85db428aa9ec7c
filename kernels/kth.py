"""The m-th largest entry of a flat tensor, and the m largest as a mask, without a sort and without a host read."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from .dispatch import kernel
from .tuples import Kth


def kth_largest(values: Float32[Tensor, " size"], m: int) -> Kth:
    """The m-th largest of `values`. NaN counts as larger than everything, -0 equals +0.

    Raises:
        ValueError: m is not in 1..size.
    """
    if not 1 <= m <= len(values):
        raise ValueError(f"m must be from 1 to the {len(values)} entries, got {m}")
    run = kernel("kth_largest", values.device, reference)
    return run(values, m)


def among_largest(values: Float32[Tensor, " size"], kth: Kth) -> Bool[Tensor, " size"]:
    """True for entries that are among the m largest, given the m-th; ties go to the first."""
    lost, bound_lost = values.isnan(), kth.value.isnan()
    above = (values > kth.value) | (lost & ~bound_lost)
    equal = (values == kth.value) | (lost & bound_lost)
    return above | (equal & (equal.cumsum(0) <= kth.spare))


def reference(values: Tensor, m: int) -> Kth:
    """Sort: the specification of `kth_largest`."""
    largest = values.sort(descending=True).values[:m]
    equal = (largest == largest[-1]) | (largest.isnan() & largest[-1].isnan())
    return Kth(largest[-1], equal.sum(dtype=torch.int32))
