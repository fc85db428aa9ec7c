"""Launches of Triton kernels, made and described from the same pieces: what is passed, constants, warps."""

from __future__ import annotations

from typing import Any

from .compile import Spec


def launch(kernel: Any, programs: int, passed: tuple[Any, ...], constants: dict[str, int], warps: int) -> None:
    """Run a one-dimensional grid of programs; none at all is fine."""
    if programs:
        kernel[(programs,)](*passed, **constants, num_warps=warps)


def describe(label: str, kernel: Any, passed: dict[str, str | None], constants: dict[str, int], warps: int) -> Spec:
    """The spec of one launch; what is passed as None is a constant of the compiled kernel, as Triton makes it."""
    absent = {name: None for name, kind in passed.items() if kind is None}
    kinds = {name: kind or "constexpr" for name, kind in passed.items()} | dict.fromkeys(constants, "constexpr")
    return Spec(label, kernel, kinds, {**absent, **constants}, warps)
