"""`Units`: how training scales activations, and how a trained dictionary gets back to theirs.

Every source is multiplied by a number of its own, so that its entries have unit mean square around their mean: no
source of a crosscoder outweighs another, and no learning rate depends on the scale of a model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float32
from torch import Tensor

from ...lab.errors import InputError
from ..dictionary import DictionaryConfig


class Units(NamedTuple):
    """Factors of activations, set from the first batch."""

    input: Float32[Tensor, " d_in"]
    """Of every column that the encoder reads."""
    output: Float32[Tensor, " d_out"]
    """Of every column that is reconstructed; an autoencoder's are those of `input`."""
    centre: Float32[Tensor, " d_in"]
    """Centre of a transcoder's input in training, in multiplied units, subtracted before the encoder; folding moves it
    into b_enc."""
    scales: tuple[float, ...]
    """The factor of each source, then that of each target of a transcoder."""
    scale: float
    """Divisor of codes when folded: the geometric mean of the factors of the reconstructed sources."""

    @classmethod
    def of(cls, config: DictionaryConfig, scales: Sequence[float], centre: Float32[Tensor, " d_in"]) -> Units:
        """From the factors of all sources, and those of a transcoder's targets, which are equally wide."""
        place = config.place
        widths, goals = [port.width for port in place.sources], scales
        read = torch.cat([centre.new_full((width,), scale) for width, scale in zip(widths, scales, strict=False)])
        written = read
        if place.targets:
            goals = scales[len(widths) :]
            written = centre.new_tensor(goals).repeat_interleave(place.targets[0].width // len(goals))
        return cls(read, written, centre, tuple(scales), math.prod(goals) ** (1 / len(goals)))

    @classmethod
    def measure(
        cls, config: DictionaryConfig, x: Float32[Tensor, "rows d_in"], target: Float32[Tensor, "rows d_out"] | None,
        sites: Sequence[object],
    ) -> Units:  # fmt: skip
        """The factors for a first batch.

        Args:
            target: None for an autoencoder.
            sites: what the sources are, then the targets; for messages.

        Raises:
            InputError: all rows of one of them are equal.
        """
        parts = list(x.split([port.width for port in config.place.sources], 1))
        parts += [] if target is None else target.chunk(len(sites) - len(parts), 1)
        scales = [_unit_factor(part, site) for part, site in zip(parts, sites, strict=True)]
        units = cls.of(config, scales, torch.zeros_like(x[0]))
        return units if target is None else units._replace(centre=geometric_median(x * units.input))

    def inverse(self) -> Units:
        """Units that take a folded dictionary back to the units of training, where `centre` is zero."""
        return Units(1 / self.input, 1 / self.output, -self.centre, tuple(1 / s for s in self.scales), 1 / self.scale)

    def state_dict(self) -> dict[str, Any]:
        """Arguments of `of`, for a checkpoint."""
        return {"scales": list(self.scales), "centre": self.centre}


def _unit_factor(x: Float32[Tensor, "rows d"], site: object) -> float:
    spread = (x - x.mean(0)).square().mean().sqrt()
    if not spread > 0:
        raise InputError(f"all {len(x)} rows of the first batch at {site} are equal: nothing to learn")
    return float(1 / spread)


WEISZFELD_STEPS = 50


def geometric_median(x: Float32[Tensor, "rows d"]) -> Float32[Tensor, " d"]:
    """The point with the least summed distance to the rows (Weiszfeld's iteration)."""
    guess = x.mean(0)
    for _ in range(WEISZFELD_STEPS):
        weight = 1 / (x - guess).norm(dim=1).clamp_min(1e-8)
        guess = (weight / weight.sum()) @ x
    return guess
