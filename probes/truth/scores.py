"""Scores of a three-way read-out on held-out statements, each with its interval and nulls.

mcc           Matthews correlation of the likeliest class with the right one, over all statements
wmcc          the same over statements that conformal prediction answers, times the share it answers
coverage      share of statements whose right class is in their conformal set; `coverage_class` class by class
acceptance    share of statements whose conformal set is one class
selective_true, selective_false   chance that a true (false) statement is given a higher probability of being so than
              one that is not: against false (true) ones or against neither, whichever is worse
ami, ari      adjusted mutual information and adjusted Rand index of likeliest and right class
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from ...lab.evidence import Evidence, bootstrap
from ...lab.sequences import integers_of, numbers_of, texts_of
from ..fitting.sparse import auc
from .conformal import Conformal, multiclass_strangeness
from .statements import CLASSES, FALSE, TRUE

MEANINGS = {
    "mcc": "Matthews correlation over all statements",
    "wmcc": "Matthews correlation over answered statements, times the share answered",
    "coverage": "share of conformal sets with the right class",
    "coverage_class": "the same, calibrated class by class; that of the class it holds least",
    "acceptance": "share of statements with one class in their conformal set",
    "selective_true": "chance that a true statement looks truer than one that is false, or neither: the worse of both",
    "selective_false": "the same of false statements",
    "ami": "adjusted mutual information",
    "ari": "adjusted Rand index",
}


@dataclass(frozen=True)
class Reading:
    """Scores and sets of one read-out for the statements of a test split."""

    probabilities: Float[np.ndarray, "statements classes"]
    sets: Bool[np.ndarray, "statements classes"]
    """Conformal sets with marginal coverage."""
    class_sets: Bool[np.ndarray, "statements classes"]
    """Conformal sets with coverage in each class."""

    @classmethod
    def of(
        cls,
        calibration: Float[np.ndarray, "points classes"],
        labels: Int[np.ndarray, " points"],
        test: Float[np.ndarray, "statements classes"],
        alpha: float,
    ) -> Reading:
        """From probabilities of calibration and test statements.

        Raises:
            InputError: too few calibration points of a class for this alpha.
        """
        known, new = multiclass_strangeness(calibration), multiclass_strangeness(test)
        sets = [Conformal.fit(known, labels, alpha, kind).sets(new) for kind in ("marginal", "class")]
        return cls(test, *sets)

    @property
    def likeliest(self) -> Int[np.ndarray, " statements"]:
        """The most probable class."""
        return self.probabilities.argmax(1)

    @property
    def accepted(self) -> Bool[np.ndarray, " statements"]:
        """True where the conformal set is one class."""
        return self.sets.sum(1) == 1


Score = Callable[[Reading, np.ndarray, np.ndarray], float]


def mcc(told: Int[np.ndarray, " n"], right: Int[np.ndarray, " n"], weights: Float[np.ndarray, " n"]) -> float:
    """Matthews correlation of the three classes (Gorodkin 2004); 0 where one class is told or right throughout."""
    counts = _counts(integers_of(told).numpy(), integers_of(right).numpy(), numbers_of(weights))
    rows, columns, total = counts.sum(1), counts.sum(0), counts.sum()
    spread = (total**2 - rows @ rows) * (total**2 - columns @ columns)
    return float((counts.trace() * total - rows @ columns) / spread**0.5) if spread > 0 else 0.0


def _wmcc(reading: Reading, right: np.ndarray, weights: np.ndarray) -> float:
    kept = weights * reading.accepted
    return mcc(reading.likeliest, right, kept) * kept.sum() / weights.sum()


def _class_coverage(reading: Reading, right: np.ndarray, weights: np.ndarray) -> float:
    held = reading.class_sets[np.arange(len(right)), right]
    sums = np.bincount(right, weights, len(CLASSES))
    return float(np.min(np.bincount(right, weights * held, len(CLASSES))[sums > 0] / sums[sums > 0]))


def _selective(label: int) -> Score:
    def score(reading: Reading, right: np.ndarray, weights: np.ndarray) -> float:
        own = right == label
        found = []
        for other in set(range(len(CLASSES))) - {label}:
            kept = own | (right == other)
            found.append(auc(reading.probabilities[kept, label], own[kept].astype(float), weights[kept]))
        return float(np.min(found))

    return score


def _ami(reading: Reading, right: np.ndarray, weights: np.ndarray) -> float:
    from sklearn.metrics import mutual_info_score
    from sklearn.metrics.cluster import expected_mutual_information

    counts = _counts(reading.likeliest, right, weights).astype(np.int64)
    counts = counts[counts.any(1)][:, counts.any(0)]
    found, chance = mutual_info_score(None, None, contingency=counts), expected_mutual_information(counts, counts.sum())
    shares = [counts.sum(axis) / counts.sum() for axis in (0, 1)]
    most = np.mean([-(share * np.log(share)).sum() for share in shares])
    return float((found - chance) / (most - chance)) if most > chance else 0.0


def _ari(reading: Reading, right: np.ndarray, weights: np.ndarray) -> float:
    counts = _counts(reading.likeliest, right, weights)

    def pairs(n: np.ndarray) -> float:
        return float((n * (n - 1)).sum() / 2)

    rows, columns = pairs(counts.sum(1)), pairs(counts.sum(0))
    chance, most = rows * columns / max(pairs(counts.sum()), 1), (rows + columns) / 2
    return (pairs(counts) - chance) / (most - chance) if most > chance else 0.0


def _counts(told: np.ndarray, right: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Statements by right class (rows) and told class (columns)."""
    n = len(CLASSES)
    return np.bincount(right * n + told, weights, n * n).reshape(n, n)


SCORES: Mapping[str, Score] = {
    "mcc": lambda reading, right, weights: mcc(reading.likeliest, right, weights),
    "wmcc": _wmcc,
    "coverage": lambda reading, right, weights: float(
        weights @ reading.sets[np.arange(len(right)), right] / weights.sum()
    ),
    "coverage_class": _class_coverage,
    "acceptance": lambda reading, _, weights: float(weights @ reading.accepted / weights.sum()),
    "selective_true": _selective(TRUE),
    "selective_false": _selective(FALSE),
    "ami": _ami,
    "ari": _ari,
}


def score_reading(
    reading: Reading,
    right: Int[np.ndarray, " statements"],
    entities: Sequence[str],
    nulls: Mapping[str, Sequence[Reading]],
    *,
    alpha: float,
    seed: int = 0,
    resamples: int = 1000,
    held_out: str = "",
) -> dict[str, Evidence]:
    """Every score with a bootstrap interval over entities.

    Args:
        entities: what each statement is about.
        nulls: what other read-outs, which have learned nothing of truth, say of the same statements; of several
            draws of one the mean score.
    """
    right = integers_of(right, "labels").numpy()
    unit = np.unique(texts_of(entities, "entities"), return_inverse=True)[1].reshape(-1)
    ones = np.ones(len(right))
    found = {}
    for name, score in SCORES.items():
        interval = bootstrap(
            lambda weights, score=score: score(reading, right, weights[unit]),
            int(unit.max()) + 1,
            seed=seed,
            resamples=resamples,
        )
        note = ""
        if name.startswith("coverage"):
            note = f"asked for at least {1 - alpha:g}; any read-out reaches it, also one that knows nothing"
        beside = {null: float(np.mean([score(one, right, ones) for one in draws])) for null, draws in nulls.items()}
        found[name] = Evidence(
            name,
            score(reading, right, ones),
            interval,
            beside,
            int(unit.max()) + 1,
            "entities",
            held_out,
            "higher",
            note,
        )
    return found
