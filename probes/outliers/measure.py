"""Outlier scores: do a dictionary's codes tell texts of another kind apart better than plain activations do?

    auroc_OUTSIDE_SCORER    chance that a text of another kind has a higher score than a held-out one of the usual kind,
                            by a scorer fitted on codes of usual texts
    gain_OUTSIDE_SCORER     that AUROC less the one of the same scorer on the activations, on the same texts

Scorers, each fitted on the rows of usual texts alone; a higher score is farther out:

    mahalanobis       squared distance from the mean, in units of a covariance with `rank` principal axes and one
                      variance for all others (Lee et al. 2018; the covariance of Tipping and Bishop 1999)
    neighbours        distance to the k-th nearest row, rows scaled to unit length (Sun et al. 2022, arXiv 2204.06507)
    mean_cosine       1 - cosine with the mean row
    rarity            - log likelihood of which units are on, each on with its own frequency; a neuron is on above its
                      mean, a latent where it fires
    reconstruction    share of the squared distance from the mean that decoding does not explain; there is none for the
                      activations themselves

Nulls: `activations`; `pca` and `untrained`, codes of principal components and of a random dictionary with as many codes
a token; `norm` and `tokens`, how far a text's mean norm and its number of tokens are from the usual; and
`same_kind`, every second of the held-out usual texts against the others, which is chance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from tqdm import tqdm

from ...lab.errors import InputError, unknown
from ...lab.evidence import Evidence, bootstrap
from ...lab.models.hooked_model import HookedModel
from ...lab.sequences import texts_of
from ...saes.dictionary import Dictionary
from ...saes.place import AUTOENCODER
from ..fitting.sparse import auc
from ..latents import dense_codes, nulls_of, text_means
from ..prompts import read_texts

Rows = Float[Tensor, "texts units"]
Scores = Float64[np.ndarray, " texts"]
LEAST = 10
"""Texts that fitting, and each side of a comparison, need at least."""
RECONSTRUCTION = "reconstruction"
CODES, ACTIVATIONS = "codes", "activations"


@dataclass(frozen=True)
class OutlierConfig:
    """How texts are read and scored."""

    scorers: tuple[str, ...] = ("mahalanobis", "neighbours", "mean_cosine", "rarity", RECONSTRUCTION)
    """Some of the table above."""
    tokens: int = 32
    """Tokens of a text that are read; the rest is cut off."""
    neighbours: int = 10
    """Which nearest row the distance is taken to."""
    rank: int = 64
    """Principal axes with a variance of their own; at most a quarter of the texts."""
    batch: int = 16
    """Texts a forward pass."""
    seed: int = 0
    """Of the untrained dictionary and the bootstrap."""

    def __post_init__(self) -> None:
        for name in self.scorers:
            if name not in (*SCORERS, RECONSTRUCTION):
                raise unknown("scorer", name, (*SCORERS, RECONSTRUCTION))
        if not self.scorers:
            raise InputError("no scorer is named: give some, or leave the default")
        for name in ("tokens", "neighbours", "rank", "batch"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")


def mahalanobis(fit: Rows, rows: Rows, config: OutlierConfig) -> Tensor:
    """Squared distances [texts] under the covariance of `fit`, low rank and one variance for the rest."""
    mean = fit.mean(0)
    centred, away = fit - mean, rows - mean
    rank = max(1, min(config.rank, len(fit) // 4, fit.shape[1] - 1))
    size, axes = torch.linalg.eigh(centred @ centred.T / (len(fit) - 1))  # fewer texts than units, mostly
    size, axes = size.flip(0), axes.flip(1)
    kept = size[:rank].clamp_min(EPSILON * size[0].clamp_min(EPSILON))
    directions = (axes[:, :rank].T @ centred) / (kept * (len(fit) - 1)).sqrt()[:, None]
    rest = (size[rank:].clamp_min(0).sum() / max(fit.shape[1] - rank, 1)).clamp_min(EPSILON * kept[0])
    inside = away @ directions.T
    outside = (away.square().sum(1) - inside.square().sum(1)).clamp_min(0)
    return (inside.square() / kept).sum(1) + outside / rest


def neighbours(fit: Rows, rows: Rows, config: OutlierConfig) -> Tensor:
    """Distances [texts] to the k-th nearest row of `fit`, on the unit sphere."""
    unit = torch.nn.functional.normalize
    cosine = unit(rows, dim=1) @ unit(fit, dim=1).T
    nearest = cosine.topk(min(config.neighbours, len(fit)), dim=1).values[:, -1]
    return (2 - 2 * nearest).clamp_min(0).sqrt()


def mean_cosine(fit: Rows, rows: Rows, config: OutlierConfig) -> Tensor:
    """1 - cosine [texts] with the mean of `fit`."""
    return 1 - torch.nn.functional.cosine_similarity(rows, fit.mean(0)[None], dim=1)


def rarity(fit: Rows, rows: Rows, config: OutlierConfig) -> Tensor:
    """Surprise [texts] at which units are on, in nats: independent units, frequencies of `fit` with one text added."""
    threshold = torch.where((fit == 0).any(0), torch.zeros_like(fit[0]), fit.mean(0))
    rate = ((fit > threshold).sum(0).to(rows) + 0.5) / (len(fit) + 1)
    on = (rows > threshold).to(rate)
    return -(on @ rate.log() + (1 - on) @ (1 - rate).log())


EPSILON = 1e-9
SCORERS: dict[str, Callable[[Rows, Rows, OutlierConfig], Tensor]] = {
    "mahalanobis": mahalanobis,
    "neighbours": neighbours,
    "mean_cosine": mean_cosine,
    "rarity": rarity,
}
"""Scorers of rows by name: (rows to fit, rows to score, config) -> scores."""


class _Read(NamedTuple):
    """Token rows of some texts, and the text of each."""

    x: Float[Tensor, "rows d"]
    text: Int64[Tensor, " rows"]


def ood_scores(
    model: HookedModel,
    dictionary: Dictionary,
    fit: Sequence[str],
    inside: Sequence[str],
    outside: Mapping[str, Sequence[str]],
    config: OutlierConfig | None = None,
    *,
    progress: bool = False,
) -> dict[str, Evidence]:
    """Both scores above for every kind of outside texts and every scorer, intervals over texts.

    A text is one row: the mean over its tokens. Nothing is fitted on `inside` or `outside`.

    Args:
        fit: usual texts.
        inside: other usual texts, none of which is among those.
        outside: texts of other kinds, by name.

    Raises:
        InputError: another model's dictionary or one that does not reconstruct what it reads, no kind of outside
            texts, fewer than 10 texts somewhere, or a text on both sides.
    """
    config = config or OutlierConfig()
    fit, inside = texts_of(fit, "texts to fit on"), texts_of(inside, "texts inside")
    outside = {name: texts_of(texts, f"texts {name}") for name, texts in outside.items()}
    if dictionary.place.kind != AUTOENCODER:
        raise InputError(f"{dictionary!r} does not reconstruct the one site it reads: give a dictionary that does")
    _check_texts(fit, inside, outside)
    place = dictionary.check(model)
    site, limit = place.site, place.source.norm_limit
    sets = {"fit": fit, "inside": inside, **{f"outside {name}": texts for name, texts in outside.items()}}
    read = {
        name: _Read(*read_texts(model, site, texts, tokens=config.tokens, norm_limit=limit, batch=config.batch))
        for name, texts in tqdm(sets.items(), desc="read", unit="kind", disable=not progress)
    }
    dictionaries = {CODES: dictionary, **nulls_of(dictionary, read["fit"].x, config.seed)}
    found = _scored(dictionaries, read, config)
    scores: dict[str, Evidence] = {}
    for name in outside:
        for scorer in config.scorers:
            scores |= _evidence(name, scorer, found, config)
    return scores


def _check_texts(fit: Sequence[str], inside: Sequence[str], outside: Mapping[str, Sequence[str]]) -> None:
    if not outside:
        raise InputError("no texts of another kind are given: name at least one kind")
    for name, texts in {"to fit on": fit, "inside": inside, **outside}.items():
        if len(texts) < LEAST:
            raise InputError(f"{len(texts)} texts {name} are too few: give at least {LEAST}")
    usual = set(fit)
    for name, texts in {"inside": inside, **outside}.items():
        if shared := usual.intersection(texts):
            raise InputError(f"{len(shared)} texts {name} are among those to fit on, such as {min(shared)!r:.60}")


def _scored(
    dictionaries: Mapping[str, Dictionary], read: Mapping[str, _Read], config: OutlierConfig
) -> dict[tuple[str, str], dict[str, Scores]]:
    """Scores of every set of texts but `fit`, by (representation, scorer)."""
    tested = [name for name in read if name != "fit"]
    rows: dict[str, dict[str, Rows]] = {ACTIVATIONS: {name: text_means(x, text) for name, (x, text) in read.items()}}
    for kind, one in dictionaries.items():
        rows[kind] = {name: dense_codes(one, x, text) for name, (x, text) in read.items()}
    found = {}
    for kind, sets in rows.items():
        for scorer in config.scorers:
            if scorer != RECONSTRUCTION:
                told = {name: SCORERS[scorer](sets["fit"].double(), sets[name].double(), config) for name in tested}
                found[kind, scorer] = {name: one.numpy() for name, one in told.items()}
    mean = read["fit"].x.mean(0)
    for kind, one in dictionaries.items():
        if RECONSTRUCTION in config.scorers:
            found[kind, RECONSTRUCTION] = {name: _unexplained(one, read[name], mean) for name in tested}
    for kind, of in {"norm": _norms, "tokens": lambda one: one.text.bincount().double()}.items():
        usual = of(read["fit"]).median()
        found[kind, ""] = {name: (of(read[name]) - usual).abs().numpy() for name in tested}
    return found


def _norms(read: _Read) -> Tensor:
    return text_means(read.x.norm(dim=1, keepdim=True), read.text)[:, 0].double()


def _unexplained(dictionary: Dictionary, read: _Read, mean: Float[Tensor, " d"]) -> Scores:
    """Squared error over squared distance from the mean, summed over the tokens of each text."""
    error = torch.cat([
        (part - dictionary.reconstruct(part.to(dictionary.W_dec.device)).to(part)).square().sum(1, keepdim=True)
        for part in read.x.split(4096)
    ])  # fmt: skip
    spread = (read.x - mean).square().sum(1, keepdim=True)
    return (text_means(error, read.text) / text_means(spread, read.text))[:, 0].double().numpy()


def _evidence(
    name: str, scorer: str, found: Mapping[tuple[str, str], Mapping[str, Scores]], config: OutlierConfig
) -> dict[str, Evidence]:
    """The AUROC of one scorer against one kind of outside texts, and its gain over the activations."""
    key = f"outside {name}"
    told = {kind: (sets["inside"], sets[key]) for (kind, by), sets in found.items() if by in (scorer, "")}
    usual, odd = told[CODES]
    n = len(usual) + len(odd)
    y = np.repeat([0, 1], [len(usual), len(odd)])

    def over_texts(kind: str, weights: np.ndarray) -> float:
        return auc(np.concatenate(told[kind]), y, weights)

    ones = np.ones(n)
    values = {kind: over_texts(kind, ones) for kind in told}
    chance = auc(usual, np.arange(len(usual)) % 2, np.ones(len(usual)))
    about = {"n": n, "unit": "texts", "held_out": f"{len(usual)} usual texts and all others; scorers see neither",
             "better": "higher"}  # fmt: skip
    main = Evidence(
        f"auroc_{name}_{scorer}", values.pop(CODES),
        bootstrap(lambda weights: over_texts(CODES, weights), n, seed=config.seed, resamples=400),
        {**values, "same_kind": chance}, **about,
    )  # fmt: skip
    if ACTIVATIONS not in values:
        return {main.name: main}
    raw = values[ACTIVATIONS]
    gain = Evidence(
        f"gain_{name}_{scorer}", main.value - raw,
        bootstrap(lambda weights: over_texts(CODES, weights) - over_texts(ACTIVATIONS, weights), n, seed=config.seed,
                  resamples=400),
        {kind: values[kind] - raw for kind in ("pca", "untrained")}, **about,
    )  # fmt: skip
    return {main.name: main, gain.name: gain}
