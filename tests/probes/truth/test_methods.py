"""Cross-validated fits: the rule for C, scores from outside, and what a three-way read-out of planted bags finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monosem.lab.errors import InputError
from monosem.probes.truth.methods import METHODS, DirectionFitConfig, fit_method, one_standard_error
from monosem.probes.truth.sawmil import SawmilConfig
from monosem.probes.truth.sites import SiteStatements, TruthConfig, orthogonal_null, probe_parts, probe_site
from monosem.probes.truth.statements import SPLITS
from monosem.probes.truth.three_way import ThreeWay, effective_rank
from planted_bags import three_classes

FAST = DirectionFitConfig(strengths=(0.1, 1.0), sawmil=SawmilConfig(steps=40))


def test_the_first_strength_within_one_standard_error_is_chosen():
    table = np.array([[0.70, 0.72, 0.71], [0.78, 0.82, 0.80], [0.80, 0.86, 0.83], [0.79, 0.85, 0.82]])
    # the best mean is 0.83, its standard error 0.03 / sqrt(3) = 0.0173: 0.80 is outside, 0.82 comes later
    assert one_standard_error(table) == 2
    assert one_standard_error(np.array([[0.70, 0.72, 0.71], [0.81, 0.84, 0.82], [0.80, 0.86, 0.83]])) == 1
    assert one_standard_error(np.array([[0.5, 0.5], [0.9, 0.9]])) == 1


@pytest.fixture(scope="module")
def planted():
    return three_classes()


def test_orthogonal_signals_come_out_as_opposed(planted):
    cosines = [
        float(w[0] @ w[1])
        for seed in range(2)
        for w in [orthogonal_null("sawmil", DirectionFitConfig((0.1, 1.0), seed=seed))]
    ]
    assert np.mean(cosines) == pytest.approx(-0.22, abs=0.12)
    at = torch.tensor([[1.0, 0.0], [-0.22, (1 - 0.22**2) ** 0.5]])
    assert effective_rank(at) == pytest.approx(1.952, abs=2e-3)
    assert effective_rank(torch.eye(2)) == pytest.approx(2) and effective_rank(torch.ones(2, 3)) == pytest.approx(1)


@pytest.mark.parametrize("method", METHODS)
def test_planted_classes_are_read_and_shuffled_ones_are_not(planted, method):
    bags, statements = planted
    result = probe_site(bags, statements, TruthConfig(methods=(method,), fit=FAST, resamples=50))[method]
    mcc = result.scores["mcc"]
    assert mcc.value > (0.85 if method == "sawmil" else 0.3)
    assert mcc.interval is not None and mcc.interval[0] <= mcc.value <= mcc.interval[1]
    assert mcc.beats_nulls() and abs(mcc.nulls["token_count"]) < 0.2
    assert result.selection > 0.3 and result.scores["coverage"].n == 15
    assert "none of which the" in mcc.held_out


def test_scores_from_outside_are_lower_than_those_from_inside(planted):
    bags, statements = three_classes(shift=0.0)
    part = SiteStatements(bags, statements).of("train")
    y = part.statements.labels
    groups = np.unique(part.statements.entities, return_inverse=True)[1]
    fitted = fit_method("svm_last", part.bags, torch.from_numpy(y)[:, None] == torch.arange(3), y, groups, FAST)
    own = torch.from_numpy(y)[:, None] == torch.arange(3)
    gap = [float(scores[own].mean() - scores[~own].mean()) for scores in (fitted.inside, fitted.outside)]
    assert gap[0] > 3 * abs(gap[1]), "with nothing to find, only scores of what was fitted tell the classes apart"
    sure = [
        ThreeWay.of(fitted, y, readout).probabilities(part.bags).max(1).mean() for readout in ("published", "crossfit")
    ]
    assert sure[0] > sure[1]


def test_scaling_activations_or_shifting_them_changes_no_decision(planted):
    bags, statements = planted
    config = TruthConfig(methods=("sawmil",), fit=FAST, resamples=1)
    moved = bags.with_rows(bags.x * 7 + 3)
    before, after = (probe_site(one, statements, config)["sawmil"].reading for one in (bags, moved))
    assert (before.likeliest == after.likeliest).mean() > 0.98


def test_the_directions_are_a_probe_that_can_be_saved(planted, tmp_path):
    from monosem.probes.files import load

    bags, statements = planted
    three_way = probe_site(bags, statements, TruthConfig(methods=("sawmil",), fit=FAST, resamples=1))[
        "sawmil"
    ].three_way
    probe = three_way.probe("resid_post.1", {"parameters": "x"})
    probe.save(tmp_path / "probe")
    again = load(tmp_path / "probe")
    torch.testing.assert_close(bags.most(again.scores(bags.x)), three_way.scores(bags), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(again.directions, three_way.directions())


def test_what_cannot_be_fitted_is_refused(planted):
    bags, statements = planted
    few = statements.take(np.arange(40))
    with pytest.raises(InputError, match="bags and 40 statements"):
        probe_site(bags, few)
    whole = SiteStatements(bags, statements)
    train, calibration, test = (whole.of(split) for split in SPLITS)
    short = SiteStatements(calibration.bags.take(torch.arange(6)), calibration.statements.take(np.arange(6)))
    with pytest.raises(InputError, match="6 calibration points"):
        probe_parts("svm_last", train, short, test, TruthConfig(fit=FAST))
    one = np.flatnonzero(np.array(train.statements.entities) == "entity 2")
    with pytest.raises(InputError, match="too few"):
        probe_parts(
            "svm_last",
            SiteStatements(train.bags.take(torch.from_numpy(one)), train.statements.take(one)),
            calibration,
            test,
            TruthConfig(fit=FAST),
        )
    with pytest.raises(InputError, match="unknown method 'sawmill'"):
        TruthConfig(methods=("sawmill",))
    with pytest.raises(InputError, match="smallest first"):
        DirectionFitConfig(strengths=(1.0, 0.1))
