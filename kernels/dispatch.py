"""Which implementation runs where, and why. Decided by what the hardware has, never by timing: runs repeat.

A Triton kernel that cannot be built on a device, or that gave wrong results in a check, is refused: from then on the
plain PyTorch reference of that operation runs on that device, with one warning and a reason that manifests record.
"""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Literal, NamedTuple, get_args

import torch

log = logging.getLogger(__name__)

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


STRICT = "MONOSEM_GPU_STRICT"
"""Environment variable: at 1 a kernel that would be refused raises instead."""

HOMES = {
    "decode": "decode",
    "decode_residual": "decode",
    "code_gradients": "code_gradients",
    "topk": "topk",
    "above": "threshold",
    "kth_largest": "kth",
    "jumprelu_gradients": "jumprelu",
    "latent_step": "update",
    "latent_gradients": "update",
    "pursue": "pursuit",
}
"""Every operation that has kernels, and the file in `cpu/` and in `gpu/` that has the function of that name."""

_refused: dict[tuple[str, str], str] = {}
"""Reason by device and operation."""


def backend(device: torch.device, operation: str | None = None) -> Backend:
    """The backend that serves `device`: compiled loops on a CPU, Triton on a GPU that runs it, references elsewhere.

    Args:
        operation: a key of `HOMES`; the reference serves it where its kernel is refused.
    """
    if forced := _forced.get():
        return forced
    if operation is not None and _refused and (_key(device), operation) in _refused:
        return "reference"
    return _backend(device)[0]


def kernel(operation: str, device: torch.device, reference: Callable) -> Callable:
    """The function that serves an operation on `device`; it takes positional arguments as the reference does.

    A Triton kernel runs with `device` as the current one. If it cannot be built it is refused and the reference runs;
    every Triton operation writes in place only in its last launch, so nothing is applied twice.

    Args:
        operation: a key of `HOMES`.
        reference: the plain PyTorch twin.
    """
    chosen = backend(device, operation)
    if chosen == "reference":
        return reference
    served = implementation(operation, device, chosen)
    if chosen == "compiled":
        return served

    def run(*arguments):
        try:
            return served(*arguments)
        except Exception as error:
            if _forced.get() or not _failed_to_build(error):
                raise
            refuse(device, operation, f"{type(error).__name__}: {error}", error)
        return reference(*arguments)

    return run


def implementation(operation: str, device: torch.device, backend: Backend) -> Callable:
    """The kernel of an operation in a backend that has kernels, refused or not; Triton's with `device` as current."""
    home = f".{'cpu' if backend == 'compiled' else 'gpu'}.{HOMES[operation]}"
    if backend == "compiled":
        return getattr(import_module(home, __package__), operation)

    def run(*arguments):
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            return getattr(import_module(home, __package__), operation)(*arguments)

    return run


def refuse(device: torch.device, operation: str, reason: str, cause: Exception | None = None) -> None:
    """Let the reference serve an operation on `device` from now on; warns once.

    Raises:
        RuntimeError: the environment has MONOSEM_GPU_STRICT=1.
    """
    first_line = (reason.strip().splitlines() or ["no reason given"])[0][:200]
    if os.environ.get(STRICT) == "1":
        raise RuntimeError(f"the Triton kernel of {operation} fails on {_key(device)}: {first_line}") from cause
    if (_key(device), operation) not in _refused:
        _refused[_key(device), operation] = first_line
        log.warning(
            "%s runs as plain PyTorch on %s: its Triton kernel failed (%s)", operation, _key(device), first_line
        )


def refusals(device: torch.device) -> dict[str, str]:
    """The operations whose Triton kernel is refused on `device`, each with the reason."""
    return {operation: reason for (place, operation), reason in _refused.items() if place == _key(device)}


def _key(device: torch.device) -> str:
    if device.type == "cuda" and device.index is None and torch.cuda.is_available():
        return f"cuda:{torch.cuda.current_device()}"
    return str(device)


def _failed_to_build(error: Exception) -> bool:
    """True for what Triton raises before a kernel runs: no C compiler, a compile error, out of resources."""
    if isinstance(error, ImportError | subprocess.CalledProcessError | torch.OutOfMemoryError):
        return not isinstance(error, torch.OutOfMemoryError)
    if any(kind.__module__.partition(".")[0] == "triton" for kind in type(error).__mro__):
        return True
    return any(said in str(error) for said in ("C compiler", "PassManager::run failed", "out of resource"))


def _backend(device: torch.device) -> tuple[Backend, str]:
    kind = device.type
    if kind == "cpu":
        return ("compiled", "CPU loops compiled by numba") if _installed("numba") else (
            "reference", "numba is not installed, so plain PyTorch runs")  # fmt: skip
    if kind == "cuda":
        if not _installed("triton"):
            return "reference", "Triton is not installed, so plain PyTorch runs on the GPU"
        if reason := _unusable(_key(device)):
            return "reference", f"Triton cannot build a kernel here ({reason}), so plain PyTorch runs on the GPU"
        return "triton", "GPU with Triton"
    return "reference", f"no kernels for {kind} devices, so plain PyTorch runs"


@cache
def _unusable(device: str) -> str | None:
    """The reason for which a first small Triton kernel does not run on a CUDA device; None if it does."""
    if not torch.cuda.is_available():
        return None
    try:
        with torch.cuda.device(device):
            import_module(".gpu.probe", __package__).probe(torch.device(device))
    except Exception as error:  # a missing compiler, driver or header fails in whatever library met it first
        reason = (f"{type(error).__name__}: {error}".splitlines())[0][:200]
        if os.environ.get(STRICT) == "1":
            raise RuntimeError(f"Triton cannot build a kernel for {device}: {reason}") from error
        log.warning("plain PyTorch runs on %s: Triton cannot build a kernel there (%s)", device, reason)
        return reason
    return None


def fixed_sizes(device: torch.device) -> bool:
    """True if no size in a step may depend on data, because the host would wait for the device to know it."""
    return backend(device) == "triton"


def _cpu_has(feature: str) -> bool:
    probe = getattr(torch.cpu, f"_is_{feature}_supported", None)
    return bool(probe and probe())


BF16_CAPABILITY = (8, 0)
"""Lowest compute capability that multiplies bf16; older GPUs emulate it."""


def has_bf16(device: torch.device) -> bool:
    """True if the device multiplies bf16 in hardware: the one answer for models and for dictionaries."""
    if device.type == "cuda":
        if not torch.cuda.is_available():
            return False
        if torch.version.hip:
            return torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.cuda.get_device_capability(device) >= BF16_CAPABILITY
    return device.type == "cpu" and (_cpu_has("avx512_bf16") or _cpu_has("amx_tile"))


def choose(device: torch.device, precision: Precision = "auto") -> Choice:
    """Pick the step and the encode precision for `device`; an explicit `precision` is obeyed."""
    step = backend(device)
    reason = f"{step} backend was asked for" if _forced.get() else _backend(device)[1]
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
