"""`monosem doctor`: what this machine is, what will run on it and why, and whether its kernels are right."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch

from ....kernels.dispatch import backend, choose, has_bf16
from ....kernels.first_check import failures
from ...environment import hardware, versions
from ...models.gguf import is_converted
from ...models.loading import EMBEDDED, device_named
from ...runs.first_run import check_first
from ..command import Command, Result


@dataclass(frozen=True)
class DoctorCommand(Command):
    """Say what this machine is and what will run on it, and check its kernels against plain PyTorch.

    On a GPU the check is the one that training makes once by itself; its result is kept for this GPU, driver, torch,
    triton and source. An operation that fails runs as plain PyTorch there, and the exit status is 3.
    """

    example = "monosem doctor"

    device: str | None = None
    """`cpu`, `cuda` or `cuda:N`; by default a GPU if there is one."""
    again: bool = False
    """Check a GPU again although a result is kept."""

    def run(self) -> Result:
        """Look, check, and return both."""
        device = device_named(self.device)
        choice, started = choose(device), time.monotonic()
        if choice.step == "triton":
            found = check_first(device, self.again)
        else:
            found = failures(device, backend(device)) if choice.step == "compiled" else {}
        values = {
            "versions": versions() | {name: _version(name) for name in ("triton", "numba")},
            "hardware": hardware(),
            "device": str(device),
            "runs": choice.step, "encode": choice.encode, "why": choice.why,
            "vnni": bool(getattr(torch.cpu, "_is_vnni_supported", bool)()),
            "bf16": has_bf16(device),
            "model": {name: _embedded(name) for name in EMBEDDED},
            "checked": choice.step != "reference",
            "failed": found,
            "seconds": round(time.monotonic() - started, 2),
        }  # fmt: skip
        return self.result(values, incomplete=[f"{name} fails on {device}: {why}" for name, why in found.items()])

    def as_text(self, result: Mapping[str, Any]) -> str:
        """The facts a line each, then the verdict on the kernels."""
        kernels = "not checked: plain PyTorch runs"
        if result["checked"]:
            kernels = ", ".join(f"{name} FAILED" for name in result["failed"]) or "all right"
        shown = {key: value for key, value in result.items() if key not in ("checked", "failed")}
        return super().as_text(shown | {"kernels": kernels})


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package) if find_spec(package) else "not installed"


def _embedded(name: str) -> str:
    wheel = EMBEDDED[name]
    if (found := wheel.locate()) is None:
        return f"not installed: {wheel.install}"
    return "ready" if is_converted(*found) else "installed; converted when it is first loaded"
