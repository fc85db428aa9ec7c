"""Scores against scikit-learn's, and their limits."""

from __future__ import annotations

import numpy as np
import pytest
from monosem.probes.truth.scores import SCORES, Reading, mcc
from sklearn import metrics


def reading(seed: int, n: int = 200) -> tuple[Reading, np.ndarray]:
    rng = np.random.default_rng(seed)
    right = rng.integers(3, size=n)
    logits = 1.5 * np.eye(3)[right] + rng.standard_normal((n, 3))
    P = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return Reading.of(P[:100], right[:100], P[100:], 0.1), right[100:]


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_scikit_learn_with_rows_repeated(seed):
    said, right = reading(seed)
    weights = np.random.default_rng(seed).integers(0, 4, size=100).astype(float)
    again, told = np.repeat(right, weights.astype(int)), np.repeat(said.likeliest, weights.astype(int))
    for name, peer in (("mcc", metrics.matthews_corrcoef), ("ami", metrics.adjusted_mutual_info_score),
                       ("ari", metrics.adjusted_rand_score)):  # fmt: skip
        assert SCORES[name](said, right, weights) == pytest.approx(peer(again, told), abs=1e-9)


def test_weighted_mcc_is_that_of_accepted_rows_times_their_share():
    said, right = reading(5)
    ones = np.ones(100)
    share = said.accepted.mean()
    kept = metrics.matthews_corrcoef(right[said.accepted], said.likeliest[said.accepted])
    assert 0.2 < share < 1
    assert SCORES["wmcc"](said, right, ones) == pytest.approx(share * kept)
    assert SCORES["acceptance"](said, right, ones) == pytest.approx(share)
    assert SCORES["coverage"](said, right, ones) == pytest.approx(said.sets[np.arange(100), right].mean())


def test_coverage_of_classes_is_that_of_the_worst_covered_one():
    said, right = reading(5)
    held = said.class_sets[np.arange(100), right]
    shares = [held[right == label].mean() for label in range(3)]
    assert max(shares) > min(shares)
    assert SCORES["coverage_class"](said, right, np.ones(100)) == pytest.approx(min(shares))
    weights = np.where(right == 2, 0.0, 1.0)  # a draw without one of the classes
    assert SCORES["coverage_class"](said, right, weights) == pytest.approx(min(shares[:2]))


def test_a_probe_that_knows_what_is_real_but_not_what_is_true_is_not_selective():
    right = np.arange(90) % 3
    P = np.where((right == 2)[:, None], [0.05, 0.05, 0.9], [0.49, 0.46, 0.05])
    said = Reading.of(P, right, P, 0.1)
    assert SCORES["selective_true"](said, right, np.ones(90)) == pytest.approx(0.5)
    sure = Reading.of(np.eye(3)[right], right, np.eye(3)[right], 0.1)
    assert (
        SCORES["selective_true"](sure, right, np.ones(90)) == SCORES["selective_false"](sure, right, np.ones(90)) == 1
    )


def test_one_class_throughout_has_no_correlation():
    assert mcc(np.zeros(5, int), np.array([0, 1, 2, 0, 1]), np.ones(5)) == 0
