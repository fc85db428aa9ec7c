"""What turns the gradients of a batch into new weights: Adam fused into the update, or an optimiser of whole matrices.

    adam, active_row   one pass over the latents from codes to new weights; no gradient tensor (`kernels.update`)
    muon               momentum, orthogonalised, on matrices, Adam on biases (Jordan et al. 2024; torch.optim.Muon)
    adam8bit           Adam with moments of a byte each, from a library (`adam8bit`)
    signum             signs of gradients with schedule-free averaging (Defazio et al. 2024, arXiv 2405.15682, eq. 3-5)

All but the first see the dense gradient, so a step costs memory and time of the size of the weights whatever fired. All
keep decoder rows at unit norm and leave an objective's own parameters to Adam.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ...kernels.encode import Shadow, make_shadow
from ...kernels.update import Adam, RowGradients, Updated, Weights, apply_gradients, new_moments
from ...lab.runs.consumers import load_optimiser_state, optimiser_state
from ..architectures.block_update import State, gradient_rows, step_parts
from ..architectures.objective import Gradients, Objective, Rows, adam_step
from .config import TrainConfig

MUON_MOMENTUM = 0.95
"""Jordan et al. 2024."""


class Optimiser:
    """Adam, fused into the update; the base of the others.

    Args:
        objective: its dictionary's weights are changed in place, and its own parameters.
    """

    def __init__(self, objective: Objective, config: TrainConfig) -> None:
        sae = objective.dictionary
        self.objective, self.dictionary, self.config = objective, sae, config
        self.weights = Weights(sae.W_enc.data, sae.W_dec.data, sae.b_enc.data)
        self.bias_moments = torch.zeros(2, *sae.b_dec.shape, device=sae.b_dec.device)
        self.allocate()

    def allocate(self) -> None:
        """Make the state of everything but b_dec."""
        self.moments = new_moments(
            self.weights, self.config.beta1, self.config.optimizer == "active_row" or not self.config.beta1
        )
        skip = self.dictionary.W_skip
        self.skip_moments = None if skip is None else torch.zeros(2, *skip.shape, device=skip.device)

    def step(
        self, found: Gradients, rows: Rows, scale: Tensor, adam: Adam, extra: RowGradients | None, shadow: Shadow | None
    ) -> Int[Tensor, " n"]:
        """Update all parameters, and the low-precision copies, from one batch.

        Args:
            scale: multiplies every gradient but those of `extra`.
            adam: the step's learning rate, decays and number.
            extra: gradient rows of the dead-latent aid.

        Returns:
            How many codes of each latent had a gradient.
        """
        to_bias = found.to_bias.sum(0, dtype=torch.float32) * scale
        if self.config.clip_norm is None:
            updated = self.sparse_step(found, rows, scale, adam, extra, shadow)
        else:
            given, fired = gradient_rows(found.parts, rows.input_copy, scale, len(self.weights.b_enc), extra)
            factor = (self.config.clip_norm / given.norm()).clamp_max(1)
            updated = self.rows_step(given.times(factor), adam, shadow)._replace(fired=fired)
            to_bias, scale = to_bias * factor, scale * factor
        reads_bias = self.dictionary.config.d_out is None  # b_dec is what the encoder subtracts, too
        gradient = to_bias - updated.to_input if reads_bias else to_bias
        adam_step(self.dictionary.b_dec, gradient, self.bias_moments, adam)
        if self.dictionary.W_skip is not None:
            self.skip_step(self.dictionary.W_skip, (found.to_bias.float().T @ rows.input) * scale, adam)
        self.objective.update({name: gradient * scale for name, gradient in found.own.items()}, adam)
        return updated.fired

    def sparse_step(
        self, found: Gradients, rows: Rows, scale: Tensor, adam: Adam, extra: RowGradients | None, shadow: Shadow | None
    ) -> Updated:
        """Step encoder, decoder and b_enc."""
        return step_parts(found.parts, rows.input_copy, scale, State(self.weights, self.moments, shadow), adam, extra)

    def rows_step(self, rows: RowGradients, adam: Adam, shadow: Shadow | None) -> Updated:
        """The same from gradient rows; `fired` counts nothing."""
        return apply_gradients(rows, self.weights, self.moments, adam, shadow)

    def skip_step(self, weight: Tensor, gradient: Tensor, adam: Adam) -> None:
        """Step a skip matrix."""
        assert self.skip_moments is not None, "a dictionary with a skip has its moments"
        adam_step(weight, gradient, self.skip_moments, adam)

    def forget(self, latents: Int[Tensor, " some"]) -> None:
        """Start the state of these latents anew; their weights have just been set."""
        for moments in (self.moments.first, self.moments.second):
            for tensor in moments or ():
                tensor[latents] = 0

    def forget_biases(self, latents: Int[Tensor, " some"]) -> None:
        """The same where only b_enc has been set."""
        for moments in (self.moments.first, self.moments.second):
            if moments is not None:
                moments.b_enc[latents] = 0

    def averaged(self) -> dict[str, Tensor]:
        """What is saved in place of the dictionary's tensors of these names."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a continued run needs beyond the weights."""
        moments = self.moments
        return {
            "first": moments.first._asdict() if moments.first else {},
            "second": moments.second._asdict(),
            "touched": {} if moments.touched is None else {"at": moments.touched},
            "bias_moments": self.bias_moments,
            "skip": {} if self.skip_moments is None else {"moments": self.skip_moments},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`; the weights are already restored."""
        for mine, saved in ((self.moments.first, state["first"]), (self.moments.second, state["second"])):
            for name, tensor in (mine._asdict() if mine else {}).items():
                tensor.copy_(saved[name])
        if self.moments.touched is not None:
            self.moments.touched.copy_(state["touched"]["at"])
        self.bias_moments.copy_(state["bias_moments"])
        if self.skip_moments is not None:
            self.skip_moments.copy_(state["skip"]["moments"])


class DenseOptimiser(Optimiser):
    """The base of optimisers that see whole gradients: encoder, decoder (along the sphere) and b_enc."""

    def sparse_step(
        self, found: Gradients, rows: Rows, scale: Tensor, adam: Adam, extra: RowGradients | None, shadow: Shadow | None
    ) -> Updated:
        """By way of gradient rows."""
        given, fired = gradient_rows(found.parts, rows.input_copy, scale, len(self.weights.b_enc), extra)
        return self.rows_step(given, adam, shadow)._replace(fired=fired)

    def rows_step(self, rows: RowGradients, adam: Adam, shadow: Shadow | None) -> Updated:
        """Spread the rows over all latents, step, and put decoder rows back to unit norm."""
        latents, weights = rows.latents.long(), self.weights
        to_input = rows.b_enc[:, 0] @ weights.W_enc[latents]
        unit = weights.W_dec[latents]
        along = rows.W_dec - (rows.W_dec * unit).sum(1, keepdim=True) * unit
        dense = Weights(*map(torch.zeros_like, weights))
        for gradient, part in zip(dense, (rows.W_enc, along, rows.b_enc[:, 0]), strict=True):
            gradient[latents] = part
        self.apply(dense, adam)
        if shadow is not None:
            precision = "int8" if shadow.scale is not None else "bf16"
            for kept, new in zip(shadow, make_shadow(weights.W_enc, weights.W_dec, precision) or (), strict=True):
                if kept is not None and new is not None:
                    kept.copy_(new)
        return Updated(to_input, latents.new_zeros(len(weights.b_enc)))

    def apply(self, gradients: Weights, adam: Adam) -> None:
        """Change the weights, decoder rows at unit norm again."""
        raise NotImplementedError


class Muon(DenseOptimiser):
    """Muon on encoder, decoder and skip, with steps as large as Adam's (`match_rms_adamw`); Adam on the biases."""

    def allocate(self) -> None:
        """The library's momentum for matrices, Adam's moments for b_enc."""
        matrices = [self.weights.W_enc, self.weights.W_dec]
        self.matrices = matrices if self.dictionary.W_skip is None else [*matrices, self.dictionary.W_skip.data]
        self.muon = torch.optim.Muon(
            self.matrices, lr=1.0, weight_decay=0.0, momentum=MUON_MOMENTUM, adjust_lr_fn="match_rms_adamw"
        )
        self.encoder_bias_moments = torch.zeros(2, *self.weights.b_enc.shape, device=self.weights.b_enc.device)

    def apply(self, gradients: Weights, adam: Adam) -> None:
        """Step the matrices together."""
        self._muon_step([gradients.W_enc, gradients.W_dec], self.matrices[:2], adam.lr)
        adam_step(self.weights.b_enc, gradients.b_enc, self.encoder_bias_moments, adam)
        to_unit_rows(self.weights.W_dec)

    def skip_step(self, weight: Tensor, gradient: Tensor, adam: Adam) -> None:
        """A matrix like the others."""
        self._muon_step([gradient], self.matrices[2:], adam.lr)

    def _muon_step(self, gradients: list[Tensor], matrices: list[Tensor], lr: float) -> None:
        for group in self.muon.param_groups:
            group["lr"] = lr
        for matrix, gradient in zip(matrices, gradients, strict=True):
            matrix.grad = gradient
        self.muon.step()
        self.muon.zero_grad()

    def forget(self, latents: Int[Tensor, " some"]) -> None:
        """Momentum and moments of these rows."""
        for matrix in self.matrices[:2]:
            if "momentum_buffer" in self.muon.state[matrix]:
                self.muon.state[matrix]["momentum_buffer"][latents] = 0
        self.forget_biases(latents)

    def forget_biases(self, latents: Int[Tensor, " some"]) -> None:
        """Adam's moments of b_enc."""
        self.encoder_bias_moments[:, latents] = 0

    def state_dict(self) -> dict[str, Any]:
        """Momentum and moments."""
        return {
            "muon": optimiser_state(self.muon),
            "bias_moments": self.bias_moments,
            "encoder_bias_moments": self.encoder_bias_moments,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        load_optimiser_state(self.muon, state["muon"])
        self.bias_moments.copy_(state["bias_moments"])
        self.encoder_bias_moments.copy_(state["encoder_bias_moments"])


class ScheduleFreeSignum(DenseOptimiser):
    """z goes against the sign of the gradient at y = (1 - beta1) z + beta1 x; x, the mean of all z, is what is saved.

    The mean weighs every z by its squared learning rate, so that those of the warm-up hardly count. It needs no decay
    of the learning rate: give decay=0. b_dec, a skip and an objective's own parameters are Adam's.
    """

    def allocate(self) -> None:
        """x and z; `start` gives them their values, as weights are set from the first batch."""
        self.z = Weights(*map(torch.zeros_like, self.weights))
        self.x = Weights(*map(torch.zeros_like, self.weights))
        self.weight_sum = 0.0
        skip = self.dictionary.W_skip
        self.skip_moments = None if skip is None else torch.zeros(2, *skip.shape, device=skip.device)

    def apply(self, gradients: Weights, adam: Adam) -> None:
        """One step of z, the mean, and the weights between them."""
        if not self.weight_sum:
            for z, x, y in zip(self.z, self.x, self.weights, strict=True):
                z.copy_(y)
                x.copy_(y)
        self.weight_sum += adam.lr**2
        share = adam.lr**2 / max(self.weight_sum, 1e-30)
        for z, x, gradient in zip(self.z, self.x, gradients, strict=True):
            z.sub_(adam.lr * gradient.sign())
            if z is self.z.W_dec:
                to_unit_rows(z)
            x.lerp_(z, share)
        for y, z, x in zip(self.weights, self.z, self.x, strict=True):
            torch.lerp(z, x, self.config.beta1, out=y)
        to_unit_rows(self.weights.W_dec)

    def step(
        self, found: Gradients, rows: Rows, scale: Tensor, adam: Adam, extra: RowGradients | None, shadow: Shadow | None
    ) -> Int[Tensor, " n"]:
        """As the others; where the objective then moved the biases to hold the L0, z and x move with them."""
        fired = super().step(found, rows, scale, adam, extra, shadow)
        moved = self.weights.b_enc - torch.lerp(self.z.b_enc, self.x.b_enc, self.config.beta1)
        self.z.b_enc.add_(moved)
        self.x.b_enc.add_(moved)
        return fired

    def forget(self, latents: Int[Tensor, " some"]) -> None:
        """x and z are where the weights are."""
        for z, x, y in zip(self.z, self.x, self.weights, strict=True):
            z[latents] = y[latents]
            x[latents] = y[latents]

    def forget_biases(self, latents: Int[Tensor, " some"]) -> None:
        """As the others."""
        self.z.b_enc[latents] = self.x.b_enc[latents] = self.weights.b_enc[latents]

    def averaged(self) -> dict[str, Tensor]:
        """x, once there is one."""
        if not self.weight_sum:
            return {}
        return {**self.x._asdict(), "W_dec": torch.nn.functional.normalize(self.x.W_dec, dim=1)}

    def state_dict(self) -> dict[str, Any]:
        """x and z beside the weights."""
        return {
            "x": self.x._asdict(),
            "z": self.z._asdict(),
            "weight_sum": self.weight_sum,
            "bias_moments": self.bias_moments,
            "skip": {} if self.skip_moments is None else {"moments": self.skip_moments},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        for mine, saved in ((self.x, state["x"]), (self.z, state["z"])):
            for name, tensor in mine._asdict().items():
                tensor.copy_(saved[name])
        self.weight_sum = state["weight_sum"]
        self.bias_moments.copy_(state["bias_moments"])
        if self.skip_moments is not None:
            self.skip_moments.copy_(state["skip"]["moments"])


def make_optimiser(objective: Objective, config: TrainConfig) -> Optimiser:
    """The optimiser that `config` names.

    Raises:
        InputError: its library is not installed.
    """
    if config.optimizer == "adam8bit":
        from .adam8bit import Adam8bit

        return Adam8bit(objective, config)
    kinds = {"muon": Muon, "signum": ScheduleFreeSignum}
    return kinds.get(config.optimizer, Optimiser)(objective, config)


class Mean:
    """A running mean of a dictionary's tensors: decay rises as (1 + t) / (10 + t) up to `decay`, as in short runs.

    Decoder rows of the mean are brought back to unit norm where it is read.
    """

    def __init__(self, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.tensors: dict[str, Tensor] = {}

    @torch.no_grad()
    def observe(self, tensors: dict[str, Tensor]) -> None:
        """Take in the tensors after a step."""
        if not self.tensors:
            self.tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        share = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, mean in self.tensors.items():
            mean.lerp_(tensors[name], share)
        self.steps += 1

    def averaged(self) -> dict[str, Tensor]:
        """The mean, once there is one."""
        if not self.tensors:
            return {}
        return {**self.tensors, "W_dec": torch.nn.functional.normalize(self.tensors["W_dec"], dim=1)}

    def state_dict(self) -> dict[str, Any]:
        """What a continued run needs."""
        return {"steps": self.steps, "tensors": self.tensors}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Continue from `state_dict`."""
        self.steps = state["steps"]
        self.tensors = {name: tensor.clone().to(device) for name, tensor in state["tensors"].items()}


def to_unit_rows(weight: Tensor) -> None:
    """Scale every row to unit norm, in place."""
    weight.div_(weight.norm(dim=1, keepdim=True).clamp_min(1e-12))
