"""JumpReLU: codes above a learned threshold, one for each latent (Rajamanoharan et al. 2024, arXiv 2407.14435).

Three penalties make it sparse:

    step        weight * L0, as published; thresholds alone feel it
    quadratic   step, plus a fixed multiple of (L0 / k - 1)^2, which also pulls thresholds down where L0 is below k
    tanh        weight * sum tanh(f / scale) (Conerly et al. 2025, Anthropic); codes feel it too

The weight and the common level of the thresholds are steered to the asked L0 in each. Thresholds start where the
first batch's L0 is k, and the bandwidth of the straight-through estimate is a share of that start: no number depends
on the scale of the activations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ...kernels.code_gradients import code_gradients
from ...kernels.dispatch import choose
from ...kernels.jumprelu import encode_jumprelu, jumprelu_gradients, jumprelu_values
from ...kernels.tuples import LowPrecisionCopy
from ...lab.errors import InputError, unknown
from ..registry import register
from ..sparse_code import SparseCode
from .block_update import LatentBlock
from .objective import Gradients, PenalisedObjective, TrainingRows
from .sae import PenaltyConfig, SparseAutoencoder, keep_above

PENALTIES = ("quadratic", "step", "tanh")

QUADRATIC = 2.0
"""Weight of k (L0 / k - 1)^2 / 2 in squared starting thresholds; keeping a code at its threshold gains half of one."""


@dataclass(frozen=True)
class JumpReLUConfig(PenaltyConfig):
    """Thresholds learn by a rectangle estimate; a penalty makes them rise."""

    penalty: Literal["quadratic", "step", "tanh"] = "quadratic"
    """See the module. On SmolLM2 a weight alone could not bring an L0 of half the asked one back in 200 steps."""
    bandwidth: float = 0.5
    """Width of the rectangle in starting thresholds. Wider is smoother, and biased."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.penalty not in PENALTIES:
            raise unknown("penalty", self.penalty, PENALTIES)
        if not 0 < self.bandwidth <= 2:
            raise InputError(f"bandwidth must be above 0 and at most 2 starting thresholds, got {self.bandwidth}")


@register
class JumpReLU(SparseAutoencoder):
    """Keeps every pre-activation above its latent's threshold `theta` [n_latents], at its full value."""

    architecture = "jumprelu"
    config_type = JumpReLUConfig
    ragged = True
    config: JumpReLUConfig
    theta: Tensor

    def __init__(self, config: JumpReLUConfig) -> None:
        super().__init__(config)
        self.register_parameter("theta", nn.Parameter(torch.zeros(config.n_latents), requires_grad=False))

    def training_code(self, centred: Float[Tensor, "batch d"], low_precision: LowPrecisionCopy | None) -> SparseCode:
        """Every pre-activation above its threshold."""
        return keep_above(self, centred, self.theta, low_precision)

    def fold_scale(self, scale: float) -> None:
        """Divide biases and thresholds by the scale."""
        super().fold_scale(scale)
        self.theta /= scale

    def objective(self) -> JumpReLUObjective:
        """Reconstruction plus the penalty."""
        return JumpReLUObjective(self, self.config)


class JumpReLUObjective(PenalisedObjective):
    """Straight-through gradients to the thresholds; entries of the window below them decode to nothing."""

    dictionary: JumpReLU

    extra_beta2 = 0.99
    unit = 1.0
    """The thresholds' start: what bandwidth and tanh are measured in."""

    def new_extra_parameters(self) -> dict[str, Tensor]:
        """Thresholds, by name."""
        return {"theta": self.dictionary.theta.data}

    def start(self, rows: TrainingRows) -> None:
        """One threshold for all, at which the batch's L0 is k; then the best encoder scale for those codes."""
        self.dictionary.theta.fill_(self.start_at(rows, cut=False))
        self.unit = float(self.dictionary.theta[0])
        self.control.begin(self.unit**2 / 2)

    def adopt(self) -> None:
        """Take the mean threshold as the unit."""
        self.unit = float(self.dictionary.theta.mean())
        self.control.begin(self.unit**2 / 2)

    def gradients(self, rows: TrainingRows, decoder: Tensor, low_precision: LowPrecisionCopy | None) -> Gradients:
        """Codes above theta teach encoder and decoder; theta learns from its window."""
        sae, config = self.dictionary, self.dictionary.config
        precision, width = choose(rows.input.device, sae.precision).encode, config.bandwidth * self.unit
        raw = encode_jumprelu(
            rows.input, sae.W_enc, sae.b_enc, sae.theta, width, precision=precision, low_precision=low_precision
        )
        code = SparseCode(raw.indptr, raw.indices, jumprelu_values(raw, sae.theta), sae.n_latents)
        out = self.decoded(code, rows, decoder)
        per_code, per_active = self._penalty(code)
        to_codes = code_gradients(*raw[:2], decoder, out.residual) + per_code
        extra = {"theta": jumprelu_gradients(raw, to_codes, sae.theta, width, per_active).to_theta}
        part = LatentBlock(slice(None), (code.indptr, code.indices, code.values), out._replace(grads=to_codes))
        return Gradients(code, out.residual, out.squares, (part,), out.residual, extra)

    def _penalty(self, code: SparseCode) -> tuple[Tensor | float, float]:
        """Slope of the penalty at every code, and its weight on each active latent."""
        active = code.values > 0
        margins = code.values - self.dictionary.theta[code.indices.long()] * active
        weight, k = self.weight(code, margins), self.dictionary.config.k
        match self.dictionary.config.penalty:
            case "tanh":
                return weight / self.unit * (1 - torch.tanh(code.values / self.unit).square()), 0.0
            case "quadratic":
                return 0.0, weight + QUADRATIC * self.unit**2 * (int(active.sum()) / len(code) / k - 1)
            case _:
                return 0.0, weight

    def bound(self) -> Tensor:
        """Median threshold."""
        return self.dictionary.theta.median()

    def restart(self, latents: Int[Tensor, " some"], bound: Tensor) -> None:
        """Set thresholds to the bound."""
        super().restart(latents, bound)
        self.extra_parameters["theta"][latents] = bound

    def raise_bounds(self, amount: Tensor | float) -> None:
        """Raise all thresholds."""
        self.dictionary.theta.add_(amount)

    def settle(self) -> None:
        """Clamp thresholds at zero: a lower one would keep negative codes."""
        self.dictionary.theta.clamp_min_(0)

    def state_dict(self) -> dict[str, Any]:
        """State of the objective, its controller and the unit."""
        return {**super().state_dict(), "unit": self.unit}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        super().load_state_dict(state)
        self.unit = state["unit"]
