"""Which implementation runs where, and why. Decided by what the hardware has, never by timing: runs repeat."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

Precision = Literal["auto", "fp32", "bf16", "int8"]
PRECISIONS = ("auto", "fp32", "bf16", "int8")


class Choice(NamedTuple):
    """What runs and the reason, for logs and manifests."""

    step: Literal["compiled", "reference"]
    encode: Literal["fp32", "bf16", "int8"]
    why: str


def compiled(device: torch.device) -> bool:
    """Whether the compiled CPU loops serve this device."""
    return device.type == "cpu"


def _cpu_has(feature: str) -> bool:
    probe = getattr(torch.cpu, f"_is_{feature}_supported", None)
    return bool(probe and probe())


def has_bf16(device: torch.device) -> bool:
    """Whether bf16 matrix products are faster than fp32 ones here."""
    return device.type == "cuda" or _cpu_has("avx512_bf16") or _cpu_has("amx_tile")


def choose(device: torch.device, precision: Precision = "auto") -> Choice:
    """Pick the step and the encode precision for `device`; an explicit `precision` is obeyed."""
    step = "compiled" if compiled(device) else "reference"
    if precision != "auto":
        if precision == "int8" and step == "reference":
            raise ValueError(f"precision int8 needs the compiled CPU step, and {device} has none: use bf16 or fp32")
        return Choice(step, precision, f"precision {precision} was asked for")
    if step == "compiled" and _cpu_has("vnni"):
        return Choice(step, "int8", "the CPU has VNNI: int8 screens, fp32 decides")
    if has_bf16(device):
        return Choice(step, "bf16", f"{device.type} has fast bf16 products")
    return Choice(step, "fp32", "no fast low-precision products here")
