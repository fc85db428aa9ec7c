"""Sparse probes: planted labels, chance, baselines, splits without leaks, and what is refused."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monosem.lab.errors import InputError
from monosem.probes.fitting.sparse import (
    SCORES,
    SparseProbe,
    SparseProbeConfig,
    accuracy,
    auc,
    by_mean_difference,
    f1,
    sparse_probe,
    split,
)
from torch import Tensor

torch.set_num_threads(1)
ROWS, LATENTS = 400, 30


def planted(noise: float = 0.0, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Codes of which latent 7 alone tells the label, the rows they make in 10 dimensions, and the labels."""
    rng = torch.Generator().manual_seed(seed)
    latents = torch.rand(ROWS, LATENTS, generator=rng) * (torch.rand(ROWS, LATENTS, generator=rng) < 0.2)
    labels = torch.rand(ROWS, generator=rng) < 0.4
    told = labels ^ (torch.rand(ROWS, generator=rng) < noise)
    latents[:, 7] = told * (1 + torch.rand(ROWS, generator=rng))
    return latents, latents @ torch.randn(LATENTS, 10, generator=rng), labels


@pytest.fixture(scope="module")
def found() -> SparseProbe:
    return sparse_probe(*planted(), config=SparseProbeConfig(k=(1, 3), repeats=12))


def test_a_label_that_is_one_latent_is_told_by_it(found: SparseProbe) -> None:
    assert found.chosen[1] == [7] and found.chosen[3][0] == 7
    for name in ("accuracy_k1", "auc_k1", "f1_k1"):
        assert found[name].value == 1 and found[name].interval == (1, 1) and found[name].beats_nulls()


def test_chance_stands_beside_it(found: SparseProbe) -> None:
    nulls = found["auc_k1"].nulls
    assert set(nulls) == {"random_latents", "shuffled_labels", "pca", "neurons"}
    # a shuffled label picks a latent that tells the true one, with either sign: 0 or 1 as often
    assert 0.2 < nulls["shuffled_labels"] < 0.8 and 0.35 < nulls["random_latents"] < 0.65
    assert found["auc_full"].value > 0.8 and set(found["auc_full"].nulls) == {"shuffled_labels"}


def test_noisy_labels_give_the_bayes_accuracy() -> None:
    values = [sparse_probe(*planted(0.2, seed), config=SparseProbeConfig(k=(1,)))["accuracy_k1"] for seed in range(3)]
    assert np.mean([v.value for v in values]) == pytest.approx(0.8, abs=0.05)
    for evidence in values:
        assert evidence.interval is not None and evidence.interval[0] < 0.8 < evidence.interval[1]


def test_the_report_says_the_split_and_the_balance(found: SparseProbe) -> None:
    assert found.rows == {"train": 300, "test": 100}
    share = float(planted()[2].double().mean())
    assert found.positives == {"train": pytest.approx(share, abs=0.01), "test": pytest.approx(share, abs=0.02)}
    assert "no group on both sides" in found.held_out and found["f1_k3"].held_out == found.held_out
    told = json.loads(json.dumps(found.to_json()))
    assert told["chosen"] == {"1": [7], "3": found.chosen[3]} and told["scores"]["auc_k1"]["better"] == "higher"


def test_it_repeats_and_follows_its_seed(found: SparseProbe) -> None:
    again, other = (
        sparse_probe(*planted(), config=SparseProbeConfig(k=(1, 3), repeats=12, seed=seed)) for seed in (0, 1)
    )
    assert again == found and other != found


def test_labels_may_be_words_and_the_last_one_is_positive() -> None:
    latents, x, labels = planted()
    words = ["yes" if label else "no" for label in labels]
    found = sparse_probe(latents, x, words, config=SparseProbeConfig(k=(1,)))
    assert found.positives["train"] == pytest.approx(float(labels.double().mean()), abs=0.01)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 40))
def test_no_group_is_on_both_sides(seed: int, groups: int) -> None:
    rng = np.random.default_rng(seed)
    ids = rng.permutation(np.arange(300) % (2 * groups + 8))
    y = (ids % 2).astype(np.int64)
    train, test = split(y, ids, SparseProbeConfig(seed=seed))
    assert not set(ids[train]) & set(ids[test])
    assert sorted([*train, *test]) == list(range(300))
    assert abs(y[test].mean() - y.mean()) < 0.2


def test_copies_do_not_leak_into_the_test_split() -> None:
    """Every row twice, labels by lot: a probe that has seen a test row would be far above chance."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(60, 100, generator=rng).repeat(2, 1)
    labels = (torch.rand(60, generator=rng) < 0.5).repeat(2)
    honest = sparse_probe(x, x, labels, config=SparseProbeConfig(k=(20,)))
    leaking = sparse_probe(x, x, labels, groups=range(120), config=SparseProbeConfig(k=(20,)))
    assert honest["auc_full"].value < 0.75 < 0.9 < leaking["auc_full"].value


def test_selection_sees_the_training_split_only() -> None:
    latents, x, labels = planted()
    train, test = split(labels.numpy().astype(int), np.unique(x.numpy(), axis=0, return_inverse=True)[1],
                        SparseProbeConfig())  # fmt: skip
    marked = latents.clone()
    marked[test, 3] = 1000.0 * labels[test]  # tells the label, in the test split alone
    assert sparse_probe(marked, x, labels, config=SparseProbeConfig(k=(1,))).chosen[1] == [7]
    assert by_mean_difference(marked.numpy(), labels.numpy(), 1).tolist() == [3]
    assert len(train) + len(test) == ROWS


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_scores_are_those_of_scikit_learn(seed: int) -> None:
    from sklearn import metrics

    rng = np.random.default_rng(seed)
    odds, y = rng.integers(-3, 4, 30) / 2, np.r_[0, 1, rng.integers(0, 2, 28)]
    weights = rng.integers(1, 4, 30).astype(float)
    assert auc(odds, y, weights) == pytest.approx(metrics.roc_auc_score(y, odds, sample_weight=weights))
    assert accuracy(odds, y, weights) == pytest.approx(metrics.accuracy_score(y, odds > 0, sample_weight=weights))
    assert f1(odds, y, weights) == pytest.approx(metrics.f1_score(y, odds > 0, sample_weight=weights))


def test_a_draw_without_one_class_has_no_auc() -> None:
    odds, y = np.array([0.5, -1.0]), np.array([1, 0])
    assert math.isnan(auc(odds, y, np.array([2.0, 0.0]))) and set(SCORES) == {"accuracy", "auc", "f1"}
    assert f1(-np.ones(2), np.zeros(2), np.ones(2)) == 0


def refused(text: str, latents: Tensor, x: Tensor, labels: object, **options: object) -> None:
    with pytest.raises(InputError, match=text):
        sparse_probe(latents, x, labels, **options)  # type: ignore[arg-type]


def test_bad_input_is_refused_in_one_sentence() -> None:
    latents, x, labels = planted()
    refused("labels of two classes, got 1", latents, x, torch.ones(ROWS))
    refused(r"two classes, got 3 \(0, 1, 2\)", latents, x, torch.arange(ROWS) % 3)
    refused("only 2 rows are labelled True: a probe needs at least 5", latents, x, torch.arange(ROWS) < 2)
    refused("399 rows of latents, 400 of x and 400 labels", latents[1:], x, labels)
    refused("399 groups were given for 400 labels", latents, x, labels, groups=range(ROWS - 1))
    refused("k=31 is more than the 30 latents", latents, x, labels, config=SparseProbeConfig(k=(31,)))
    broken = x.clone()
    broken[:3, 0] = math.nan
    refused("3 of 400 rows of x are nan or infinite", latents, broken, labels)
    refused(
        "row 0 of the labels is missing .*, 2 of 400",
        latents,
        x,
        torch.tensor([math.nan] * 2 + [0.0, 1.0] * 199),
    )
    refused("one class has 1 different rows or groups", latents, x, labels, groups=labels.long().tolist())
    with pytest.raises(InputError, match="test_share is a share above 0 and at most"):
        SparseProbeConfig(test_share=1)
    with pytest.raises(InputError, match="k needs numbers of latents"):
        SparseProbeConfig(k=())
