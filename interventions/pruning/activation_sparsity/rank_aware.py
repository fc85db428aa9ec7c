"""R-Sparse: keep the inputs that matter, send the rest through a low-rank copy (Zhang et al. 2025, arXiv 2504.19449).

A budget of (1 - sparsity) of the weights is split by a share: channels = d_in (1 - sparsity) share are read in full,
and the rest pays for the rank, at d_in + d_out weights each. Nothing is for free: the share is searched, not assumed.
Sparsity counts weights that are read; whether that saves time depends on a gather kernel.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ....lab.errors import InputError
from .masks import Threshold, scale_of
from .modules import LinearModule


class Budget(NamedTuple):
    """How the weights that may be read are spent."""

    channels: int
    rank: int

    def spent(self, d_in: int, d_out: int) -> float:
        """Share of the d_in * d_out weights that are read."""
        return (self.channels * d_out + self.rank * (d_in + d_out)) / (d_in * d_out)


def rank_budget(d_in: int, d_out: int, sparsity: float, share: float) -> Budget:
    """Channels and rank that never cost more than (1 - sparsity) of the weights.

    Raises:
        InputError: sparsity or share outside [0, 1].
    """
    for name, value in {"sparsity": sparsity, "share": share}.items():
        if not 0 <= value <= 1:
            raise InputError(f"{name} must be from 0 to 1, got {value}")
    affordable = d_in * (1 - sparsity) * (1 + 1e-12)  # 576 * (1 - 0.9) is a little below 57.6
    channels = min(int(affordable * share), d_in)
    rank = int(max(affordable * d_out - channels * d_out, 0) / (d_in + d_out)) if channels < d_in else 0
    return Budget(channels, min(rank, d_in, d_out))


class Factors(NamedTuple):
    """The singular value decomposition W = left diag(1) right, singular values in `left`."""

    left: Float[Tensor, "d_out full"]
    right: Float[Tensor, "full d_in"]

    @classmethod
    def of(cls, weight: Float[Tensor, "d_out d_in"]) -> Factors:
        """All of it; a copy of rank r is the first r columns and rows."""
        left, sizes, right = torch.linalg.svd(weight, full_matrices=False)
        return cls(left * sizes, right)


def calibrated(
    module: LinearModule,
    x: Float[Tensor, "rows d_in"],
    budget: Budget,
    criterion: str = "abs_norm",
    factors: Factors | None = None,
) -> Threshold:
    """The mask whose threshold leaves `budget.channels` inputs a token, on average over the rows given.

    Args:
        x: calibration inputs; a threshold from a few hundred is noisy, so measure what is kept on others.
        factors: those of the weight, where they are at hand.
    """
    scale = scale_of(module, criterion)
    d_in, dropped = x.shape[1], x.shape[1] - budget.channels
    sizes = (x.abs() * scale).flatten()
    threshold = -1.0 if not dropped else float(sizes.kthvalue(max(1, round(len(sizes) * dropped / d_in))).values)
    factored = factors or Factors.of(module.weight)
    return Threshold(scale, threshold, factored.left[:, : budget.rank], factored.right[: budget.rank])


def residual_weight(module: LinearModule, mask: Threshold) -> Float[Tensor, "d_out d_in"]:
    """The weights minus their low-rank copy: times the dropped inputs, they give the error of a mask."""
    return module.weight - mask.left @ mask.right


@torch.no_grad()
def greedy_order(
    x: Float[Tensor, "rows d_in"], weight: Float[Tensor, "d_out d_in"], drops: int
) -> Int[Tensor, "rows d_in"]:
    """When each input is left out if the one whose loss changes the output least always goes next; d_in for never.

    Args:
        weight: of the map, or what its low-rank copy lacks.
        drops: how many steps to take; a shorter run is the beginning of a longer one.
    """
    gram = weight.T @ weight
    diagonal = gram.diagonal()
    order = torch.full_like(x, x.shape[1], dtype=torch.int64)
    left, overlap = torch.zeros_like(x), torch.zeros_like(x)  # inf where left out; of w_i with all that is lost
    rows, costs_alone = torch.arange(len(x), device=x.device), x.square() * diagonal
    for step in range(drops):
        worst = torch.addcmul(costs_alone + left, x, overlap, value=2).argmin(1)
        order[rows, worst] = step
        left[rows, worst] = torch.inf
        overlap += x[rows, worst][:, None] * gram[worst]
    return order


@torch.no_grad()
def greedy_oracle(
    x: Float[Tensor, "rows d_in"],
    weight: Float[Tensor, "d_out d_in"],
    kept: Int[Tensor, " rows"],
    order: Int[Tensor, "rows d_in"] | None = None,
) -> Bool[Tensor, "rows d_in"]:
    """Inputs to keep, chosen with the output in hand.

    Greedy, so not the very best choice, which is NP-hard; where the largest |x_i| |w_i| do better, they are taken.

    Args:
        kept: how many inputs every row keeps.
        order: of `greedy_order`, with enough steps; computed by default.
    """
    drops = x.shape[1] - kept
    order = greedy_order(x, weight, int(drops.max())) if order is None else order
    keep = order >= drops[:, None]
    sizes = x.abs() * torch.linalg.vector_norm(weight, dim=0)
    largest = sizes.argsort(dim=1, descending=True).argsort(dim=1) < kept[:, None]
    better = _lost(x, ~largest, weight) < _lost(x, ~keep, weight)
    return torch.where(better[:, None], largest, keep)


def _lost(x: Tensor, dropped: Tensor, weight: Tensor) -> Float[Tensor, " rows"]:
    return ((x * dropped) @ weight.T).square().sum(1)
