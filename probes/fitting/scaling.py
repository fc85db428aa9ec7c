"""`Scaling` centres and scales rows before a probe is fitted, and folds into the probe's weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from ...lab.errors import unknown

CONSTANT = 1e-5
"""Coordinates whose spread is no more than this share of their mean differ by rounding only, and get no weight."""

SCALINGS = ("coordinate", "overall", "centre", "none")
"""Each coordinate by its own spread; all by one number, as codes should be, whose rare latents would otherwise weigh as
much as common ones; centred only; as they are."""


@dataclass(frozen=True, eq=False)
class Scaling:
    """Rows are read as (x - mean) / spread. Always measured on training rows alone."""

    kind: str
    """One of `SCALINGS`."""
    mean: Float[Tensor, " d"]
    """Vector that is subtracted."""
    spread: Float[Tensor, " d"]
    """Divisor of each coordinate; infinite where it is constant, so that it gets no weight."""

    @classmethod
    def of(cls, x: Float[Tensor, "rows d"], kind: str = "coordinate") -> Self:
        """The scaling that these rows give.

        Raises:
            InputError: an unknown kind.
        """
        mean = x.mean(0)
        return cls.from_moments(mean, (x - mean).square().mean(0), kind)

    @classmethod
    def from_moments(cls, mean: Float[Tensor, " d"], variance: Float[Tensor, " d"], kind: str) -> Self:
        """The scaling of rows with this mean and variance of every coordinate.

        Raises:
            InputError: an unknown kind.
        """
        if kind not in SCALINGS:
            raise unknown("scaling", kind, SCALINGS)
        if kind == "none":
            return cls(kind, torch.zeros_like(mean), torch.ones_like(mean))
        square = variance if kind == "coordinate" else variance.mean().expand_as(variance)
        spread = torch.ones_like(mean) if kind == "centre" else square.sqrt()
        varies = variance.sqrt() > CONSTANT * mean.abs() if kind == "centre" else spread > CONSTANT * mean.abs()
        return cls(kind, mean, torch.where(varies, spread, torch.inf))

    def __call__(self, x: Float[Tensor, "rows d"]) -> Float[Tensor, "rows d"]:
        """Rows scaled."""
        return (x - self.mean) / self.spread

    def fold(
        self, weight: Float[Tensor, "outputs d"], bias: Float[Tensor, " outputs"]
    ) -> tuple[Float[Tensor, "outputs d"], Float[Tensor, " outputs"]]:
        """Weight and bias for rows as they are, from those for scaled rows."""
        weight = weight / self.spread
        return weight, bias - weight @ self.mean
