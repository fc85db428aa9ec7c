"""Which implementation runs where, and why. Decided by what the hardware has, never by timing: runs repeat."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.util import find_spec
from typing import Literal, NamedTuple, get_args

import torch

Precision = Literal["auto", "fp32", "bf16", "int8"]
PRECISIONS = get_args(Precision)
Backend = Literal["compiled", "triton", "reference"]
BACKENDS = get_args(Backend)

_forced: ContextVar[Backend | None] = ContextVar("forced backend", default=None)


class Choice(NamedTuple):
    """The chosen backend and the reason, for logs and manifests."""

    step: Backend
    encode: Literal["fp32", "bf16", "int8"]
    why: str


@contextmanager
def using(backend: Backend) -> Iterator[None]:
    """Run every kernel on one backend within the context, whatever the device: for comparisons."""
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    token = _forced.set(backend)
    try:
        yield
    finally:
        _forced.reset(token)


@cache
def _installed(name: str) -> bool:
    return find_spec(name) is not None


def backend(device: torch.device) -> Backend:
    """The backend that serves `device`: compiled loops on a CPU, Triton on a GPU that has it, references elsewhere."""
    return _forced.get() or _backend(device.type)[0]


def _backend(kind: str) -> tuple[Backend, str]:
    if kind == "cpu":
        return ("compiled", "CPU loops compiled by numba") if _installed("numba") else (
            "reference", "numba is not installed, so plain PyTorch runs")  # fmt: skip
    if kind == "cuda":
        return ("triton", "GPU with Triton") if _installed("triton") else (
            "reference", "Triton is not installed, so plain PyTorch runs on the GPU")  # fmt: skip
    return "reference", f"no kernels for {kind} devices, so plain PyTorch runs"


def _cpu_has(feature: str) -> bool:
    probe = getattr(torch.cpu, f"_is_{feature}_supported", None)
    return bool(probe and probe())


def has_bf16(device: torch.device) -> bool:
    """True if bf16 matrix products are faster than fp32 ones here."""
    return device.type == "cuda" or _cpu_has("avx512_bf16") or _cpu_has("amx_tile")


def choose(device: torch.device, precision: Precision = "auto") -> Choice:
    """Pick the step and the encode precision for `device`; an explicit `precision` is obeyed."""
    step = backend(device)
    reason = f"{step} backend was asked for" if _forced.get() else _backend(device.type)[1]
    if precision != "auto":
        if precision == "int8" and step != "compiled":
            raise ValueError(f"precision int8 needs the compiled CPU step, and {device} has none: use bf16 or fp32")
        return Choice(step, precision, f"{reason}; precision {precision} was asked for")
    if step == "compiled" and _cpu_has("vnni"):
        return Choice(step, "int8", f"{reason}; the CPU has VNNI: int8 screens, fp32 decides")
    if has_bf16(device):
        return Choice(step, "bf16", f"{reason}; {device.type} has fast bf16 products")
    return Choice(step, "fp32", f"{reason}; no fast low-precision products here")


LATENTS_PER_CODE = {"cpu": 8, "cuda": 28}
"""Below this many latents per active code dense products win. CPU: gathers ran at an eighth of the rate of an fp32
product; GPU: 60 TFLOP/s of fp32 products against gathers of 4.3 TB/s (a ratio of data-sheet figures, not measured)."""


def dense_is_faster(device: torch.device, n_latents: int, codes_per_row: float) -> bool:
    """True if `kernels.dense` serves this shape; never under `using`, whose point is one backend."""
    return _forced.get() is None and n_latents < LATENTS_PER_CODE.get(device.type, 0) * codes_per_row
