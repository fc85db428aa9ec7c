"""Dictionaries that learned nothing, or second moments only: what a trained one is compared with.

    untrained   random unit directions, same size and selection rule, encoder tied and scaled by least squares
    pca         principal components; each row keeps its k largest coefficients, of either sign
    neurons     the coordinates of the site themselves, the k farthest from their mean
    linear      for a transcoder, in place of the last two: ridge regression of what it predicts on what it reads

All keep as many codes a row as the trained dictionary does on the same rows, and start from the mean.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Self

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor, nn

from ..kernels.topk import topk
from ..lab.errors import InputError
from ..lab.rng import generator
from .batchtopk import BatchTopK
from .dictionary import Dictionary
from .initialise import initialise, scale_encoder
from .linear import Linear
from .sae import SAEConfig, SparseAutoencoder
from .sparse_code import SparseCode
from .topk import TopK

ROWS_AT_ONCE = 16384


class Basis(Dictionary):
    """An orthonormal basis W_dec [n_latents, d_in] around b_dec [d_in]; codes are signed coefficients.

    Each row keeps the k coefficients largest in magnitude, which is the best choice of k for this basis.
    """

    config: SAEConfig

    def __init__(self, config: SAEConfig) -> None:
        super().__init__(config)
        if config.d_out is not None:
            raise InputError(f"a basis reconstructs what it reads: leave out d_out={config.d_out}")
        if config.n_latents > config.d_in:
            raise InputError(f"a basis of width {config.d_in} has no more latents than that, got {config.n_latents}")
        self.W_dec = nn.Parameter(torch.zeros(config.n_latents, config.d_in), requires_grad=False)
        self.b_dec = nn.Parameter(torch.zeros(config.d_in), requires_grad=False)

    @classmethod
    def fit(cls, x: Float[Tensor, "rows d"], k: int, sources: tuple[int, ...] = ()) -> Self:
        """The whole basis around the mean of the rows, k codes kept a row (at most d); `sources` as in the config."""
        width = x.shape[1]
        found = cls(SAEConfig(width, width, min(k, width), sources=sources))
        mean = x.double().mean(0)
        found.b_dec.copy_(mean)
        found.W_dec.copy_(cls.axes(x, mean))
        return found.to(x.device)

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


class PCA(Basis):
    """Principal components, by falling variance."""

    architecture = "pca"

    @staticmethod
    def axes(x: Float[Tensor, "rows d"], mean: Float64[Tensor, " d"]) -> Float64[Tensor, "d d"]:
        """Eigenvectors of the covariance."""
        covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=x.device)
        for part in x.split(ROWS_AT_ONCE):
            centred = part.double() - mean
            covariance += centred.T @ centred
        return torch.linalg.eigh(covariance).eigenvectors.T.flip(0)


class Neurons(Basis):
    """The site's own coordinates."""

    architecture = "neurons"

    @staticmethod
    def axes(x: Float[Tensor, "rows d"], mean: Float64[Tensor, " d"]) -> Float[Tensor, "d d"]:
        """The identity."""
        return torch.eye(len(mean))

    def coefficients(self, centred: Float32[Tensor, "rows d"]) -> Float32[Tensor, "rows n"]:
        """The rows themselves."""
        return centred


@torch.no_grad()
def untrained(
    dictionary: Dictionary,
    x: Float32[Tensor, "rows d_in"],
    k: int,
    rng: torch.Generator,
    target: Float32[Tensor, "rows d_out"] | None = None,
) -> SparseAutoencoder:
    """A dictionary of the same size and kind of selection that has seen only the mean and the scale of `x`.

    A dictionary with different numbers of codes a row gets a BatchTopK with the threshold that leaves k a
    row on `x`; any other a TopK. A transcoder also gets decoder rows from `target`, as training starts with them: a
    random one would predict the mean alone.
    """
    kind, shape = BatchTopK if getattr(dictionary, "ragged", False) else TopK, dictionary.config
    config = SAEConfig(
        dictionary.d_in, dictionary.n_latents, min(k, dictionary.n_latents), d_out=shape.d_out, sources=shape.sources
    )
    null, mean = kind(config).to(x.device), x.double().mean(0).float()
    initialise(null, x if target is None else x - mean, rng, 0, target)
    null.b_dec.copy_((x if target is None else target).double().mean(0))
    centred = x - mean
    scale_encoder(null, centred, centred if target is None else target - null.b_dec)
    null.observe(null.training_code(centred, None), 0)
    if target is not None:
        null.shift(-(null.W_enc @ mean))
    return null


def fit_nulls(
    x: Float[Tensor, "rows d_in"],
    dictionary: Dictionary,
    seed: int = 0,
    target: Float[Tensor, "rows d_out"] | None = None,
) -> dict[str, Dictionary]:
    """The nulls `untrained`, `pca` and `neurons`, with as many codes a row as `dictionary` has on `x`.

    A transcoder's are `untrained` and `linear`, which is dense.

    Args:
        x: rows that the scores are not measured on.
        target: what a transcoder should predict from them.

    Raises:
        InputError: fewer than two rows, another width than the dictionary's, or no target for a transcoder.
    """
    x = dictionary.rows(x.to(dictionary.W_dec.device))
    require_rows(x)
    if (target is None) != (dictionary.config.d_out is None):
        raise InputError(f"nulls of a transcoder, and only those, take the target rows too: {dictionary!r}")
    active = sum(int(dictionary.encode(part).l0.sum()) for part in x.split(ROWS_AT_ONCE))
    k = max(1, round(active / len(x)))
    target = None if target is None else target.to(x.device).float()
    nulls: dict[str, Dictionary] = {"untrained": untrained(dictionary, x, k, generator(seed, "untrained null"), target)}
    if target is None:
        sources = dictionary.config.sources
        nulls |= {"pca": PCA.fit(x, k, sources), "neurons": Neurons.fit(x, k, sources)}
    else:
        nulls["linear"] = Linear.fit(x, target)
    for name, null in nulls.items():
        training = {"null": name, "rows": len(x), "seed": seed}
        null.provenance = replace(dictionary.provenance, training=training)
    return nulls


def require_rows(x: Float32[Tensor, "rows d"]) -> None:
    """Refuse fewer rows than a null can be fitted on.

    Raises:
        InputError: there are fewer than two.
    """
    if len(x) < 2:
        raise InputError(f"nulls need at least 2 rows to be fitted on, got {len(x)}: give a few thousand")
