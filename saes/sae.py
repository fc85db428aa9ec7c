"""Sparse autoencoder: the part all architectures share. A subclass says which pre-activations become codes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..kernels.dispatch import Precision
from ..kernels.encode import Shadow
from ..lab.errors import InputError
from .dictionary import Dictionary, DictionaryConfig
from .sparse_code import SparseCode


@dataclass(frozen=True)
class SAEConfig(DictionaryConfig):
    """A dictionary that keeps k latents a row (on average, where the architecture is ragged)."""

    k: int = 32
    """Active latents a row."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.k <= self.n_latents:
            raise InputError(f"k must be from 1 to n_latents={self.n_latents}, got {self.k}")


class SparseAutoencoder(Dictionary):
    """pre = (x - b_dec) @ W_enc.T + b_enc; codes are the selected, non-negative pre-activations.

    Tensors: W_enc [n_latents, d_in], b_enc [n_latents], W_dec [n_latents, d_in], b_dec [d_in].
    """

    config: SAEConfig
    W_enc: Tensor
    b_enc: Tensor
    ragged = False
    """Whether rows may hold different numbers of codes."""
    precision: Precision = "auto"
    """Which products propose codes; see `kernels.dispatch`."""

    def __init__(self, config: SAEConfig) -> None:
        super().__init__(config)
        n, d = config.n_latents, config.d_in
        for name, shape in {"W_enc": (n, d), "b_enc": (n,), "W_dec": (n, d), "b_dec": (d,)}.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape), requires_grad=False))

    def centred(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "rows d"]:
        """Rows with `b_dec` subtracted: what the encoder sees."""
        return self.rows(x) - self.b_dec

    def training_code(self, centred: Float[Tensor, "batch d"], shadow: Shadow | None) -> SparseCode:
        """Codes of one training batch (a batch-wide rule may differ from the inference rule)."""
        raise NotImplementedError

    def observe(self, code: SparseCode) -> None:
        """Learn from the codes of a training batch what inference needs; nothing for most architectures."""

    def fold_scale(self, scale: float) -> None:
        """Take the dictionary from activations multiplied by `scale` back to activation units, in place.

        Decoder rows keep their norm; biases (and thresholds, in subclasses) are divided.
        """
        self.b_enc /= scale
        self.b_dec /= scale
