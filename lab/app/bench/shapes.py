"""Shapes of a training step on the command line, and rows for them: a few planted directions a row, plus noise."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import InputError


class Shape(NamedTuple):
    """Width of the rows, latents, codes a row, rows a batch."""

    d: int
    n: int
    k: int
    batch: int

    def __str__(self) -> str:
        return ",".join(map(str, self))


CPU_SHAPES = (Shape(576, 9216, 32, 2048), Shape(768, 24576, 32, 2048), Shape(2048, 65536, 64, 1024))
GPU_SHAPES = (
    Shape(768, 24576, 32, 8192),
    Shape(2304, 65536, 64, 8192),
    Shape(4096, 131072, 64, 8192),
    Shape(4096, 1048576, 64, 4096),
)


def shapes_of(text: str) -> tuple[Shape, ...]:
    """One or more shapes `d,n,k,batch` parted by spaces or `;`, "first" or "all" of those this machine is measured at.

    Raises:
        InputError: not four positive numbers, or k above n.
    """
    known = GPU_SHAPES if torch.cuda.is_available() else CPU_SHAPES
    if text in ("first", "all"):
        return known[:1] if text == "first" else known
    shapes = tuple(_shape(part) for part in text.replace(";", " ").split())
    if not shapes:
        raise InputError("--shape names no shape: give d,n,k,batch such as 576,9216,32,2048, or first, or all")
    return shapes


def _shape(text: str) -> Shape:
    parts = text.split(",")
    if len(parts) != 4 or not all(part.isdecimal() and int(part) for part in parts):
        raise InputError(f"a shape is four positive numbers d,n,k,batch such as 576,9216,32,2048, got {text!r}")
    shape = Shape(*map(int, parts))
    if shape.k > shape.n:
        raise InputError(f"a shape needs k of at most n, got k={shape.k} and n={shape.n}")
    return shape


def device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Planted:
    """An endless supply of rows [batch, d]: k of `features` directions with log-normal frequencies and positive
    sizes, a common offset, and noise of a tenth of their norm."""

    def __init__(self, shape: Shape, seed: int = 0, features: int = 4096) -> None:
        self.shape, self.device = shape, device()
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.directions = torch.nn.functional.normalize(self._normal(features, shape.d), dim=1)
        self.frequency = self._normal(features).mul(1.5).exp()
        self.offset = self._normal(shape.d) / shape.d**0.5

    def rows(self, count: int | None = None) -> Tensor:
        """The next `count` rows (a batch by default)."""
        count, active = count or self.shape.batch, min(self.shape.k, len(self.directions))
        chosen = torch.multinomial(self.frequency, count * active, True, generator=self.generator)
        size = self._normal(count, active, 1).abs()
        signal = torch.zeros(count, self.shape.d, device=self.device)
        for slot in range(active):
            signal += size[:, slot] * self.directions[chosen[slot * count : (slot + 1) * count]]
        noise = self._normal(count, self.shape.d) * (0.1 * signal.norm(dim=1, keepdim=True) / self.shape.d**0.5)
        return signal + noise + self.offset

    def _normal(self, *size: int) -> Tensor:
        return torch.randn(*size, generator=self.generator, device=self.device)
