"""Scores of a dictionary's weights alone: no activations are read.

    decoder_max_cosine       mean over latents of the largest cosine with another latent's decoder row
    encoder_max_cosine       the same of encoder rows
    encoder_decoder_cosine   mean cosine of a latent's own encoder and decoder rows; not of a transcoder's

Of a cross-layer transcoder they are those within each layer, mean over layers.

A high maximum tells of copies, but random rows have one too, larger the more of them there are: see the nulls.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ...lab.evidence import Evidence
from ..dictionary import Dictionary
from ..place import CROSS_LAYER

if TYPE_CHECKING:
    from ..architectures.clt.cross_layer import CrossLayer

CELLS = 1 << 24
"""Cosines held at once."""

BETTER = {"decoder_max_cosine": "lower", "encoder_max_cosine": "lower", "encoder_decoder_cosine": "higher"}


@torch.no_grad()
def max_cosine(rows: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """The largest (signed) cosine of every row with another one; nan for a single row, 0 for rows of zeros."""
    unit = F.normalize(rows.float(), dim=1)
    if len(unit) < 2:
        return unit.new_full((len(unit),), torch.nan)
    maxima = []
    for begin in range(0, len(unit), max(1, CELLS // len(unit))):
        part = unit[begin : begin + max(1, CELLS // len(unit))]
        cosines = part @ unit.T
        cosines.diagonal(begin).fill_(-torch.inf)
        maxima.append(cosines.amax(1))
    return torch.cat(maxima)


def weight_scores(dictionary: Dictionary) -> dict[str, float]:
    """Every score; those of the encoder only where there is one `W_enc [n_latents, d_in]`."""
    if dictionary.place.kind == CROSS_LAYER:
        each = [weight_scores(block) for block in cast("CrossLayer", dictionary).layers]
        return {name: sum(part[name] for part in each) / len(each) for name in each[0]}
    decoder = dictionary.W_dec.detach()
    encoder = getattr(dictionary, "W_enc", None)
    scores = {"decoder_max_cosine": float(max_cosine(decoder).mean())}
    if isinstance(encoder, Tensor) and encoder.shape == (dictionary.n_latents, dictionary.d_in):
        encoder = encoder.detach()
        scores["encoder_max_cosine"] = float(max_cosine(encoder).mean())
    if isinstance(encoder, Tensor) and encoder.shape == decoder.shape and not dictionary.place.targets:
        scores["encoder_decoder_cosine"] = float(F.cosine_similarity(encoder.float(), decoder.float()).mean())
    return scores


def weight_evidence(dictionary: Dictionary, nulls: Mapping[str, Dictionary]) -> dict[str, Evidence]:
    """Every score beside that of each null that has it. Nothing is sampled, so there is no interval."""
    others = {name: weight_scores(null) for name, null in nulls.items()}
    return {
        name: Evidence(
            name, value, None,
            {null: scores[name] for null, scores in others.items() if math.isfinite(scores.get(name, math.nan))},
            dictionary.n_latents, "latents", better=BETTER[name],
        )
        for name, value in weight_scores(dictionary).items()
    }  # fmt: skip
