"""`Optimizer`: Adam, fused into the update: one pass over the latents from codes to new weights, no gradient tensor."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ....kernels.tuples import Adam, LowPrecisionCopy, RowGradients, Updated, Weights
from ....kernels.update import apply_gradients, new_moments
from ...architectures.block_update import State, gradient_rows, step_parts
from ...architectures.objective import Gradients, Objective, TrainingRows, adam_step
from ..config import TrainConfig


class Optimizer:
    """Adam, fused into the update; the base of the others.

    Args:
        objective: the weights of its dictionary and its extra parameters are changed in place.
    """

    def __init__(self, objective: Objective, config: TrainConfig) -> None:
        sae = objective.dictionary
        self.objective, self.dictionary, self.config = objective, sae, config
        self.weights = Weights(sae.W_enc.data, sae.W_dec.data, sae.b_enc.data)
        self.bias_moments = torch.zeros(2, *sae.b_dec.shape, device=sae.b_dec.device)
        self.allocate()

    def allocate(self) -> None:
        """Make the state of all parameters except b_dec."""
        self.moments = new_moments(
            self.weights, self.config.beta1, self.config.optimizer == "active_row" or not self.config.beta1
        )
        skip = self.dictionary.W_skip
        self.skip_moments = None if skip is None else torch.zeros(2, *skip.shape, device=skip.device)

    def step(
        self,
        gradients: Gradients,
        rows: TrainingRows,
        scale: Tensor,
        adam: Adam,
        extra: RowGradients | None,
        low_precision: LowPrecisionCopy | None,
    ) -> Int[Tensor, " n"]:
        """Update all parameters, and the low-precision copies, from one batch.

        Args:
            scale: factor on every gradient except those of `extra`.
            adam: learning rate, decays and number of the step.
            extra: gradient rows of the dead-latent aid.

        Returns:
            How many codes of each latent had a gradient.
        """
        to_bias = gradients.to_bias.sum(0, dtype=torch.float32) * scale
        if self.config.clip_norm is None:
            updated = self.sparse_step(gradients, rows, scale, adam, extra, low_precision)
        else:
            given, fired = gradient_rows(gradients.parts, rows.input_copy, scale, len(self.weights.b_enc), extra)
            factor = (self.config.clip_norm / given.norm()).clamp_max(1)
            updated = self.rows_step(given.times(factor), adam, low_precision)._replace(fired=fired)
            to_bias, scale = to_bias * factor, scale * factor
        reads_bias = not self.dictionary.place.targets  # b_dec is what the encoder subtracts, too
        gradient = to_bias - updated.to_input if reads_bias else to_bias
        adam_step(self.dictionary.b_dec, gradient, self.bias_moments, adam)
        if self.dictionary.W_skip is not None:
            self.skip_step(self.dictionary.W_skip, (gradients.to_bias.float().T @ rows.input) * scale, adam)
        self.objective.update({name: gradient * scale for name, gradient in gradients.extra_parameters.items()}, adam)
        return updated.fired

    def sparse_step(
        self,
        gradients: Gradients,
        rows: TrainingRows,
        scale: Tensor,
        adam: Adam,
        extra: RowGradients | None,
        low_precision: LowPrecisionCopy | None,
    ) -> Updated:
        """Step encoder, decoder and b_enc."""
        state = State(self.weights, self.moments, low_precision)
        return step_parts(gradients.parts, rows.input_copy, scale, state, adam, extra)

    def rows_step(self, rows: RowGradients, adam: Adam, low_precision: LowPrecisionCopy | None) -> Updated:
        """Step encoder, decoder and b_enc by gradient rows; `fired` of the result counts nothing."""
        return apply_gradients(rows, self.weights, self.moments, adam, low_precision)

    def skip_step(self, weight: Tensor, gradient: Tensor, adam: Adam) -> None:
        """Step a skip matrix."""
        assert self.skip_moments is not None, "a dictionary with a skip has its moments"
        adam_step(weight, gradient, self.skip_moments, adam)

    def forget(self, latents: Int[Tensor, " some"]) -> None:
        """Start the state of latents anew whose weights have just been set."""
        for moments in (self.moments.first, self.moments.second):
            for tensor in moments or ():
                tensor[latents] = 0

    def forget_biases(self, latents: Int[Tensor, " some"]) -> None:
        """Start the state of latents anew whose b_enc alone has just been set."""
        for moments in (self.moments.first, self.moments.second):
            if moments is not None:
                moments.b_enc[latents] = 0

    def averaged(self) -> dict[str, Tensor]:
        """Tensors that are saved in place of the dictionary's tensors of the same names."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """State that a continued run needs beyond the weights."""
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
        for moments, saved in ((self.moments.first, state["first"]), (self.moments.second, state["second"])):
            for name, tensor in (moments._asdict() if moments else {}).items():
                tensor.copy_(saved[name])
        if self.moments.touched is not None:
            self.moments.touched.copy_(state["touched"]["at"])
        self.bias_moments.copy_(state["bias_moments"])
        if self.skip_moments is not None:
            self.skip_moments.copy_(state["skip"]["moments"])
