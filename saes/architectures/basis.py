"""Dictionaries that learned nothing, or second moments only: what a trained one is compared with.

    untrained   random unit directions, same size and selection rule, encoder tied and scaled by least squares
    pca         principal components; each row keeps its k largest coefficients, of either sign
    neurons     the coordinates of the site themselves, the k farthest from their mean
    linear      for a transcoder, in place of the last two: ridge regression of what it predicts on what it reads

All keep as many codes a row as the trained dictionary does on the same rows, and start from the mean.
"""

from __future__ import annotations

from typing import Self

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor, nn

from ...kernels.topk import topk
from ...lab.errors import InputError
from ..dictionary import Dictionary
from ..registry import register
from ..sparse_code import SparseCode
from .sae import SAEConfig

ROWS_AT_ONCE = 16384


class Basis(Dictionary):
    """An orthonormal basis W_dec [n_latents, d_in] around b_dec [d_in]; codes are signed coefficients.

    Each row keeps the k coefficients largest in magnitude, which is the best choice of k for this basis.
    """

    config: SAEConfig

    def __init__(self, config: SAEConfig) -> None:
        super().__init__(config)
        if config.place.targets:
            raise InputError(f"a basis reconstructs what it reads: leave out d_out={config.d_out}")
        if config.n_latents > config.d_in:
            raise InputError(f"a basis of width {config.d_in} has no more latents than that, got {config.n_latents}")
        self.W_dec = nn.Parameter(torch.zeros(config.n_latents, config.d_in), requires_grad=False)
        self.b_dec = nn.Parameter(torch.zeros(config.d_in), requires_grad=False)

    @classmethod
    def fit(cls, x: Float[Tensor, "rows d"], k: int, sources: tuple[int, ...] = ()) -> Self:
        """The whole basis around the mean of the rows, k codes kept a row (at most d); `sources` as in the config."""
        width = x.shape[1]
        basis = cls(SAEConfig(width, width, min(k, width), sources=sources))
        mean = x.double().mean(0)
        basis.b_dec.copy_(mean)
        basis.W_dec.copy_(cls.axes(x, mean))
        return basis.to(x.device)

    @staticmethod
    def axes(x: Float[Tensor, "rows d"], mean: Float64[Tensor, " d"]) -> Float[Tensor, "d d"]:
        """The orthonormal rows that `fit` takes for these rows and their mean."""
        raise NotImplementedError

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "*batch d"]) -> SparseCode:
        """k signed codes a row."""
        coefficients = self.coefficients(self.rows(x) - self.b_dec)
        _, columns = topk(coefficients.abs(), self.config.k)
        return SparseCode.fixed(coefficients.gather(1, columns.long()), columns, self.n_latents)

    def coefficients(self, centred: Float32[Tensor, "rows d"]) -> Float32[Tensor, "rows n"]:
        """Inner products with the basis."""
        return centred @ self.W_dec.T


@register
class PCA(Basis):
    """Principal components, by falling variance."""

    architecture = "pca"
    config_type = SAEConfig

    @staticmethod
    def axes(x: Float[Tensor, "rows d"], mean: Float64[Tensor, " d"]) -> Float64[Tensor, "d d"]:
        """Eigenvectors of the covariance."""
        covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=x.device)
        for part in x.split(ROWS_AT_ONCE):
            centred = part.double() - mean
            covariance += centred.T @ centred
        return torch.linalg.eigh(covariance).eigenvectors.T.flip(0)


@register
class Neurons(Basis):
    """The site's own coordinates."""

    architecture = "neurons"
    config_type = SAEConfig

    @staticmethod
    def axes(x: Float[Tensor, "rows d"], mean: Float64[Tensor, " d"]) -> Float[Tensor, "d d"]:
        """The identity."""
        return torch.eye(len(mean))

    def coefficients(self, centred: Float32[Tensor, "rows d"]) -> Float32[Tensor, "rows n"]:
        """The rows themselves."""
        return centred
