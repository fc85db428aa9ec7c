"""BatchTopK: batch * k codes a batch in training, a fixed threshold at inference (Bussmann et al. 2024, 2412.06410)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ...kernels.batch_topk import encode_batch_topk
from ...kernels.dispatch import choose
from ...kernels.threshold import encode_threshold
from ...kernels.tuples import LowPrecisionCopy
from ..registry import register
from ..sparse_code import SparseCode
from .sae import SAEConfig, SparseAutoencoder

MEMORY = 30
"""Batch number t moves the running mean of the smallest kept codes by MEMORY / (t + MEMORY): it remembers the last
thirtieth of the run, long or short. A fixed 100 batches gave a held-out L0 a third off k after 50 steps on SmolLM2."""

SLOWEST = 0.01
"""The mean never moves by less than this."""


@register
class BatchTopK(SparseAutoencoder):
    """Keeps the batch * k largest pre-activations of a training batch; at inference all above `threshold`.

    `threshold` is the running mean of the smallest code kept in each training batch. It is -1 before the first
    batch, and `encode` then keeps every positive pre-activation.
    """

    architecture = "batchtopk"
    ragged = True
    threshold: Tensor

    def __init__(self, config: SAEConfig) -> None:
        super().__init__(config)
        self.register_buffer("threshold", torch.tensor(-1.0))

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "*batch d"]) -> SparseCode:
        """Every pre-activation above the threshold: about k a row."""
        return SparseCode(*encode_threshold(self.centred(x), self.W_enc, self.b_enc, self.threshold), self.n_latents)

    def training_code(self, centred: Float[Tensor, "batch d"], low_precision: LowPrecisionCopy | None) -> SparseCode:
        """batch * k codes."""
        precision = choose(centred.device, self.precision).encode
        ragged = encode_batch_topk(
            centred, self.W_enc, self.b_enc, self.config.k, precision=precision, low_precision=low_precision
        )
        return SparseCode(*ragged, self.n_latents)

    def observe(self, code: SparseCode, step: int) -> None:
        """Move the running threshold towards the batch's smallest code."""
        if len(code.values):
            self.threshold.lerp_(code.values.min(), max(SLOWEST, MEMORY / (step + MEMORY)))

    def fold_scale(self, scale: float) -> None:
        """Divide biases and threshold by the scale; an unset threshold stays unset."""
        super().fold_scale(scale)
        self.threshold.copy_(torch.where(self.threshold < 0, self.threshold, self.threshold / scale))
