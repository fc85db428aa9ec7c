"""`WeightAverage`: a running mean of the weights of a dictionary."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class WeightAverage:
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
        """Tensors of the mean, once there was a step."""
        if not self.tensors:
            return {}
        return {**self.tensors, "W_dec": torch.nn.functional.normalize(self.tensors["W_dec"], dim=1)}

    def state_dict(self) -> dict[str, Any]:
        """State that a continued run needs."""
        return {"steps": self.steps, "tensors": self.tensors}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Continue from `state_dict`."""
        self.steps = state["steps"]
        self.tensors = {name: tensor.clone().to(device) for name, tensor in state["tensors"].items()}
