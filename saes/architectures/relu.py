"""ReLU codes under an L1 penalty, or an Lp one with p annealed (Bricken et al. 2023; Karvonen et al. 2024, 2408.00113).

Decoder rows have unit norm, so that the penalty sum |f| is also the one of decoder norms, sum |f| |W_dec|.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from ...kernels.tuples import LowPrecisionCopy
from ...lab.errors import InputError
from ..registry import register
from ..sparse_code import SparseCode
from .objective import Gradients, PenalisedObjective, TrainingRows, common_bound
from .sae import PenaltyConfig, SparseAutoencoder, keep_above
from .schedules import ramp

SMALLEST = 1e-2
"""Smallest f in the slope of |f|^p, which has no bound at 0 for p < 1."""


@dataclass(frozen=True)
class ReLUConfig(PenaltyConfig):
    """A ReLU dictionary under the penalty sum |f|^p."""

    p_end: float = 1.0
    """p at the end; 1 is plain L1. Below 1 large codes shrink less."""
    anneal_from: float = 0.3
    """Share of the run after which p falls linearly from 1."""
    anneal_to: float = 0.8
    """Share of the run at which it has reached `p_end`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.p_end <= 1:
            raise InputError(f"p_end must be above 0 and at most 1 (plain L1), got {self.p_end}")
        if not 0 <= self.anneal_from <= self.anneal_to <= 1:
            raise InputError("anneal_from and anneal_to are shares of the run in this order,"
                             f" got {self.anneal_from} and {self.anneal_to}")  # fmt: skip


@register
class ReLU(SparseAutoencoder):
    """Keeps every positive pre-activation."""

    architecture = "relu"
    config_type = ReLUConfig
    ragged = True
    config: ReLUConfig

    def training_code(self, centred: Float[Tensor, "batch d"], low_precision: LowPrecisionCopy | None) -> SparseCode:
        """A code for every positive pre-activation."""
        return keep_above(self, centred, self.b_enc.new_zeros(()), low_precision)

    def objective(self) -> PenalisedReLU:
        """Reconstruction plus the penalty on the codes."""
        return PenalisedReLU(self, self.config)


class PenalisedReLU(PenalisedObjective):
    """Adds weight * sum |f|^p to half the squared error."""

    dictionary: ReLU
    threshold_in_bias = True

    @property
    def p(self) -> float:
        """Exponent of the penalty at this point of the run."""
        config = self.dictionary.config
        return 1 + (config.p_end - 1) * ramp(self.progress, config.anneal_from, config.anneal_to)

    def start(self, rows: TrainingRows) -> None:
        """Set one negative bias for all latents, with which the batch's L0 is k."""
        bound = self.start_at(rows, cut=True)
        self.dictionary.b_enc.fill_(-bound)
        self.control.begin(float(bound) / 4)

    def adopt(self) -> None:
        """Start the penalty's weight as a first batch with these biases would."""
        self.control.begin(float(-self.dictionary.b_enc.mean()) / 4)

    def bound(self) -> Tensor:
        """Common threshold, from the biases."""
        return common_bound(self.dictionary.b_enc)

    def raise_bounds(self, amount: Tensor | float) -> None:
        """Lower all biases by the amount."""
        self.dictionary.b_enc.sub_(amount)

    def gradients(self, rows: TrainingRows, decoder: Tensor, low_precision: LowPrecisionCopy | None) -> Gradients:
        """Add the penalty's slope to every code's gradient."""
        gradients = super().gradients(rows, decoder, low_precision)
        slope = gradients.code.values.clamp_min(SMALLEST).pow(self.p - 1).mul_(self.p)
        return gradients.plus(slope * self.weight(gradients.code))
