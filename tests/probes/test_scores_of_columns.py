"""Scores, splits and maps take columns of a table by position: the index of a Series plays no part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from monosem.probes.fitting.calibration import Isotonic, Platt, brier, ece, reliability
from monosem.probes.fitting.splits import group_folds
from monosem.probes.geo.maps import cluster_map, quantile_classes, value_map
from monosem.probes.geo.places import Places
from monosem.probes.geo.statistics import adjusted
from monosem.probes.measure import balanced_accuracy, mean_auc, r2
from monosem.probes.truth.conformal import Conformal, binary_strangeness
from monosem.probes.truth.scores import mcc

pd = pytest.importorskip("pandas")

RNG = np.random.default_rng(0)
N = 60
CHANCES, WEIGHTS = RNG.random(N), RNG.random(N)
LABELS = (RNG.random(N) < CHANCES).astype(int)
GROUPS = np.arange(N) // 2
READ = CHANCES[:, None] - 0.5
NAMES = tuple(f"p{i}" for i in range(N))
PLACES = Places(NAMES, ("X",) * N, ("r",) * N, np.linspace(-50, 50, N), np.linspace(-90, 90, N))


def texts(figure: Any) -> list[Sequence[str]]:
    return [trace.text for trace in figure.data]


ENTRIES: dict[str, tuple[Callable[..., Any], list[np.ndarray]]] = {
    "ece": (ece, [CHANCES, LABELS, WEIGHTS]),
    "brier": (brier, [CHANCES, LABELS, WEIGHTS]),
    "reliability": (reliability, [CHANCES, LABELS]),
    "platt": (lambda *given: Platt.learn(*given)(given[0]).tolist(), [CHANCES, LABELS]),
    "isotonic": (lambda *given: Isotonic.learn(*given)(given[0]).tolist(), [CHANCES, LABELS]),
    "mcc": (mcc, [(CHANCES > 0.5).astype(int), LABELS, WEIGHTS]),
    "auc": (lambda *given: mean_auc(READ, *given), [LABELS, WEIGHTS]),
    "accuracy": (lambda *given: balanced_accuracy(READ, *given), [LABELS, WEIGHTS]),
    "r2": (lambda y, weights: r2(READ[:, 0], y, weights), [CHANCES**2, WEIGHTS]),
    "folds": (lambda *given: [test.tolist() for _, test in group_folds(*given, 4, 0)], [LABELS, GROUPS]),
    "conformal": (lambda *given: Conformal.fit(binary_strangeness(given[0]), given[1]).strangeness.tolist(),
                  [CHANCES, LABELS]),
    "conformal p": (lambda *given: Conformal(*given, coverage="class").p_values(np.eye(2)).tolist(),
                    [CHANCES, LABELS]),
    "quantiles": (lambda values: [part.tolist() for part in quantile_classes(values)], [CHANCES]),
    "map of values": (lambda values: texts(value_map(PLACES, values)), [CHANCES]),
    "map of clusters": (lambda *given: texts(cluster_map(PLACES, *given)), [CHANCES, LABELS, WEIGHTS > 0.5]),
    "adjusted": (lambda p: np.asarray(adjusted(p)).tolist(), [CHANCES]),
}  # fmt: skip


@pytest.mark.parametrize("name", ENTRIES)
def test_columns_with_shuffled_indices_score_as_arrays(name):
    call, given = ENTRIES[name]
    columns = [pd.Series(values, index=np.random.default_rng(i).permutation(N)) for i, values in enumerate(given)]
    assert call(*columns) == call(*given)
    filtered = [pd.Series(values, index=np.arange(N) + 1000) for values in given]
    assert call(*filtered) == call(*given)
