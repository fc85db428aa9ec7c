"""The smallest Triton kernel: what it needs (driver, C compiler, assembler) every other kernel needs too."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .compile import Shape, Spec

LENGTH = 16


@triton.jit
def add_one(x, LENGTH: tl.constexpr):
    """x += 1."""
    places = x + tl.arange(0, LENGTH)
    tl.store(places, tl.load(places) + 1.0)


def probe(device: torch.device) -> None:
    """Build and run one kernel on `device`.

    Raises:
        RuntimeError: it ran and its result is wrong; whatever Triton raises where it cannot be built.
    """
    x = torch.arange(LENGTH, dtype=torch.float32, device=device)
    add_one[(1,)](x, LENGTH=LENGTH)  # pyright: ignore[reportArgumentType]
    if x.tolist() != list(range(1, LENGTH + 1)):
        raise RuntimeError("a kernel that adds 1 gave another result")


def specs(shape: Shape) -> list[Spec]:
    """The kernel; nothing in it depends on the shape."""
    return [Spec("probe", add_one, {"x": "*fp32", "LENGTH": "constexpr"}, {"LENGTH": LENGTH})]
