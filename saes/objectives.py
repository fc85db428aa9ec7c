"""What a training step minimises, apart from how: an objective turns a batch into gradients, the trainer applies them.

`Objective` is plain reconstruction of the selected codes; an architecture with penalties or parameters of its own
subclasses it in its own file. All gradients are those of half the summed squared error plus penalties in the same
unit; the trainer multiplies them by 2 / variance of the batch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from ..kernels.batch_topk import encode_batch_topk
from ..kernels.decode import Residual, decode_residual
from ..kernels.encode import Shadow
from ..kernels.update import Adam
from .parts import Part
from .schedules import L0Control
from .sparse_code import SparseCode

if TYPE_CHECKING:
    from .sae import PenaltyConfig, SparseAutoencoder


class Gradients(NamedTuple):
    """What one batch teaches."""

    code: SparseCode
    """What is decoded; an entry at zero is not active."""
    residual: Float32[Tensor, "batch d"]
    """x_hat - x, what the dead latents learn to explain."""
    squares: Float32[Tensor, " batch"]
    parts: tuple[Part, ...]
    """Blocks of latents in order, all of them together."""
    to_bias: Float32[Tensor, "batch d"]
    """Gradient to each row's x_hat: summed, it is b_dec's as the decoder's bias."""
    own: dict[str, Tensor]
    """Gradients of the objective's own parameters."""

    def plus(self, penalty: Float32[Tensor, " nnz"]) -> Gradients:
        """With a penalty's slope added to every code's gradient, where there is one block."""
        (part,) = self.parts
        part = part._replace(out=part.out._replace(grads=part.out.grads + penalty))
        return self._replace(parts=(part,))


class Objective:
    """Half the squared error of the reconstruction; the base of all objectives.

    Args:
        dictionary: whose weights are trained.
    """

    own_rate = 1.0
    """Learning rate of the own parameters, as a share of the weights'."""
    own_beta2: float | None = None
    """Adam's second decay for them; the weights' by default."""

    def __init__(self, dictionary: SparseAutoencoder) -> None:
        self.dictionary = dictionary
        self.own = self.own_parameters()
        self.moments = {name: torch.zeros(2, *tensor.shape, device=tensor.device) for name, tensor in self.own.items()}
        self.progress = 0.0
        """Share of the run that is done before the next batch."""

    def own_parameters(self) -> dict[str, Tensor]:
        """Tensors beside the weights and b_dec that Adam changes in place, by name."""
        return {}

    def start(self, centred: Float32[Tensor, "batch d"]) -> None:
        """Set from the first batch what selection needs; the weights are already at their start."""

    def gradients(
        self,
        centred: Float32[Tensor, "batch d"],
        rows: Float[Tensor, "batch d"],
        decoder: Tensor,
        shadow: Shadow | None,
    ) -> Gradients:
        """Encode, decode and differentiate one batch.

        Args:
            centred: rows less b_dec.
            rows: the same, or its bf16 copy: what gathers read.
            decoder: W_dec, or its bf16 copy.
            shadow: copies of the weights that the encoder reads.
        """
        code = self.dictionary.training_code(centred, shadow)
        out = self.decoded(code, rows, decoder)
        codes = (code.indptr, code.indices, code.values)
        return Gradients(code, out.residual, out.squares, (Part(slice(None), codes, out),), out.residual, {})

    def decoded(self, code: SparseCode, rows: Float[Tensor, "batch d"], decoder: Tensor) -> Residual:
        """Residual of the reconstruction without b_dec, and each code's gradient."""
        nothing = torch.zeros_like(self.dictionary.b_dec)
        return decode_residual(code.indptr, code.indices, code.values, decoder, nothing, rows, code.width)

    def update(self, own: dict[str, Tensor], adam: Adam) -> None:
        """Step the own parameters, after the weights."""
        adam = adam if self.own_beta2 is None else replace(adam, beta2=self.own_beta2)
        for name, gradient in own.items():
            adam_step(self.own[name], gradient, self.moments[name], adam, self.own_rate)
        self.settle()

    def settle(self) -> None:
        """After each step: bring parameters that depend on each other in line."""

    def state_dict(self) -> dict[str, Any]:
        """What a continued run needs beyond the dictionary."""
        return {"own": {**self.own}, "moments": {**self.moments}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        for kind, mine in (("own", self.own), ("moments", self.moments)):
            for name, tensor in mine.items():
                tensor.copy_(state[kind][name])


class PenalisedObjective(Objective):
    """Reconstruction plus a weighted sparsity penalty, its weight steered so that the L0 becomes the config's k."""

    def __init__(self, dictionary: SparseAutoencoder, config: PenaltyConfig) -> None:
        super().__init__(dictionary)
        self.control = L0Control(config.k, config.coefficient, config.warmup)

    def start_at(self, centred: Float32[Tensor, "batch d"], *, cut: bool) -> Float32[Tensor, ""]:
        """The bound on pre-activations at which the batch's L0 is k, after the encoder is scaled to fit those codes.

        The encoder (its bias still zero) is multiplied by the least-squares factor between the rows and their
        reconstruction. A first step then starts from about as many codes as the last one ends with, where a plain
        relu would start from half of all latents.

        Args:
            cut: whether codes lose the bound (a negative bias) or keep their full value (a threshold).
        """
        sae = self.dictionary
        kept = encode_batch_topk(centred, sae.W_enc, sae.b_enc, sae.config.k)
        bound = kept.values.min()
        values = kept.values - bound if cut else kept.values
        part = sae.decode(SparseCode(kept.indptr, kept.indices, values, sae.n_latents)) - sae.b_dec
        factor = (part * centred).sum() / part.square().sum().clamp_min(1e-12)
        sae.W_enc.mul_(factor)
        return bound * factor

    def weight(self, code: SparseCode) -> float:
        """The penalty's weight for a batch with these codes.

        The host reads how many are active: it has just waited for the size of the codes.
        """
        active = int((code.values != 0).sum())
        return self.control.measure(active / max(1, len(code)), self.progress)

    def state_dict(self) -> dict[str, Any]:
        """Also the controller's."""
        return {**super().state_dict(), "control": self.control.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        super().load_state_dict(state)
        self.control.load_state_dict(state["control"])


def adam_step(p: Tensor, gradient: Tensor, moments: Float32[Tensor, "two ..."], adam: Adam, rate: float = 1.0) -> None:
    """One step of Adam on a small dense parameter, in place, at `rate` times the learning rate."""
    first, second = moments
    first.lerp_(gradient, 1 - adam.beta1)
    second.lerp_(gradient.square(), 1 - adam.beta2)
    if adam.device is None:
        lr, (correct1, correct2) = adam.lr, adam.corrections
    else:
        lr, correct1, correct2 = (adam.device[i].float() for i in (0, 3, 4))
    p.sub_(rate * lr / correct1 * first / ((second / correct2).sqrt() + adam.eps))


def latent_sums(
    indices: Int[Tensor, " nnz"], terms: Float32[Tensor, " nnz"], n_latents: int
) -> Float32[Tensor, " n_latents"]:
    """The sum of each latent's terms in a fixed order: equal bits on every run."""
    sums = terms.new_zeros(n_latents)
    if sums.device.type == "cpu":
        return sums.index_add_(0, indices.long(), terms)  # one after another
    return sums.index_put_((indices.long(),), terms, accumulate=True)  # sorted first; index_add_ would use atomics
