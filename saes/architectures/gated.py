"""Gated: one product decides which latents are active and, rescaled, how much (Rajamanoharan et al. 2024, 2404.16014).

    gate = x W_enc + b_enc        magnitude = relu(exp(r_mag) * x W_enc + b_mag)        f = 1[gate > 0] * magnitude

The penalty is on relu(gate) and does not shrink the magnitudes; so that open gates mean something, relu(gate) must
also reconstruct the row, through a decoder that this term does not train (section 3.2).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ...kernels.tuples import LowPrecisionCopy
from ..registry import register
from ..sparse_code import SparseCode
from .block_update import LatentBlock
from .objective import Gradients, PenalisedObjective, TrainingRows, common_bound, latent_sums
from .sae import PenaltyConfig, SparseAutoencoder, keep_above

PRESENT = 1e-30
"""Value of a code with an open gate and no magnitude: the encoder learns from it and the decoder does not."""


@register
class Gated(SparseAutoencoder):
    """Codes where the gate's pre-activation is positive; `b_enc` is the gate's bias, r_mag and b_mag [n_latents]."""

    architecture = "gated"
    config_type = PenaltyConfig
    ragged = True
    data_share = 0.0
    config: PenaltyConfig
    r_mag: Tensor
    b_mag: Tensor

    def __init__(self, config: PenaltyConfig) -> None:
        super().__init__(config)
        for name in ("r_mag", "b_mag"):
            self.register_parameter(name, nn.Parameter(torch.zeros(config.n_latents), requires_grad=False))

    def training_code(self, centred: Float[Tensor, "batch d"], low_precision: LowPrecisionCopy | None) -> SparseCode:
        """A code for every open gate, zero where its magnitude is not positive."""
        return self.magnitudes(self.gates(centred, low_precision))

    def gates(self, centred: Float[Tensor, "batch d"], low_precision: LowPrecisionCopy | None) -> SparseCode:
        """Every positive pre-activation of the gates."""
        return keep_above(self, centred, self.b_enc.new_zeros(()), low_precision)

    def magnitudes(self, gates: SparseCode) -> SparseCode:
        """The codes of some open gates."""
        columns = gates.indices.long()
        products = gates.values - self.b_enc[columns]
        values = torch.addcmul(self.b_mag[columns], self.r_mag.exp()[columns], products).clamp_min_(0)
        return SparseCode(gates.indptr, gates.indices, values, gates.n_latents)

    def fold_scale(self, scale: float) -> None:
        """Divide all biases by the scale, the magnitudes' included."""
        super().fold_scale(scale)
        self.b_mag /= scale

    def shift(self, constant: Float[Tensor, " n"]) -> None:
        """Add the constant to gates and, rescaled, to magnitudes."""
        super().shift(constant)
        self.b_mag += self.r_mag.exp() * constant

    def objective(self) -> GatedObjective:
        """Reconstruction from the codes and from the gates, plus the penalty on the gates."""
        return GatedObjective(self, self.config)


class GatedObjective(PenalisedObjective):
    """Half of both squared errors plus weight * sum relu(gate).

    Trained in place of b_mag is `offset` in magnitude = relu(exp(r_mag) * gate + offset), so that
    b_mag = offset + exp(r_mag) * b_enc: the gate is then the only way to the encoder, and a code has one gradient.
    """

    dictionary: Gated
    threshold_in_bias = True

    def new_extra_parameters(self) -> dict[str, Tensor]:
        """The logarithm of the magnitudes' scale, and their offset from it."""
        return {"r_mag": self.dictionary.r_mag.data, "offset": torch.zeros_like(self.dictionary.b_mag)}

    def start(self, rows: TrainingRows) -> None:
        """Set gates that open where the batch's L0 is k, and magnitudes without the gates' bias."""
        bound = self.start_at(rows, cut=False)
        self.dictionary.b_enc.fill_(-bound)
        self.extra_parameters["offset"].fill_(bound)
        self.settle()
        self.control.begin(float(bound))

    def adopt(self) -> None:
        """Set the offset from the trained biases, and the penalty's weight as a first batch with these gates would."""
        sae = self.dictionary
        self.extra_parameters["offset"].copy_(sae.b_mag - sae.r_mag.exp() * sae.b_enc)
        self.control.begin(float(-sae.b_enc.mean()))

    def bound(self) -> Tensor:
        """Common threshold, from the gates' biases."""
        return common_bound(self.dictionary.b_enc)

    def wake(self, rows: TrainingRows, latents: Int[Tensor, " some"]) -> None:
        """Raise the gates' biases alone; magnitudes keep their values."""
        super().wake(rows, latents)
        sae = self.dictionary
        self.extra_parameters["offset"][latents] = (sae.b_mag - sae.r_mag.exp() * sae.b_enc)[latents]
        self.moments["offset"][:, latents] = 0

    def restart(self, latents: Int[Tensor, " some"], bound: Tensor) -> None:
        """Set magnitudes to the size of the products."""
        super().restart(latents, bound)
        self.extra_parameters["r_mag"][latents] = 0
        self.extra_parameters["offset"][latents] = bound

    def gradients(self, rows: TrainingRows, decoder: Tensor, low_precision: LowPrecisionCopy | None) -> Gradients:
        """Sum each gate's gradient from its magnitude, its own reconstruction and the penalty."""
        gates = self.dictionary.gates(rows.input, low_precision)
        code = self.dictionary.magnitudes(gates)
        out = self.decoded(code, rows, decoder)
        n, columns = gates.n_latents, gates.indices
        through = out.grads * self.dictionary.r_mag.exp()[columns.long()]
        total = self.decoded(gates, rows._replace(upstream=None), decoder).grads + through + self.weight(gates)
        codes = (code.indptr, code.indices, code.values.clamp_min(PRESENT))
        extra = {
            "r_mag": latent_sums(columns, through * gates.values, n),
            "offset": latent_sums(columns, out.grads, n),
        }
        part = LatentBlock(slice(None), codes, out._replace(grads=total))
        return Gradients(code, out.residual, out.squares, (part,), out.residual, extra)

    def raise_bounds(self, amount: Tensor | float) -> None:
        """Lower the gates' biases; magnitudes keep their values."""
        self.dictionary.b_enc.sub_(amount)
        self.extra_parameters["offset"].add_(amount * self.dictionary.r_mag.exp())

    def settle(self) -> None:
        """b_mag = offset + exp(r_mag) * b_enc."""
        self.dictionary.b_mag.copy_(
            torch.addcmul(self.extra_parameters["offset"], self.dictionary.r_mag.exp(), self.dictionary.b_enc)
        )
