"""Scores beside their nulls: what beats a null, what was not measured, and what tables mark."""

from __future__ import annotations

import numpy as np
import pytest
from monosem.lab.evidence import MARK, Evidence, bootstrap, mark, mean_interval, unbeaten


def test_nothing_is_beaten_without_nulls() -> None:
    assert not Evidence("fvu", 0.1).beats_nulls()


@pytest.mark.parametrize(
    ("better", "interval", "beaten"),
    [
        ("lower", (0.3, 0.45), True),
        ("lower", (0.3, 0.55), False),
        ("higher", (0.35, 0.5), False),
        ("nearest one", (0.3, 0.6), False),
    ],
)
def test_the_whole_interval_has_to_beat_the_null(better: str, interval: tuple[float, float], beaten: bool) -> None:
    null = {"lower": 0.5, "higher": 0.38, "nearest one": 0.35}[better]
    score = Evidence("score", 0.4, interval, {"untrained": null}, better=better)
    assert score.beats_nulls() == beaten == (not score.unbeaten()) == (not score.mark())
    assert Evidence("score", 0.4, None, {"untrained": null}, better=better).beats_nulls()  # the value alone does


def test_a_null_that_was_not_measured_is_not_beaten_and_is_named() -> None:
    missing = Evidence("fvu", 0.1, None, {"pca": 0.5}, missing={"covariance": "no model"})
    assert not missing.beats_nulls() and missing.unmeasured == {"covariance": "no model"}
    assert "null covariance not measured: no model" in str(missing) and missing.mark() == ""
    assert missing.to_json()["missing"] == {"covariance": "no model"}
    infinite = Evidence("fvu", 0.1, None, {"pca": float("nan")})
    assert not infinite.beats_nulls() and set(infinite.unmeasured) == {"pca"}
    assert not Evidence("fvu", float("nan"), None, {"pca": 0.5}).beats_nulls()


def test_marks_of_plain_values_heed_the_interval() -> None:
    assert mark(0.4, {"pca": 0.5}) == "" and mark(0.4, {"pca": 0.5}, interval=[0.3, 0.6]) == MARK
    assert unbeaten(0.4, {"pca": 0.5, "dead": None}, interval=(None, None)) == []


def test_intervals_are_those_of_95_percent() -> None:
    """The mean of 2,000 normal values: 1.96 standard errors to either side, by 4,000 resamples."""
    values = np.random.default_rng(0).standard_normal(2000) + 3
    error = values.std() / 2000**0.5
    found = bootstrap(lambda weights: float(weights @ values / weights.sum()), 2000, resamples=4000)
    assert found is not None
    low, high = found
    assert (values.mean() - low) / error == pytest.approx(1.96, rel=0.06)
    assert (high - values.mean()) / error == pytest.approx(1.96, rel=0.06)
    few = np.array([1.0, np.nan, 3.0])
    assert mean_interval(few) == (1.0, 3.0) and mean_interval(few[:2]) is None
