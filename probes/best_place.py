"""The best of several places, chosen on one half of the tested units and scored on the other.

The largest of many scores on the same units is partly luck: with 30 layers and 1,000 texts it is too high by about a
standard error. So the tested units are halved by group; one half chooses, the other reports.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ..lab.errors import InputError
from ..lab.evidence import Evidence
from ..lab.rng import derive_seed
from .fitting.splits import group_folds
from .labels import Labels
from .measure import MeasureConfig, Measured, evidence_of, scores_for


class Chosen(NamedTuple):
    """The place where a kind of probe does best."""

    place: str
    scores: dict[str, Evidence]
    """Its scores on the half of the tested units that did not choose it; with one place, on all of them."""


def choose(measured: Mapping[str, Measured], labels: Labels, config: MeasureConfig) -> Chosen:
    """Choose the place with the best main score on half of the tested units, and score it on the other half.

    Where the tested groups cannot be halved, both happen on all tested units, and the scores' note says so. Nulls were
    not chosen by; they stand as measured on all tested units.

    Args:
        measured: one kind of probe by place, all with the same tested units.
        labels: of all units, tested or not.
    """
    first = next(iter(measured.values()))
    if len(measured) == 1:
        return Chosen(next(iter(measured)), first.scores)
    told = labels.take(first.tested)
    y = told.y.numpy()
    main, score = next(iter(scores_for(told).items()))
    try:
        (choosing, reporting), *_ = group_folds(
            y, told.groups.numpy(), 2, derive_seed(config.seed, "choice of a place")
        )
    except InputError:
        place = max(measured, key=lambda one: measured[one][main].value)
        note = f"the best of {len(measured)} places on these same units, which are too few to choose on half of them"
        return Chosen(place, {name: replace(one, note=note) for name, one in measured[place].scores.items()})
    ones = np.ones(len(choosing))
    reached = {one: score(held.read[choosing].double().numpy(), y[choosing], ones) for one, held in measured.items()}
    place = max(reached, key=lambda one: reached[one])
    best = measured[place]
    nulls = {name: evidence.nulls for name, evidence in best.scores.items()}
    scores = evidence_of(best.read[reporting], told.take(reporting), nulls, best[main].held_out, config)
    note = f"the best of {len(measured)} places on {len(choosing)} other test units; nulls on all test units"
    return Chosen(place, {name: replace(one, note=note) for name, one in scores.items()})
