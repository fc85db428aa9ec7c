"""Signum: signs of gradients with schedule-free averaging (Defazio et al. 2024, arXiv 2405.15682, eq. 3-5)."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ....kernels.tuples import Adam, LowPrecisionCopy, RowGradients, Weights
from ...architectures.objective import Gradients, TrainingRows
from .dense import DenseOptimizer, to_unit_rows


class ScheduleFreeSignum(DenseOptimizer):
    """Schedule-free signum: z moves against the sign of the gradient at y = (1 - beta1) z + beta1 x.

    The mean x of all z is saved, each weighed by its squared learning rate, so that the warm-up hardly counts. No decay
    of the learning rate is needed: give decay=0. Adam steps b_dec, a skip and an objective's extra parameters.
    """

    def allocate(self) -> None:
        """Make x and z, which take their values at the first step: weights are set from the first batch."""
        self.z = Weights(*map(torch.zeros_like, self.weights))
        self.x = Weights(*map(torch.zeros_like, self.weights))
        self.weight_sum = 0.0
        skip = self.dictionary.W_skip
        self.skip_moments = None if skip is None else torch.zeros(2, *skip.shape, device=skip.device)

    def apply(self, gradients: Weights, adam: Adam) -> None:
        """Step z, take it into the mean x, and set the weights between them."""
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
        self,
        gradients: Gradients,
        rows: TrainingRows,
        scale: Tensor,
        adam: Adam,
        extra: RowGradients | None,
        low_precision: LowPrecisionCopy | None,
    ) -> Int[Tensor, " n"]:
        """Step all parameters; where the objective then moved the biases to hold the L0, move z and x with them."""
        fired = super().step(gradients, rows, scale, adam, extra, low_precision)
        moved = self.weights.b_enc - torch.lerp(self.z.b_enc, self.x.b_enc, self.config.beta1)
        self.z.b_enc.add_(moved)
        self.x.b_enc.add_(moved)
        return fired

    def forget(self, latents: Int[Tensor, " some"]) -> None:
        """Set x and z of these latents to the weights."""
        for z, x, y in zip(self.z, self.x, self.weights, strict=True):
            z[latents] = y[latents]
            x[latents] = y[latents]

    def forget_biases(self, latents: Int[Tensor, " some"]) -> None:
        """Set x and z of these latents' b_enc to the weights."""
        self.z.b_enc[latents] = self.x.b_enc[latents] = self.weights.b_enc[latents]

    def averaged(self) -> dict[str, Tensor]:
        """Tensors of x, once there was a step."""
        if not self.weight_sum:
            return {}
        return {**self.x._asdict(), "W_dec": torch.nn.functional.normalize(self.x.W_dec, dim=1)}

    def state_dict(self) -> dict[str, Any]:
        """State of x, z and Adam."""
        return {
            "x": self.x._asdict(),
            "z": self.z._asdict(),
            "weight_sum": self.weight_sum,
            "bias_moments": self.bias_moments,
            "skip": {} if self.skip_moments is None else {"moments": self.skip_moments},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        for weights, saved in ((self.x, state["x"]), (self.z, state["z"])):
            for name, tensor in weights._asdict().items():
                tensor.copy_(saved[name])
        self.weight_sum = state["weight_sum"]
        self.bias_moments.copy_(state["bias_moments"])
        if self.skip_moments is not None:
            self.skip_moments.copy_(state["skip"]["moments"])
