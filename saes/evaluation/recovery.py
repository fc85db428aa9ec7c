"""How much of a planted truth a dictionary recovered: directions, firing, and what it wasted.

    mcc          mean |cosine| of decoder rows and directions, matched one to one (Hungarian)
    recovered    share of all features whose matched latent has |cosine| of at least 0.9
    precision, recall, f1   firing of a matched latent against firing of its feature, mean over features
    uniqueness   share of latents whose nearest feature is the nearest of no other latent
    dead         share of latents never active over the rows

Signs do not count: a flipped row with a negative code is the same latent. Scores after SynthSAEBench
(arXiv 2602.14687); every one stands beside an untrained dictionary of the same size and L0, because a match of
many random rows is far from 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from ...lab.errors import InputError
from ...lab.evidence import Evidence, known_mean, mean_interval
from ...lab.rng import generator
from ..dictionary import Dictionary
from ..sparse_code import SparseCode
from .nulls import untrained
from .planted import Planted

FOUND = 0.9
"""|cosine| from which a feature counts as recovered."""
HELD_OUT = "fresh rows of the planted world"
ROWS_AT_ONCE = 4096
PARTS = 1 << 40
"""Rows for scores are parts from here on of the planted world: no training reads so far."""


class Match(NamedTuple):
    """Pairs of one latent and one feature, in the order of the features."""

    latents: Int64[Tensor, " pairs"]
    features: Int64[Tensor, " pairs"]
    cosines: Float[Tensor, " pairs"]
    """|cosine| of every pair."""


def match(W_dec: Float[Tensor, "n_latents d"], directions: Float[Tensor, "n_features d"]) -> Match:
    """The one-to-one pairing with the largest sum of |cosine|; the rest of the larger side stays unpaired.

    Raises:
        InputError: the widths differ.
    """
    from scipy.optimize import linear_sum_assignment

    cosines = _cosines(W_dec, directions)
    latents, features = (torch.from_numpy(side) for side in linear_sum_assignment(cosines.numpy(), maximize=True))
    order = features.argsort()
    latents, features = latents[order], features[order]
    return Match(latents, features, cosines[latents, features])


def uniqueness(W_dec: Float[Tensor, "n_latents d"], directions: Float[Tensor, "n_features d"]) -> float:
    """Share of latents whose nearest feature is the nearest of no other latent."""
    nearest = _cosines(W_dec, directions).argmax(1)
    return float((torch.bincount(nearest)[nearest] == 1).double().mean())


def recovery(
    dictionary: Dictionary,
    planted: Planted,
    *,
    rows: int = 16_384,
    nulls: Mapping[str, Dictionary] | None = None,
    seed: int = 0,
) -> dict[str, Evidence]:
    """Every score of `dictionary`, with intervals over features and the same scores of `nulls`.

    Args:
        rows: fresh rows to compare firing on.
        nulls: by name; None makes `random`: an untrained dictionary of the same size and L0.
        seed: of the random null and of the bootstrap.

    Raises:
        InputError: the width is not the planted one, or `rows` is below 2.
    """
    if rows < 2:
        raise InputError(f"rows must be at least 2, got {rows}")
    own = _Scored.measure(dictionary, planted, rows)
    if nulls is None:
        k = max(1, round(own.l0))
        x = planted.sample(min(rows, ROWS_AT_ONCE), part=2 * PARTS).x.to(dictionary.W_dec.device)
        nulls = {"random": untrained(dictionary, x, k, generator(seed, "random dictionary"))}
    theirs = {name: _Scored.measure(null, planted, rows) for name, null in nulls.items()}
    scores = {}
    for name, values in own.features.items():
        others = {null: known_mean(scored.features[name]) for null, scored in theirs.items()}
        scores[name] = Evidence(
            name, known_mean(values), mean_interval(values, seed=seed), others, int(np.isfinite(values).sum()),
            "features", HELD_OUT, "higher",
        )  # fmt: skip
    for name, better in {"uniqueness": "higher", "dead": "lower"}.items():
        others = {null: scored.latents[name] for null, scored in theirs.items()}
        scores[name] = Evidence(
            name, own.latents[name], None, others, dictionary.n_latents, "latents", HELD_OUT, better
        )
    return scores


class _Scored(NamedTuple):
    """Scores of one dictionary: one value a feature (nan where it has none), and one for all latents."""

    features: dict[str, np.ndarray]
    latents: dict[str, float]
    l0: float

    @classmethod
    def measure(cls, dictionary: Dictionary, planted: Planted, rows: int) -> _Scored:
        W_dec = dictionary.W_dec.detach().cpu()
        pairs = match(W_dec, planted.directions)
        near = torch.zeros(planted.config.n_features, dtype=torch.float64)
        near[pairs.features] = (pairs.cosines >= FOUND).double()
        counts = _Counts.over(dictionary, planted, pairs, rows)
        hits, fired, true = counts.hits.double(), counts.latent[pairs.latents], counts.feature[pairs.features]
        # a feature absent from the rows says nothing; a latent silent on its feature's rows has precision 0
        absent = true == 0
        firing = {"precision": hits / fired.clamp_min(1), "recall": hits / true, "f1": 2 * hits / (fired + true)}
        features = {
            "mcc": pairs.cosines.double(),
            "recovered": near,
            **{name: values.masked_fill(absent, torch.nan) for name, values in firing.items()},
        }
        return cls(
            {name: values.numpy() for name, values in features.items()},
            {
                "uniqueness": uniqueness(W_dec, planted.directions),
                "dead": float((counts.latent == 0).double().mean()),
            },
            float(counts.latent.sum()) / rows,
        )


class _Counts(NamedTuple):
    """In how many rows each latent, each feature and each pair of both was active."""

    latent: Int64[Tensor, " n_latents"]
    feature: Int64[Tensor, " n_features"]
    hits: Int64[Tensor, " pairs"]

    @classmethod
    def over(cls, dictionary: Dictionary, planted: Planted, pairs: Match, rows: int) -> _Counts:
        n = len(pairs.latents)
        counts = cls(*(torch.zeros(m, dtype=torch.int64) for m in (dictionary.n_latents, planted.config.n_features, n)))
        for part, begin in enumerate(range(0, rows, ROWS_AT_ONCE)):
            x, truth = planted.sample(min(ROWS_AT_ONCE, rows - begin), part=PARTS + part)
            code = dictionary.encode(x.to(dictionary.W_dec.device))
            counts.latent.add_(code.firing_counts().cpu())
            counts.feature.add_(truth.firing_counts())
            cells = _cells(code, pairs.latents)
            both = cells[torch.isin(cells, _cells(truth, pairs.features))]
            counts.hits.add_(torch.bincount(both % n, minlength=n))
        return counts


def _cells(code: SparseCode, chosen: Int64[Tensor, " pairs"]) -> Int64[Tensor, " active"]:
    """row * pairs + pair of every active entry whose latent is chosen."""
    pair_of = torch.full((code.n_latents,), -1, dtype=torch.int64)
    pair_of[chosen] = torch.arange(len(chosen))
    pair = pair_of[code.indices.long().cpu()]
    return (code.rows.cpu() * len(chosen) + pair)[(pair >= 0) & (code.values.cpu() != 0)]


def _cosines(W_dec: Tensor, directions: Tensor) -> Float[Tensor, "n_latents n_features"]:
    """|cosine| of every decoder row and every direction."""
    if W_dec.shape[1] != directions.shape[1]:
        raise InputError(
            f"the dictionary has width {W_dec.shape[1]} and the planted directions {directions.shape[1]}: "
            "compare a dictionary with the world it was trained on"
        )
    return (F.normalize(W_dec.detach().float().cpu(), dim=1) @ F.normalize(directions.float(), dim=1).T).abs()
