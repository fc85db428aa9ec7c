"""Matryoshka: prefixes of the latents must each reconstruct alone (Bussmann et al. 2025, arXiv 2503.17547).

The loss is the mean over prefixes of the error of the reconstruction from the codes below each prefix. A latent is in
all prefixes that reach beyond it, so its gradient comes from the mean of their residuals: each block of latents
between two prefixes is updated against its own such mean, at the cost of one decode of all codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ...kernels.code_gradients import code_gradients
from ...kernels.decode import decode_residual
from ...kernels.tuples import LowPrecisionCopy, Residual
from ...lab.errors import InputError, unknown
from ..registry import register
from ..sparse_code import SparseCode
from .batchtopk import BatchTopK
from .block_update import LatentBlock
from .objective import Gradients, Objective, TrainingRows
from .sae import SAEConfig, keep_largest

BASES = ("batchtopk", "topk")
SHARES = (1 / 32, 1 / 16, 1 / 8, 1 / 4)
"""Sizes of the first blocks as shares of the latents; the last has the rest."""


@dataclass(frozen=True)
class MatryoshkaConfig(SAEConfig):
    """Nested prefixes over a selection rule."""

    prefixes: tuple[int, ...] = ()
    """Ascending numbers of latents, the last being n_latents. By default blocks of `SHARES` and the rest."""
    base: Literal["batchtopk", "topk"] = "batchtopk"
    """Rule that selects codes: of the batch, or of each row."""

    def __post_init__(self) -> None:
        super().__post_init__()
        n = self.n_latents
        given = tuple(self.prefixes)
        if not given:
            ends = [round(n * sum(SHARES[: i + 1])) for i in range(len(SHARES))]
            given = (*sorted({end for end in ends if 0 < end < n}), n)
        object.__setattr__(self, "prefixes", given)
        if any(low >= high for low, high in zip((0, *given), given)) or given[-1] != n:  # noqa: B905
            raise InputError(f"prefixes must ascend from at least 1 to n_latents={n}, got {given}")
        if self.base not in BASES:
            raise unknown("matryoshka base", self.base, BASES)


@register
class Matryoshka(BatchTopK):
    """Codes of BatchTopK (or TopK) whose early latents are the coarse ones."""

    architecture = "matryoshka"
    config_type = MatryoshkaConfig
    config: MatryoshkaConfig

    @property
    def by_row(self) -> bool:
        """True if the base is `topk`."""
        return self.config.base == "topk"

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "*batch d"]) -> SparseCode:
        """Codes by the inference rule of the base."""
        return keep_largest(self, self.centred(x), None) if self.by_row else super().encode(x)

    def training_code(self, centred: Float[Tensor, "batch d"], low_precision: LowPrecisionCopy | None) -> SparseCode:
        """Codes by the training rule of the base."""
        return (
            keep_largest(self, centred, low_precision) if self.by_row else super().training_code(centred, low_precision)
        )

    def observe(self, code: SparseCode, step: int) -> None:
        """Move the threshold, which only a BatchTopK base has."""
        if not self.by_row:
            super().observe(code, step)

    def objective(self) -> NestedObjective:
        """The mean error over prefixes."""
        return NestedObjective(self)


class NestedObjective(Objective):
    """Half the squared error, averaged over prefixes."""

    dictionary: Matryoshka
    takes_upstream = False

    def gradients(self, rows: TrainingRows, decoder: Tensor, low_precision: LowPrecisionCopy | None) -> Gradients:
        """Differentiate each block of latents against the mean residual of the prefixes that hold it."""
        code = self.dictionary.training_code(rows.input, low_precision)
        ends = self.dictionary.config.prefixes
        blocks = [slice(low, high) for low, high in zip((0, *ends[:-1]), ends, strict=True)]
        within = [code.within(block) for block in blocks]
        codes = [(part.indptr, part.indices, part.values) for part in within]
        nothing = torch.zeros_like(self.dictionary.b_dec)
        residuals = [-rows.target]
        for block, part in zip(blocks, codes, strict=True):
            residuals.append(decode_residual(*part, decoder[block], nothing, -residuals[-1]).residual)
        last, squares = residuals[-1], residuals[-1].square().sum(1)
        parts, above = [], torch.zeros_like(rows.target)
        for block, part, residual in zip(blocks[::-1], codes[::-1], residuals[:0:-1], strict=True):
            above = above + residual / len(blocks)
            grads = code_gradients(*part[:2], decoder[block], above)
            parts.append(LatentBlock(block, part, Residual(above, squares, grads)))
        return Gradients(code, last, squares, tuple(parts[::-1]), above, {})
