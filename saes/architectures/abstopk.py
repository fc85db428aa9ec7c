"""AbsTopK: the k largest pre-activations of each row by magnitude, their signs kept (Zhu et al. 2025, 2510.00404).

One latent then stands for a direction and its opposite.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from ...kernels.topk import topk
from ...kernels.tuples import Codes, LowPrecisionCopy
from ..registry import register
from ..sparse_code import SparseCode
from .sae import SparseAutoencoder, select_rows


@register
class AbsTopK(SparseAutoencoder):
    """Keeps the k pre-activations of largest magnitude in every row; codes are signed, and there is no relu."""

    architecture = "abstopk"

    def training_code(self, centred: Float[Tensor, "batch d"], low_precision: LowPrecisionCopy | None) -> SparseCode:
        """k signed codes a row."""
        return select_rows(self, centred, low_precision, self._largest)

    def _largest(self, pre: Float[Tensor, "rows n"]) -> Codes:
        columns = topk(pre.abs(), self.config.k).columns
        return Codes(pre.gather(1, columns.long()), columns)
