"""GroupMax: latents in k groups of neighbours, the largest of each kept (EleutherAI's sparsify, pull request 49).

Cheaper than an exact top-k where it runs on dense pre-activations, at some cost in FVU: two latents of one group are
never active together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ...kernels.tuples import Codes, LowPrecisionCopy
from ...lab.errors import InputError
from ..registry import register
from ..sparse_code import SparseCode
from .sae import SAEConfig, SparseAutoencoder, select_rows


@dataclass(frozen=True)
class GroupMaxConfig(SAEConfig):
    """k is the number of groups, and of codes a row."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_latents % self.k:
            raise InputError(f"groupmax splits the latents into k equal groups: n_latents={self.n_latents} is not"
                             f" a multiple of k={self.k}")  # fmt: skip


@register
class GroupMax(SparseAutoencoder):
    """Keeps the largest pre-activation of each of k groups of n_latents / k consecutive latents, then a relu."""

    architecture = "groupmax"
    config_type = GroupMaxConfig
    k_is_free = False

    def training_code(self, centred: Float[Tensor, "batch d"], low_precision: LowPrecisionCopy | None) -> SparseCode:
        """k codes a row, zero where a whole group was negative."""
        return select_rows(self, centred, low_precision, self._largest)

    def _largest(self, pre: Float[Tensor, "rows n"]) -> Codes:
        size = self.n_latents // self.config.k
        values, places = pre.view(len(pre), -1, size).max(2)
        starts = torch.arange(0, self.n_latents, size, device=pre.device)
        return Codes(values.clamp_min_(0), (places + starts).int())
