"""Do passages that mean alike share neurons? Rank correlation of core overlap with the similarity of embeddings.

Passages that share words share neurons whatever they mean: the overlap of token sets stands beside the embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ....lab.evidence import Evidence, bootstrap
from ....lab.rng import derive_seed
from .core_neurons import jaccard

LEAST = 4
"""Passages that a rank correlation of pairs is worth computing for."""
SHUFFLES = 200


def core_similarity(
    cores: Bool[Tensor, "passages n"],
    embeddings: Float[Tensor, "passages width"],
    tokens: Int[Tensor, "passages t"],
    seed: int = 0,
) -> Evidence | None:
    """Spearman correlation over pairs of passages, with its interval over passages; None for fewer than `LEAST`.

    Nulls: `shuffled`, the 95 % quantile over embeddings that are given to other passages; and `shared_tokens`, the
    correlation of core overlap with the overlap of the passages' token sets.
    """
    from scipy.stats import rankdata  # takes most of a second to import

    count = len(cores)
    if count < LEAST:
        return None
    first, second = np.triu_indices(count, 1)
    overlap = rankdata(jaccard(cores[:, None], cores[None]).numpy()[first, second])
    meaning = np.zeros((count, count))
    meaning[first, second] = rankdata((embeddings @ embeddings.T).numpy()[first, second])
    meaning += meaning.T
    words = rankdata(_token_overlap(tokens.tolist())[first, second])
    rng = np.random.default_rng(derive_seed(seed, "shuffled embeddings"))
    orders = [rng.permutation(count) for _ in range(SHUFFLES)]
    shuffled = [_correlation(overlap, meaning[order[first], order[second]]) for order in orders]
    similarity = meaning[first, second]

    def weighted(weights: np.ndarray) -> float:
        return _correlation(overlap, similarity, weights[first] * weights[second])

    return Evidence(
        "core_similarity", _correlation(overlap, similarity), bootstrap(weighted, count, seed=seed),
        {"shuffled": float(np.quantile(shuffled, 0.95)), "shared_tokens": _correlation(overlap, words)},
        count, "passages", better="higher", note="ranks of all pairs are kept when passages are resampled",
    )  # fmt: skip


def _correlation(x: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Pearson's, pairs weighted; nan where one of them is constant."""
    weights = np.ones(len(x)) if weights is None else weights
    total = weights.sum()
    if not total:
        return float("nan")
    x, y = x - weights @ x / total, y - weights @ y / total
    spread = float(np.sqrt((weights @ x**2) * (weights @ y**2)))
    return float(weights @ (x * y)) / spread if spread > 0 else float("nan")


def _token_overlap(tokens: Sequence[Sequence[int]]) -> np.ndarray:
    sets = [set(row) for row in tokens]
    return np.array([[len(a & b) / len(a | b) for b in sets] for a in sets])
