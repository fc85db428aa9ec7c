"""Conformal sets: numbers worked out by hand, coverage over many draws, and when there are too few points."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from monosem.lab.errors import InputError
from monosem.probes.truth.conformal import Conformal, binary_strangeness, multiclass_strangeness


def test_p_values_worked_out_by_hand():
    known = binary_strangeness(np.array([2.0, 1.0, -1.0, -2.0]))
    conformal = Conformal.fit(known, np.array([1, 1, 0, 0]), alpha=0.2)
    p = conformal.p_values(binary_strangeness(np.array([1.5, 0.0])))
    np.testing.assert_allclose(p, [[0.2, 0.6], [0.2, 0.2]])
    assert conformal.answers(binary_strangeness(np.array([1.5, 0.0]))).tolist() == [1, -1]


def test_ties_count_as_as_strange():
    """Of 1, 1, 2, 3 four are at least 1, two at least 2 and one at least 3; a row itself is one more of five."""
    conformal = Conformal(np.array([1.0, 1.0, 2.0, 3.0]), np.zeros(4, int), alpha=0.2)
    found = conformal.p_values(np.array([[0.5], [1.0], [1.5], [2.0], [3.0], [4.0]]))
    np.testing.assert_allclose(found[:, 0], [1, 1, 0.6, 0.6, 0.4, 0.2])
    assert conformal.sets(np.array([[3.0], [4.0]])).tolist() == [[True], [False]]  # a label at alpha goes


def test_multiclass_strangeness_worked_out_by_hand():
    found = multiclass_strangeness(np.array([[0.7, 0.2, 0.1], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]))
    np.testing.assert_allclose(found, [[0.25, 0.75, 0.8], [0.5, 0.5, 0.75], [0.0, 1.0, 1.0]])


@pytest.mark.parametrize("coverage", ["marginal", "class"])
def test_coverage_is_as_asked_over_200_draws(coverage):
    rng = np.random.default_rng(0)
    held, single, rare = [], [], []
    shares = np.array([0.5, 0.35, 0.15])
    for _ in range(200):
        y = rng.choice(3, 1000, p=shares)
        logits = 2.2 * np.eye(3)[y] + rng.standard_normal((1000, 3)) + np.log(shares)
        P = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        strange = multiclass_strangeness(P)
        sets = Conformal.fit(strange[:400], y[:400], 0.1, coverage).sets(strange[400:])
        right = sets[np.arange(600), y[400:]]
        held.append(right.mean())
        rare.append(right[y[400:] == 2].mean())
        single.append((sets.sum(1) == 1).mean())
    assert 0.88 <= np.mean(held) <= 0.92
    assert np.std(held) < 0.03 and 0.5 < np.mean(single) < 1
    if coverage == "class":
        assert 0.88 <= np.mean(rare) <= 0.93, "each class is covered as often as asked"
    else:
        assert np.mean(rare) < 0.85, "the pooled quantile covers the rare class less often"


def test_too_few_points_are_refused_with_the_way_out():
    strange, labels = np.full((8, 3), 0.5), np.zeros(8, int)
    with pytest.raises(
        InputError,
        match=r"8 calibration points can exclude no label at alpha 0.1: give at least 9, or an alpha of at least 0.111",
    ):
        Conformal.fit(strange, labels, 0.1)
    assert not Conformal.fit(np.full((9, 3), 0.5), np.zeros(9, int), 0.1).sets(np.full((1, 3), 0.6)).any()
    mixed = np.array([0] * 20 + [1] * 5)
    Conformal.fit(np.full((25, 2), 0.5), mixed, 0.1)
    with pytest.raises(InputError, match="5 calibration points of class 1"):
        Conformal.fit(np.full((25, 2), 0.5), mixed, 0.1, "class")
    with pytest.raises(InputError, match="alpha is a share"):
        Conformal.fit(strange, labels, 1.5)
    with pytest.raises(InputError, match="nan or infinite"):
        Conformal.fit(np.full((20, 2), np.nan), np.zeros(20, int), 0.1)


@settings(max_examples=30, deadline=None)
@given(st.integers(10, 60), st.integers(0, 10_000))
def test_p_values_are_shares_that_fall_with_strangeness(n, seed):
    rng = np.random.default_rng(seed)
    conformal = Conformal.fit(rng.random((n, 2)), rng.integers(2, size=n), 0.2)
    p = conformal.p_values(np.sort(rng.random((20, 2)), 0))
    assert (np.diff(p, axis=0) <= 0).all() and p.min() >= 1 / (n + 1) and p.max() <= 1
