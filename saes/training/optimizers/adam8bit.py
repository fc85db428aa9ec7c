"""Adam whose moments take a byte an entry, in blocks with a scale each (Dettmers et al. 2022, arXiv 2110.02861).

The library is bitsandbytes, which has kernels for CPUs and GPUs: `pip install 'monosem[adam8bit]'`. It sees the dense
gradient, so a step costs memory and time of the size of the weights; what it spares is six of the eight bytes that
Adam keeps of each weight between steps. torchao has the same and compiles it anew for each shape, a minute on a CPU.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ....kernels.tuples import Adam, Weights
from ....lab.errors import InputError
from ....lab.runs.consumers import load_optimizer_state, optimizer_state
from ...architectures.objective import adam_step
from .dense import DenseOptimizer, to_unit_rows


def library() -> Any:
    """Import bitsandbytes.

    Raises:
        InputError: it is not installed, or does not load.
    """
    try:
        return importlib.import_module("bitsandbytes")
    except (ImportError, OSError) as error:
        raise InputError(
            f"optimizer 'adam8bit' needs bitsandbytes, and it cannot be imported ({error}): pip install"
            " 'monosem[adam8bit]', or use adam"
        ) from None


class Adam8bit(DenseOptimizer):
    """8-bit Adam on encoder and decoder; Adam in fp32 on the biases, a skip and an objective's extra parameters."""

    def allocate(self) -> None:
        """Make the library's optimizer of the matrices and the moments of b_enc."""
        self.matrices = [self.weights.W_enc, self.weights.W_dec]
        betas = (self.config.beta1, self.config.beta2)
        self.adam = library().optim.Adam8bit(self.matrices, lr=1.0, betas=betas, min_8bit_size=0)
        self.encoder_bias_moments = torch.zeros(2, *self.weights.b_enc.shape, device=self.weights.b_enc.device)
        skip = self.dictionary.W_skip
        self.skip_moments = None if skip is None else torch.zeros(2, *skip.shape, device=skip.device)

    def apply(self, gradients: Weights, adam: Adam) -> None:
        """Step the matrices together, then b_enc."""
        for group in self.adam.param_groups:
            group["lr"] = adam.lr
        for matrix, gradient in zip(self.matrices, (gradients.W_enc, gradients.W_dec), strict=True):
            matrix.grad = gradient
        self.adam.step()
        self.adam.zero_grad()
        adam_step(self.weights.b_enc, gradients.b_enc, self.encoder_bias_moments, adam)
        to_unit_rows(self.weights.W_dec)

    def forget_biases(self, latents: Int[Tensor, " some"]) -> None:
        """Set the moments of these latents' b_enc to zero."""
        self.encoder_bias_moments[:, latents] = 0

    def state_dict(self) -> dict[str, Any]:
        """State of the library's optimizer and of the moments."""
        return {
            "adam8bit": optimizer_state(self.adam),
            "bias_moments": self.bias_moments,
            "encoder_bias_moments": self.encoder_bias_moments,
            "skip": {} if self.skip_moments is None else {"moments": self.skip_moments},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        load_optimizer_state(self.adam, state["adam8bit"])
        self.bias_moments.copy_(state["bias_moments"])
        self.encoder_bias_moments.copy_(state["encoder_bias_moments"])
        if self.skip_moments is not None:
            self.skip_moments.copy_(state["skip"]["moments"])
