"""Which inputs of a linear map are kept: by a threshold on their size, by a fixed set, at random, or in hindsight.

A mask takes rows x [rows, d_in] and the passage each is of, and says what is kept. What is left out may come back
through a low-rank copy of the weight (R-Sparse): y = (x * m) W^T + (x * (1 - m)) (U_r V_r)^T.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ....lab.errors import unknown
from ....lab.models.hooks import Tap
from ....saes.edit import Edit, Stage, added
from .modules import LinearModule

CRITERIA = ("abs", "abs_norm")
"""|x_i|, and |x_i| times the length of the weight's column i: how much the output can lose."""


class Mask(Protocol):
    """A rule that keeps some inputs of one linear map."""

    def keep(self, x: Float[Tensor, "rows d_in"], passage: Int[Tensor, " rows"]) -> Bool[Tensor, "rows d_in"]:
        """True where an input is kept."""
        ...

    def restored(self, dropped: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_out"] | None:
        """The part of the output that the dropped inputs still give; None for nothing."""
        ...


class _Plain:
    def restored(self, dropped: Tensor) -> Tensor | None:
        return None


@dataclass(frozen=True, eq=False)
class Threshold:
    """Inputs whose size is above a threshold; the rest goes through a low-rank copy of the weight.

    With `scale` 1 the size is |x_i|, with the norms of the weight's columns it is what the output can lose.
    """

    scale: Float[Tensor, " d_in"]
    threshold: float
    left: Float[Tensor, "d_out rank"]
    right: Float[Tensor, "rank d_in"]

    def keep(self, x: Tensor, passage: Tensor) -> Tensor:
        """By the threshold."""
        return x.abs() * self.scale > self.threshold

    def restored(self, dropped: Tensor) -> Tensor | None:
        """Through the low-rank copy, where it has a rank."""
        return (dropped @ self.right.T) @ self.left.T if len(self.right) else None


@dataclass(frozen=True, eq=False)
class Fixed(_Plain):
    """The same inputs at every token: of all passages, or of each its own."""

    kept: Bool[Tensor, "passages d_in"]
    """One row for all passages, or one for each."""

    def keep(self, x: Tensor, passage: Tensor) -> Tensor:
        """The mask of the passage."""
        return self.kept.expand(len(x), -1) if len(self.kept) == 1 else self.kept[passage]


@dataclass(frozen=True, eq=False)
class Random(_Plain):
    """A null: a share of the inputs, drawn anew at every token."""

    share: float
    rng: torch.Generator

    def keep(self, x: Tensor, passage: Tensor) -> Tensor:
        """At random."""
        return (torch.rand(x.shape, generator=self.rng) < self.share).to(x.device)


@dataclass(frozen=True, eq=False)
class Largest(_Plain):
    """The k inputs of every token that the output can lose most by: what a fixed set is measured against."""

    scale: Float[Tensor, " d_in"]
    k: int

    def keep(self, x: Tensor, passage: Tensor) -> Tensor:
        """The k largest."""
        sizes = x.abs() * self.scale
        return torch.zeros_like(x, dtype=torch.bool).scatter_(1, sizes.topk(self.k, dim=1).indices, True)


def scale_of(module: LinearModule, criterion: str) -> Float[Tensor, " d_in"]:
    """The factor by which the sizes of inputs are multiplied.

    Raises:
        InputError: an unknown criterion.
    """
    if criterion not in CRITERIA:
        raise unknown("criterion", criterion, CRITERIA)
    return module.norms if criterion == "abs_norm" else torch.ones_like(module.norms)


@contextmanager
def masking(
    masks: Mapping[LinearModule, Mask], positions: Bool[Tensor, "rows tokens"], first: int = 0
) -> Iterator[None]:
    """Apply masks to the inputs at some positions of every forward pass in the body; others stay bit for bit.

    Args:
        positions: where inputs are masked.
        first: the passage that the first row is of.
    """
    passage = first + positions.nonzero()[:, 0]
    with ExitStack() as handles:
        for module, mask in masks.items():
            for tap, hook in _masked(module, mask, passage).at(positions).items():
                handles.callback(tap.attach(hook).remove)
        yield


def _masked(module: LinearModule, mask: Mask, passage: Tensor) -> Edit[Tap]:
    """Write x * m at the input of a map, and add (x * (1 - m)) (U_r V_r)^T to its output."""
    into, out_of = module.input, module.output

    def run(read: Sequence[Tensor]) -> Sequence[Tensor | None]:
        rows = read[0].float()
        kept = mask.keep(rows, passage)
        return [rows * kept, mask.restored(rows * ~kept)]

    def combine(tap: Tap, rows: Tensor, terms: Sequence[Tensor]) -> Tensor:
        if tap == into:
            return terms[0]
        return added(rows, terms[0]) if terms else rows

    return Edit((into, out_of), combine, (Stage((into,), (into, out_of), run),))
