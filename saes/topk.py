"""TopK: the k largest pre-activations of each row (Gao et al. 2024, arXiv 2406.04093, section 2.3)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ..kernels.dispatch import choose
from ..kernels.encode import Shadow, encode_topk
from .sae import SparseAutoencoder
from .sparse_code import SparseCode


class TopK(SparseAutoencoder):
    """Keeps the k largest pre-activations of every row, then a relu."""

    architecture = "topk"

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "*batch d"]) -> SparseCode:
        """k codes a row, zero where the pre-activation was negative."""
        return self.training_code(self.centred(x), None)

    def training_code(self, centred: Float[Tensor, "batch d"], shadow: Shadow | None) -> SparseCode:
        """The same rule as at inference."""
        precision = choose(centred.device, self.precision).encode
        values, columns = encode_topk(
            centred, self.W_enc, self.b_enc, self.config.k, precision=precision, shadow=shadow
        )
        return SparseCode.fixed(values.clamp_min_(0), columns, self.n_latents)
