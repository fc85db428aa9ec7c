"""TopK: the k largest pre-activations of each row (Gao et al. 2024, arXiv 2406.04093, section 2.3)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from ...kernels.tuples import LowPrecisionCopy
from ..registry import register
from ..sparse_code import SparseCode
from .sae import SparseAutoencoder, keep_largest


@register
class TopK(SparseAutoencoder):
    """Keeps the k largest pre-activations of every row, then a relu."""

    architecture = "topk"

    def training_code(self, centred: Float[Tensor, "batch d"], low_precision: LowPrecisionCopy | None) -> SparseCode:
        """k codes a row, zero where the pre-activation was negative."""
        return keep_largest(self, centred, low_precision)
