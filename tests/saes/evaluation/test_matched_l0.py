"""Matched L0, Pareto points, and gaps beside seed noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from monosem.lab.errors import InputError
from monosem.lab.evidence import Evidence
from monosem.saes.evaluation.matched_l0 import Curve, common_l0, matched, pareto, seed_gap

finite = st.floats(-10, 10)


def test_between_two_points_the_score_is_linear_in_log_l0() -> None:
    curve = Curve("a", (100, 1, 10), (0.1, 0.5, 0.3))
    assert curve.l0 == (1, 10, 100) and curve.at(10) == 0.3 and curve.at(100) == 0.1
    assert curve.at(math.sqrt(10)) == pytest.approx(0.4)
    assert curve.at(10**1.25) == pytest.approx(0.25)


@given(st.lists(st.floats(0.5, 1e4), min_size=2, max_size=8, unique_by=lambda v: round(v, 3)), finite, finite)
def test_a_line_in_log_l0_is_given_back_exactly(l0: list[float], slope: float, start: float) -> None:
    curve = Curve("line", tuple(l0), tuple(start + slope * math.log(x) for x in l0))
    low, high = min(l0), max(l0)
    for share in (0.0, 0.3, 1.0):
        x = min(high, max(low, low ** (1 - share) * high**share))
        assert curve.at(x) == pytest.approx(start + slope * math.log(x), abs=1e-8)


@pytest.mark.parametrize("l0", [0.99, 100.01, math.nan])
def test_nothing_is_extrapolated(l0: float) -> None:
    with pytest.raises(InputError, match="a was measured at L0 from 1 to 100, not at"):
        Curve("a", (1, 100), (0, 1)).at(l0)


def test_curves_are_read_where_all_of_them_reach() -> None:
    a, b = Curve("a", (1, 100), (0.0, 2.0)), Curve("b", (10, 1000), (1.0, 3.0))
    assert common_l0([a, b]) == (10, 100)
    assert matched([a, b]) == {"a": pytest.approx(1.5), "b": pytest.approx(1.5)}
    assert matched([a, b], 100) == {"a": 2.0, "b": pytest.approx(2.0)}
    with pytest.raises(InputError, match=r"c begins at L0 200, above where a ends \(100\)"):
        matched([a, b, Curve("c", (200, 300), (0, 0))])


@pytest.mark.parametrize(
    ("l0", "values", "text"),
    [((), (), "make no curve"), ((1, 2), (1,), "make no curve"), ((0, 1), (1, 1), "above 0"),
     ((1, 2), (1, math.nan), "finite"), ((1, 1), (1, 2), "given twice")],
)  # fmt: skip
def test_a_bad_curve_is_refused(l0: tuple, values: tuple, text: str) -> None:
    with pytest.raises(InputError, match=text):
        Curve("a", l0, values)


def test_pareto_by_hand() -> None:
    l0, fvu = [10, 20, 20, 30, 40, 5], [0.5, 0.3, 0.4, 0.3, 0.1, math.nan]
    assert pareto(l0, fvu) == [0, 1, 4]
    assert pareto(l0, [-v for v in fvu], better="higher") == [0, 1, 4]


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=20))
def test_pareto_points_are_those_that_nothing_beats(points: list[tuple[int, int]]) -> None:
    l0, values = zip(*points, strict=True)
    kept = {points[i] for i in pareto(l0, values)}
    beaten = {p for p in points if any(q[0] <= p[0] and q[1] <= p[1] and q != p for q in points)}
    assert kept == set(points) - beaten


def test_a_gap_by_hand() -> None:
    gap = seed_gap([1.0, 3.0], [11.0, 13.0], score="fvu", names=("ours", "theirs"))
    # variances 2 and 2, so the error of the difference is sqrt(2), with 2 degrees of freedom: t = 4.303
    assert gap.difference == -10 and gap.noise == pytest.approx(2)
    assert gap.interval == pytest.approx((-10 - 4.30265 * math.sqrt(2), -10 + 4.30265 * math.sqrt(2)), abs=1e-4)
    assert gap.verdict == "first" and "ours is better" in str(gap) and "seed noise 2" in str(gap)
    assert seed_gap([1.0, 3.0], [11.0, 13.0], better="higher").verdict == "second"
    evidence = gap.evidence()
    assert evidence.nulls == {"seed_noise": pytest.approx(2)} and evidence.n == 4 and evidence.unit == "seeds"


def test_a_gap_inside_the_noise_is_called_so() -> None:
    gap = seed_gap([1.0, 3.0, 2.0], [2.0, 2.5, 3.0])
    assert gap.verdict == "within noise" and gap.interval is not None and gap.interval[0] < 0 < gap.interval[1]


def test_one_seed_tells_no_noise() -> None:
    gap = seed_gap([Evidence("fvu", 0.1)], [Evidence("fvu", 0.2)])
    assert gap.difference == pytest.approx(-0.1) and math.isnan(gap.noise)
    assert gap.interval is None and gap.verdict == "noise unknown"
    assert seed_gap([1.0], [2.0, 4.0]).noise == pytest.approx(2)  # of the side that has two


def test_equal_recipes_are_told_apart_one_time_in_twenty() -> None:
    rng = np.random.default_rng(0)
    wrong = sum(seed_gap(rng.normal(size=4), rng.normal(size=4)).verdict != "within noise" for _ in range(400))
    assert 6 <= wrong <= 34  # 20 expected


def test_bad_scores_are_refused() -> None:
    with pytest.raises(InputError, match="second needs at least one score"):
        seed_gap([1.0], [])
    with pytest.raises(InputError, match="only finite ones"):
        seed_gap([math.nan], [1.0])
    with pytest.raises(InputError, match="'lower' or 'higher', got 'faster'"):
        seed_gap([1.0], [1.0], better="faster")
    with pytest.raises(InputError, match="2 values of l0 and 1 scores"):
        pareto([1, 2], [1])
