"""Objectives of training: an objective turns a batch into gradients, and a trainer applies them.

`Objective` is plain reconstruction of the selected codes; an architecture with penalties or parameters of its own
subclasses it in its own file. All gradients are those of half the summed squared error plus penalties in the same
unit; the trainer multiplies them by 2 / variance of the batch.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from ...kernels.batch_topk import encode_batch_topk
from ...kernels.chunks import chunk_rows
from ...kernels.code_gradients import code_gradients
from ...kernels.decode import decode_residual
from ...kernels.tuples import Adam, LowPrecisionCopy, Residual, RowGradients
from ..sparse_code import SparseCode
from .block_update import LatentBlock
from .schedules import L0Control

if TYPE_CHECKING:
    from .sae import PenaltyConfig, SparseAutoencoder


WAKING = 1 / 2048
"""Share of a batch's rows, at least one, on which a woken latent fires."""


class TrainingRows(NamedTuple):
    """One batch in the units of training; input and target of an autoencoder are one tensor."""

    input: Float32[Tensor, "batch d_in"]
    """Input of the encoder, centred."""
    target: Float32[Tensor, "batch d_out"]
    """Target of the codes: the activations less b_dec and less the part of the skip."""
    input_copy: Float[Tensor, "batch d_in"]
    """Input that the update gathers: a bf16 copy where it halves the bytes, else the same tensor."""
    target_copy: Float[Tensor, "batch d_out"]
    """Target that the decode reads, likewise."""
    upstream: Float32[Tensor, "batch d_out"] | None = None
    """Gradient at x_hat of another loss than half the squared error."""

    @classmethod
    def of(
        cls, x: Float32[Tensor, "batch d_in"], target: Float32[Tensor, "batch d_out"], low_precision: bool = False
    ) -> TrainingRows:
        """Make rows, with bf16 copies where `low_precision` asks for them."""
        copy = x.bfloat16() if low_precision else x
        if target is x:
            return cls(x, x, copy, copy)
        return cls(x, target, copy, target.bfloat16() if low_precision else target)


class Gradients(NamedTuple):
    """Gradients of one batch, and the codes and errors they come from."""

    code: SparseCode
    """Decoded codes; an entry at zero is not active."""
    residual: Float32[Tensor, "batch d_out"]
    """x_hat less the target, or the upstream gradient; idle latents learn to explain it."""
    squares: Float32[Tensor, " batch"]
    """Squared error of each row."""
    parts: tuple[LatentBlock, ...]
    """Blocks of consecutive latents that together hold all latents in order."""
    to_bias: Float32[Tensor, "batch d_out"]
    """Gradient at each row's x_hat: its sum is the gradient of b_dec, its product with the input that of the skip."""
    extra_parameters: dict[str, Tensor]
    """Gradients of the objective's extra parameters, by name."""
    further: RowGradients | None = None
    """Gradient rows of the weights beyond those of the blocks."""

    def plus(self, penalty: Float32[Tensor, " nnz"]) -> Gradients:
        """Add the slope of a penalty to every code's gradient; for an objective of one block."""
        (part,) = self.parts
        part = part._replace(out=part.out._replace(grads=part.out.grads + penalty))
        return self._replace(parts=(part,))


class Objective:
    """Half the squared error of the reconstruction; the base of all objectives.

    Args:
        dictionary: dictionary in training.
    """

    takes_upstream = True
    """True if the objective can learn from a given gradient at x_hat in place of the residual."""
    threshold_in_bias = False
    """True if the activation threshold is stored in `b_enc`."""
    steers = False
    """True if the gradients of a batch change the objective itself."""
    extra_beta2: float | None = None
    """Adam's second decay for the extra parameters; None takes that of the weights."""
    fits_start = True
    """True if the encoder is scaled to fit the first batch; False where it starts unrelated to its decoder."""

    def __init__(self, dictionary: SparseAutoencoder) -> None:
        self.dictionary = dictionary
        self.extra_parameters = self.new_extra_parameters()
        self.moments = {name: tensor.new_zeros(2, *tensor.shape) for name, tensor in self.extra_parameters.items()}
        self.progress = 0.0
        """Share of the run done before the next batch."""

    def new_extra_parameters(self) -> dict[str, Tensor]:
        """Make the tensors beside the weights and b_dec that Adam changes in place, by name."""
        return {}

    def start(self, rows: TrainingRows) -> None:
        """Set thresholds and scale from the first batch; the weights are already at their start."""

    def adopt(self) -> None:
        """Set thresholds and scale from a trained dictionary, in the units of training."""

    def gradients(self, rows: TrainingRows, decoder: Tensor, low_precision: LowPrecisionCopy | None) -> Gradients:
        """Encode, decode and differentiate one batch.

        Args:
            rows: input and target of the batch.
            decoder: W_dec, or its bf16 copy.
            low_precision: low-precision copies of the weights that the encoder reads.
        """
        code = self.dictionary.training_code(rows.input, low_precision)
        out = self.decoded(code, rows, decoder)
        codes = (code.indptr, code.indices, code.values)
        return Gradients(code, out.residual, out.squares, (LatentBlock(slice(None), codes, out),), out.residual, {})

    def decoded(self, code: SparseCode, rows: TrainingRows, decoder: Tensor) -> Residual:
        """Decode without b_dec: the residual (or the upstream gradient), and each code's gradient."""
        nothing = torch.zeros_like(self.dictionary.b_dec)
        out = decode_residual(code.indptr, code.indices, code.values, decoder, nothing, rows.target_copy, code.width)
        if rows.upstream is None:
            return out
        grads = code_gradients(code.indptr, code.indices, decoder, rows.upstream) * (code.values != 0)
        return Residual(rows.upstream.to(out.residual.dtype), out.squares, grads)

    def update(self, gradients: dict[str, Tensor], adam: Adam) -> None:
        """Step the extra parameters by their gradients, after the weights."""
        adam = adam if self.extra_beta2 is None else replace(adam, beta2=self.extra_beta2)
        for name, gradient in gradients.items():
            adam_step(self.extra_parameters[name], gradient, self.moments[name], adam)
        self.settle()

    def bound(self) -> Tensor | float:
        """Threshold on x @ W_enc of the median latent; 0 where codes are the largest few."""
        return 0.0

    def restart(self, latents: Int[Tensor, " some"], bound: Tensor) -> None:
        """Set the extra parameters of latents that start anew under a bound, and forget their moments."""
        for moments in self.moments.values():
            moments[:, latents] = 0

    def wake(self, rows: TrainingRows, latents: Int[Tensor, " some"]) -> None:
        """Raise the biases of idle latents until each fires on `WAKING` of these rows.

        Objectives with `threshold_in_bias` need this. The aid cannot help such latents: it sees codes, and a bias that
        silences a latent on all rows leaves none. On SmolLM2 the gap was 1.9 where Adam moves a bias by 0.002 a step.
        A latent that fires on as many rows keeps its bias.
        """
        W_enc, b_enc = self.dictionary.W_enc, self.dictionary.b_enc
        count = max(1, round(WAKING * len(rows.input)))  # the next largest product is at zero then, and does not fire
        rank = min(count + 1, len(rows.input))
        for some in latents.split(chunk_rows(len(rows.input), W_enc.device.type)):
            reached = (W_enc[some] @ rows.input.T).topk(rank, dim=1).values[:, -1]
            b_enc[some] = torch.maximum(b_enc[some], -reached)

    def settle(self) -> None:
        """Bring parameters that depend on each other in line, after each step."""

    def state_dict(self) -> dict[str, Any]:
        """State that a continued run needs beyond the dictionary."""
        return {"extra_parameters": {**self.extra_parameters}, "moments": {**self.moments}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        extra = state["own"] if "own" in state else state["extra_parameters"]  # the name in checkpoints written before
        for tensors, saved in ((self.extra_parameters, extra), (self.moments, state["moments"])):
            for name, tensor in tensors.items():
                tensor.copy_(saved[name])


class PenalisedObjective(Objective):
    """Reconstruction plus a weighted sparsity penalty, steered so that the L0 becomes the config's k.

    Two things are steered. The penalty's weight holds the L0 in the long run, slowly. The bounds of all latents
    therefore move together after every batch, towards where that batch would have had k codes a row; the penalty alone
    decides which latents are rare. Runs of 50 steps on SmolLM2 ended 1 to 30 % off k by the weight
    alone, and end within 3 % by both. A given coefficient switches both off.
    """

    steers = True
    rise: Tensor | float = 0.0
    """Distance by which the bounds rise after this batch."""

    def __init__(self, dictionary: SparseAutoencoder, config: PenaltyConfig) -> None:
        super().__init__(dictionary)
        self.control = L0Control(config.k, config.coefficient, config.warmup)

    def start_at(self, rows: TrainingRows, *, cut: bool) -> Float32[Tensor, ""]:
        """Find the bound on pre-activations at which the batch's L0 is k, and scale the encoder to fit those codes.

        Where `fits_start`, the encoder (its bias still zero) is multiplied by the least-squares factor between the
        targets and their reconstruction. A first step then starts from about as many codes as the last one ends with,
        where a plain relu would start from half of all latents.

        Args:
            cut: True if codes lose the bound (a negative bias), False if they keep their full value (a threshold).
        """
        sae = self.dictionary
        kept = encode_batch_topk(rows.input, sae.W_enc, sae.b_enc, sae.config.k)
        bound = kept.values.min()
        values = kept.values - bound if cut else kept.values
        if not self.fits_start:
            return bound
        part = sae.decode(SparseCode(kept.indptr, kept.indices, values, sae.n_latents)) - sae.b_dec
        factor = (part * rows.target).sum() / part.square().sum().clamp_min(1e-12)
        sae.W_enc.mul_(factor)
        return bound * factor

    def weight(self, code: SparseCode, margins: Float32[Tensor, " nnz"] | None = None) -> float:
        """Measure the L0 of a batch, return the penalty's weight for it, and set `rise`.

        With a active codes and a target of t, rise = trust * (|a - t|-th smallest margin), positive for a > t. For
        a < t the margins above the bounds stand for the unseen ones below. The host reads a: it has just waited for
        the size of the codes.

        Args:
            margins: distance of each code above its latent's bound, at most 0 for a code that is not active; by default
                the codes themselves.
        """
        margins = code.values if margins is None else margins
        active, rows = int((margins > 0).sum()), max(1, len(code))
        weight = self.control.measure(active / rows, self.progress)
        surplus = active - round(self.control.target * rows)
        rank = 0 if self.control.fixed else min(abs(surplus), active // 2)
        self.rise = 0.0
        if rank:
            distance = margins.masked_fill(margins <= 0, torch.inf).kthvalue(rank).values
            self.rise = math.copysign(self.control.trust, surplus) * distance
        return weight

    def update(self, gradients: dict[str, Tensor], adam: Adam) -> None:
        """Move the bounds by `rise`, then step the extra parameters."""
        self.raise_bounds(self.rise)
        super().update(gradients, adam)

    def raise_bounds(self, amount: Tensor | float) -> None:
        """Raise the threshold on pre-activations by the same amount for all latents."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """State of the objective and of its controller."""
        return {**super().state_dict(), "control": self.control.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        super().load_state_dict(state)
        self.control.load_state_dict(state["control"])


def common_bound(b_enc: Float32[Tensor, " n"]) -> Float32[Tensor, ""]:
    """bound = -min(median(b_enc), 0): a few silent latents do not move the median."""
    return -b_enc.median().clamp_max(0)


def adam_step(p: Tensor, gradient: Tensor, moments: Float32[Tensor, "two ..."], adam: Adam) -> None:
    """Take one step of Adam on a small dense parameter, in place."""
    first, second = moments
    first.lerp_(gradient, 1 - adam.beta1)
    second.lerp_(gradient.square(), 1 - adam.beta2)
    if adam.device is None:
        lr, (correct1, correct2) = adam.lr, adam.corrections
    else:
        lr, correct1, correct2 = (adam.device[i].float() for i in (0, 3, 4))
    p.sub_(lr / correct1 * first / ((second / correct2).sqrt() + adam.eps))


def latent_sums(
    indices: Int[Tensor, " nnz"], terms: Float32[Tensor, " nnz"], n_latents: int
) -> Float32[Tensor, " n_latents"]:
    """Sum the terms of each latent in a fixed order, which gives equal bits on every run."""
    sums = terms.new_zeros(n_latents)
    if sums.device.type == "cpu":
        return sums.index_add_(0, indices.long(), terms)  # one after another
    return sums.index_put_((indices.long(),), terms, accumulate=True)  # sorted first; index_add_ would use atomics
