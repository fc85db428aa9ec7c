"""The best of many places: chosen on half of the tested units, scored on the other half."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monosem.probes.best_place import choose
from monosem.probes.labels import Labels
from monosem.probes.measure import MeasureConfig, Measured, evidence_of

CONFIG = MeasureConfig(resamples=20)
UNITS, TESTED = 400, torch.arange(100, 400)
LABELS = Labels.of([i % 2 for i in range(UNITS)])


def measured(read: torch.Tensor) -> Measured:
    told, nulls = LABELS.take(TESTED), {"auc": {"token_count": 0.5}, "accuracy": {"token_count": 0.5}}
    probe: Any = None
    return Measured(probe, evidence_of(read, told, nulls, "some", CONFIG), read, TESTED)


def noise(places: int, seed: int) -> dict[str, Measured]:
    rng = torch.Generator().manual_seed(seed)
    return {f"resid_post.{i}": measured(torch.randn(len(TESTED), 1, generator=rng)) for i in range(places)}


def test_the_best_of_many_places_of_noise_is_reported_as_noise() -> None:
    """The largest of 20 AUCs of noise on the same 300 units is near 0.56."""
    reported, largest = [], []
    for seed in range(8):
        places = noise(20, seed)
        chosen = choose(places, LABELS, CONFIG)
        reported.append(chosen.scores["auc"].value)
        largest.append(max(one["auc"].value for one in places.values()))
    assert np.mean(largest) > 0.545 and abs(np.mean(reported) - 0.5) < 0.03


def test_a_place_that_tells_is_chosen_and_scored_on_fewer_units() -> None:
    told = LABELS.take(TESTED).y[:, None] + 0.5 * torch.randn(300, 1, generator=torch.Generator().manual_seed(0))
    chosen = choose({**noise(5, 0), "resid_post.9": measured(told.float())}, LABELS, CONFIG)
    assert chosen.place == "resid_post.9" and chosen.scores["auc"].value > 0.8
    assert chosen.scores["auc"].n == 150 and chosen.scores["auc"].nulls == {"token_count": 0.5}
    assert chosen.scores["auc"].note.startswith("the best of 6 places on 150 other test units")


def test_one_place_needs_no_choice_and_few_units_are_told() -> None:
    (only,) = noise(1, 0).items()
    assert choose(dict([only]), LABELS, CONFIG).scores == only[1].scores
    labels = Labels.of([0, 1] * 200, groups=[0, 1] * 200)
    chosen = choose(noise(3, 0), labels, CONFIG)
    assert "the best of 3 places on these same units" in chosen.scores["auc"].note
    assert chosen.scores["auc"].value == pytest.approx(max(one["auc"].value for one in noise(3, 0).values()))
