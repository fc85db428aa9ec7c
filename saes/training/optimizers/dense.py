"""`DenseOptimizer`: the base of optimizers that see whole gradient matrices.

A step costs memory and time of the size of the weights, however few latents fired.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ....kernels.encode import low_precision_copy
from ....kernels.tuples import Adam, LowPrecisionCopy, RowGradients, Updated, Weights
from ...architectures.block_update import gradient_rows
from ...architectures.objective import Gradients, TrainingRows
from .fused import Optimizer


class DenseOptimizer(Optimizer):
    """Base of optimizers that see whole gradients of encoder, decoder (along the sphere) and b_enc."""

    def sparse_step(
        self,
        gradients: Gradients,
        rows: TrainingRows,
        scale: Tensor,
        adam: Adam,
        extra: RowGradients | None,
        low_precision: LowPrecisionCopy | None,
    ) -> Updated:
        """Step by way of gradient rows."""
        given, fired = gradient_rows(gradients.parts, rows.input_copy, scale, len(self.weights.b_enc), extra)
        return self.rows_step(given, adam, low_precision)._replace(fired=fired)

    def rows_step(self, rows: RowGradients, adam: Adam, low_precision: LowPrecisionCopy | None) -> Updated:
        """Spread the rows over all latents, step, and put decoder rows back to unit norm."""
        latents, weights = rows.latents.long(), self.weights
        to_input = rows.b_enc[:, 0] @ weights.W_enc[latents]
        unit = weights.W_dec[latents]
        along = rows.W_dec - (rows.W_dec * unit).sum(1, keepdim=True) * unit
        dense = Weights(*map(torch.zeros_like, weights))
        for gradient, part in zip(dense, (rows.W_enc, along, rows.b_enc[:, 0]), strict=True):
            gradient[latents] = part
        self.apply(dense, adam)
        if low_precision is not None:
            precision = "int8" if low_precision.scale is not None else "bf16"
            for kept, new in zip(
                low_precision, low_precision_copy(weights.W_enc, weights.W_dec, precision) or (), strict=True
            ):
                if kept is not None and new is not None:
                    kept.copy_(new)
        return Updated(to_input, latents.new_zeros(len(weights.b_enc)))

    def apply(self, gradients: Weights, adam: Adam) -> None:
        """Change the weights, decoder rows at unit norm again."""
        raise NotImplementedError


def to_unit_rows(weight: Tensor) -> None:
    """Scale every row to unit norm, in place."""
    weight.div_(weight.norm(dim=1, keepdim=True).clamp_min(1e-12))
