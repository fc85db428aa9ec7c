"""Parts of a dictionary that labelled metrics need: dense codes, nulls, and latents that fire as often as others."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..lab.errors import InputError
from ..lab.sequences import integers_of
from ..saes.dictionary import Dictionary
from ..saes.evaluation.nulls import fit_nulls
from ..saes.place import AUTOENCODER, CROSS_LAYER

ROWS_AT_ONCE = 4096
NEIGHBOURS = 8
"""Among so many unused latents of the nearest firing rate a match is drawn."""
NULLS = ("untrained", "pca")
"""Dictionaries that stand beside the one that is measured: random directions, and principal components."""


def check_rewrites(dictionary: Dictionary, metric: str) -> None:
    """Refuse a dictionary whose latents do not write to the rows they are read from.

    Raises:
        InputError: it is a transcoder or a crosscoder.
    """
    if dictionary.place.kind != AUTOENCODER:
        kind = "cross-layer transcoder" if dictionary.place.kind == CROSS_LAYER else dictionary.place.kind
        raise InputError(
            f"{metric} changes latents and leaves the rest of the same activation as it is, which a {kind} "
            f"({dictionary!r}) cannot do: give a dictionary that reconstructs the site it reads"
        )


def dense_codes(
    dictionary: Dictionary, x: Float[Tensor, "rows d"], text: Int[Tensor, " rows"] | None = None
) -> Float[Tensor, "texts n_latents"]:
    """Codes of every row, dense, where the rows are; or their mean over the rows of every text, by its number."""
    text = torch.arange(len(x), device=x.device) if text is None else integers_of(text, "texts").to(x.device)
    sums = x.new_zeros(int(text.max()) + 1, dictionary.n_latents)
    for part, numbers in zip(x.split(ROWS_AT_ONCE), text.split(ROWS_AT_ONCE), strict=True):
        code = dictionary.encode(part.to(dictionary.W_dec.device))
        where = (numbers[code.rows.to(x.device)], code.indices.to(x.device).long())
        sums.index_put_(where, code.values.to(x), accumulate=True)
    return sums / text.bincount()[:, None]


def text_means(x: Float[Tensor, "rows d"], text: Int[Tensor, " rows"]) -> Float[Tensor, "texts d"]:
    """The mean over the rows of every text, by its number."""
    text = integers_of(text, "texts of rows").to(x.device)
    sums = x.new_zeros(int(text.max()) + 1, x.shape[1]).index_add_(0, text, x)
    return sums / text.bincount()[:, None]


def decoder(dictionary: Dictionary, like: Tensor) -> Float[Tensor, "n_latents d"]:
    """Decoder rows in fp32, where `like` is."""
    return dictionary.W_dec.detach().to(like.device, torch.float32)


def nulls_of(dictionary: Dictionary, x: Float[Tensor, "rows d"], seed: int) -> dict[str, Dictionary]:
    """The nulls that metrics with labels measure, fitted on these rows, with as many codes a row."""
    fitted = fit_nulls(x, dictionary, seed)
    return {name: fitted[name] for name in NULLS}


def matched(
    rates: Float[Tensor, " n_latents"], chosen: Int[Tensor, " some"], rng: np.random.Generator
) -> Int[Tensor, " some"]:
    """For every chosen latent, in order, another one at random of nearly its firing rate; none twice, none chosen.

    Gives fewer where fewer others are left.
    """
    rate = rates.double().cpu().numpy()
    free = np.ones(len(rate), dtype=bool)
    free[chosen.cpu().numpy()] = False
    partners = []
    for latent in chosen.tolist()[: int(free.sum())]:
        distance = np.where(free, np.abs(rate - rate[latent]), np.inf)
        near = np.argsort(distance, kind="stable")[: min(NEIGHBOURS, int(free.sum()))]
        partners.append(int(rng.choice(near)))
        free[partners[-1]] = False
    return torch.tensor(partners, dtype=torch.int64)
