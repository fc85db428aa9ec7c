"""Muon: momentum, orthogonalised, on matrices, and Adam on biases (Jordan et al. 2024; `torch.optim.Muon`)."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ....kernels.tuples import Adam, Weights
from ....lab.runs.consumers import load_optimizer_state, optimizer_state
from ...architectures.objective import adam_step
from .dense import DenseOptimizer, to_unit_rows

MUON_MOMENTUM = 0.95
"""Jordan et al. 2024."""


class Muon(DenseOptimizer):
    """Muon on encoder, decoder and skip, with steps as large as Adam's (`match_rms_adamw`); Adam on the biases."""

    def allocate(self) -> None:
        """Make the library's momentum of matrices and Adam's moments of b_enc."""
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
        """Step a skip matrix as the other matrices."""
        self._muon_step([gradient], self.matrices[2:], adam.lr)

    def _muon_step(self, gradients: list[Tensor], matrices: list[Tensor], lr: float) -> None:
        for group in self.muon.param_groups:
            group["lr"] = lr
        for matrix, gradient in zip(matrices, gradients, strict=True):
            matrix.grad = gradient
        self.muon.step()
        self.muon.zero_grad()

    def forget(self, latents: Int[Tensor, " some"]) -> None:
        """Set momentum and moments of these latents to zero."""
        for matrix in self.matrices[:2]:
            if "momentum_buffer" in self.muon.state[matrix]:
                self.muon.state[matrix]["momentum_buffer"][latents] = 0
        self.forget_biases(latents)

    def forget_biases(self, latents: Int[Tensor, " some"]) -> None:
        """Set Adam's moments of these latents' b_enc to zero."""
        self.encoder_bias_moments[:, latents] = 0

    def state_dict(self) -> dict[str, Any]:
        """Momentum and moments of all parameters."""
        return {
            "muon": optimizer_state(self.muon),
            "bias_moments": self.bias_moments,
            "encoder_bias_moments": self.encoder_bias_moments,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        load_optimizer_state(self.muon, state["muon"])
        self.bias_moments.copy_(state["bias_moments"])
        self.encoder_bias_moments.copy_(state["encoder_bias_moments"])
