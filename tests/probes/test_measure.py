"""Scores of probes beside their nulls, splits that do not leak, calibration, and the layer sweep."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny_commands
import torch
from monosem.lab.errors import InputError
from monosem.lab.models.hooked_model import HookedModel
from monosem.lab.models.loading import load_model
from monosem.probes.fitting.calibration import (
    Isotonic,
    Platt,
    brier,
    calibrate,
    calibration_scores,
    chances_of,
    ece,
    reliability,
)
from monosem.probes.fitting.fits import fit
from monosem.probes.fitting.nulls import shuffled_model
from monosem.probes.fitting.splits import group_folds
from monosem.probes.labels import Labels, PooledRows, Source
from monosem.probes.layer_sweep import ReadConfig, expand_sites, probe_sweep
from monosem.probes.measure import MeasureConfig, balanced_accuracy, mean_auc, measure, r2
from monosem.probes.token_scores import score_tokens, worst_errors
from planted_rows import planted

QUICK = MeasureConfig(repeats=2, resamples=50)


def test_a_planted_label_beats_its_nulls_and_a_random_one_does_not() -> None:
    rows = planted(n=400).rows
    noise = replace(rows, x=torch.randn(400, 16, generator=torch.Generator().manual_seed(3)))
    for kind, found in measure(rows, ["logistic", "mean_difference"], QUICK).items():
        assert found["auc"].value > 0.9 and found["auc"].beats_nulls(), kind
        assert set(found["auc"].nulls) == {"shuffled_labels", "token_count"}
        assert found["auc"].nulls["token_count"] == 0.5  # all texts are of one length
        low, high = found["auc"].interval or (0, 0)
        assert low < found["auc"].value < high
    low, high = measure(noise, ["logistic"], QUICK)["logistic"]["auc"].interval or (0, 0)
    assert low < 0.5 < high


def test_labels_that_follow_the_length_are_given_away_by_the_token_count() -> None:
    rng = torch.Generator().manual_seed(0)
    y = torch.arange(200) % 2
    labels = Labels.of(y, tokens=5 + 4 * y + torch.randint(0, 2, (200,), generator=rng))
    x = torch.randn(200, 8, generator=rng) + 2 * y[:, None]
    found = measure(PooledRows(x, labels), ["ridge"], QUICK)["ridge"]["auc"]
    assert found.nulls["token_count"] == 1.0 and not found.beats_nulls()


def test_a_group_that_leaks_is_not_split() -> None:
    """Rows that tell their group and nothing else: any probe that scores them was fitted on their group."""
    rng = torch.Generator().manual_seed(0)
    entity = torch.arange(300) // 3
    x = torch.randn(100, 200, generator=rng)[entity]
    y = (torch.arange(100) % 2)[entity]
    apart = measure(PooledRows(x, Labels.of(y, groups=entity)), ["ridge"], MeasureConfig(folds=5, repeats=1))
    leaked = measure(PooledRows(x, Labels.of(y)), ["ridge"], MeasureConfig(folds=5, repeats=1))
    assert leaked["ridge"]["auc"].value > 0.95
    low, high = apart["ridge"]["auc"].interval or (0, 0)
    assert low < 0.5 < high and apart["ridge"]["auc"].n == 100 and len(apart["ridge"].tested) == 300


def test_folds_keep_groups_whole_and_cover_every_unit_once() -> None:
    y, groups = np.arange(60) % 2, np.arange(60) // 4
    folds = group_folds(y, groups, 3, 0)
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(60))
    for train, test in folds:
        assert not set(groups[train]) & set(groups[test])
    with pytest.raises(InputError, match="one class has 1 different rows or groups, too few for a split into 4"):
        group_folds(y, np.zeros(60, dtype=int), 4, 0)
    with pytest.raises(InputError, match="there are 2 different groups"):
        group_folds(np.random.default_rng(0).random(10), np.arange(10) % 2, 4, 0)


def test_scaling_sees_training_units_only() -> None:
    rows = planted(n=100).rows
    found = measure(rows, ["ridge"], QUICK)["ridge"]
    changed = rows.x.clone()
    changed[found.tested] *= 1e3
    again = measure(replace(rows, x=changed), ["ridge"], QUICK)["ridge"]
    assert torch.equal(found.probe.weight, again.probe.weight)
    assert torch.equal(found.probe.scaling.mean, again.probe.scaling.mean)


def test_scores_by_hand() -> None:
    ones = np.ones(4)
    y = np.array([0, 0, 0, 1])
    assert balanced_accuracy(np.array([[-1], [-1], [1], [1.0]]), y, ones) == pytest.approx((2 / 3 + 1) / 2)
    assert mean_auc(np.array([[0.0], [1], [3], [2]]), y, ones) == pytest.approx(2 / 3)
    told = np.array([[1.0], [2.0], [3.0]])
    assert r2(told, told, np.ones(3)) == 1 and r2(np.full((3, 1), 2.0), told, np.ones(3)) == pytest.approx(0)
    three = np.eye(3)[np.array([0, 1, 2, 2])]
    assert mean_auc(three, np.array([0, 1, 2, 1]), ones) == pytest.approx(np.mean([1, 0.75, 5 / 6]))


def test_numbers_are_scored_by_explained_variance() -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(200, 5, generator=rng)
    found = measure(
        PooledRows(x, Labels.numbers(x[:, :2] + 0.1 * torch.randn(200, 2, generator=rng))), ["ridge"], QUICK
    )
    assert found["ridge"]["r2"].value > 0.95 and found["ridge"]["r2"].beats_nulls()


def test_chances_come_true_after_calibration() -> None:
    rows = planted(n=3000, d=6, shift=1.5).rows
    train, test = rows.take(range(2000)), rows.take(range(2000, 3000))
    probe = fit("mean_difference", train)  # in units of squared distance, far from log odds
    loud = replace(probe, weight=5 * probe.weight, bias=5 * probe.bias)
    for method in ("platt", "isotonic"):
        calibration = calibrate("mean_difference", train, method=method)
        chances = chances_of(probe.scores(test.x), calibration)
        uncalibrated = loud.scores(test.x)[:, 0].double().numpy()
        scores = calibration_scores(chances, test.labels, base_rate=0.5, uncalibrated=uncalibrated)
        assert scores["ece"].value < 0.06 < scores["ece"].nulls["uncalibrated"], method
        assert scores["brier"].beats_nulls(), method
        bins = reliability(chances, test.labels.y.numpy())
        assert sum(one["units"] for one in bins) == 1000
    folded = Platt(2.0, 0.5).folded(probe)
    torch.testing.assert_close(folded.scores(test.x), 2 * probe.scores(test.x) + 0.5, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_chances_of_what_was_learnt_by_heart_are_even(method: str) -> None:
    """Labels that say nothing, in columns wide enough to part any of them: only unseen units tell that."""
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(400, 600, generator=rng), (torch.rand(400, generator=rng) < 0.5).long()
    train, test = PooledRows(x[:200], Labels.of(y[:200].tolist())), x[200:]
    chances = chances_of(fit("ridge", train).scores(test), calibrate("ridge", train, method=method))
    assert np.abs(chances - 0.5).mean() < 0.15


def test_calibration_errors_by_hand() -> None:
    y, ones = np.array([0, 0, 1, 1]), np.ones(4)
    assert brier(np.full(4, 0.5), y, ones) == 0.25 and ece(np.full(4, 0.5), y, ones) == 0
    assert ece(np.array([0.1, 0.1, 0.9, 0.9]), y, ones, bins=2) == pytest.approx(0.1)
    step = Isotonic.learn(np.arange(4.0), y)
    assert step(np.array([-5.0, 0.0, 3.0, 9.0])).tolist() == [0, 0, 1, 1]
    with pytest.raises(InputError, match="chances lie between 0 and 1"):
        calibration_scores(np.array([2.0] * 10), Labels.of([0, 1] * 5), base_rate=0.5)


def test_worst_errors_are_the_widest_margins() -> None:
    rows = planted(n=200, shift=0.5).rows
    found = measure(rows, ["logistic"], QUICK)["logistic"]
    worst = worst_errors(found, rows.labels, 5)
    margin = {
        int(u): float(s) * (2 * int(rows.labels.y[u]) - 1) for u, s in zip(found.tested, found.read[:, 0], strict=True)
    }
    assert [int(u) for u in worst] == sorted(margin, key=margin.__getitem__)[:5]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> HookedModel:
    folder = tiny_commands.write_model(tmp_path_factory.mktemp("model") / "model")
    return load_model(str(folder), dtype="fp32", device="cpu")


TEXTS = [
    f"the {adjective} {noun} near a boat"
    for noun in (*tiny_commands.TOPICS["sea"][:6], *tiny_commands.TOPICS["kitchen"][:6])
    for adjective in tiny_commands.ADJECTIVES[:4]
]
TOLD = ["sea"] * 24 + ["kitchen"] * 24


def test_a_sweep_reads_once_and_measures_every_place_and_kind(model: HookedModel) -> None:
    forwards = model.forwards
    sweep = probe_sweep(
        model, TEXTS, TOLD, ["resid_post.*", "z.1"], ["ridge", "mean_difference"],
        ReadConfig(pooling="mean", heads=True, shuffled_model=True), QUICK,
    )  # fmt: skip
    # one pass; sites' widths took at most one tiny pass each
    assert model.forwards - forwards <= len(TEXTS) // 16 + 4
    assert list(sweep.measured) == [*(f"resid_post.{i}" for i in range(3)), *(f"z.1 head {h}" for h in range(4))]
    nulls = {"shuffled_labels", "token_count", "random_features", "shuffled_model"}
    for place, kinds in sweep.measured.items():
        for kind, found in kinds.items():
            assert set(found["auc"].nulls) == nulls, (place, kind)
    assert sweep["resid_post.0"]["ridge"]["auc"].value > 0.95  # the nouns differ
    assert sweep["resid_post.0"]["ridge"]["auc"].nulls["token_count"] == 0.5
    assert sweep.best("ridge") in sweep.measured and len(sweep.table()) == 7 * 2 * 2
    figure = sweep.plot("accuracy")
    assert {trace.name for trace in figure.data} >= {f"null: {null.replace('_', ' ')}" for null in nulls}
    with pytest.raises(InputError, match="unknown score"):
        sweep.plot("f2")


def test_token_scores_are_the_probe_at_every_token(model: HookedModel) -> None:
    sweep = probe_sweep(model, TEXTS, TOLD, ["resid_post.1"], ["ridge"], config=QUICK)
    probe = sweep["resid_post.1"]["ridge"].probe
    (line, _) = score_tokens(model, probe, TEXTS[:2])
    assert [token.strip() for token in line.tokens] == TEXTS[0].split() and "".join(line.tokens).strip() == TEXTS[0]
    torch.testing.assert_close(
        line.scores[-1], probe.scores(sweep.units["resid_post.1"].x[:1])[0], rtol=1e-3, atol=1e-3
    )


def test_a_shuffled_model_keeps_scale_and_forgets_everything_else(model: HookedModel) -> None:
    other = shuffled_model(model)
    for (name, mine), theirs in zip(model.module.named_parameters(), other.module.parameters(), strict=True):
        assert torch.equal(mine.flatten().sort().values, theirs.flatten().sort().values), name
    assert other.fingerprint()["parameters"] != model.fingerprint()["parameters"]


def test_bad_sweeps_are_refused_before_the_model_runs(model: HookedModel) -> None:
    forwards = model.forwards
    with pytest.raises(InputError, match="unknown pattern of sites 'resid_pots"):
        expand_sites(model, ["resid_pots.*"])
    with pytest.raises(InputError, match="48 texts and 47 labels"):
        probe_sweep(model, TEXTS, Labels.of(TOLD[:47]), ["resid_post.1"], ["ridge"])
    with pytest.raises(InputError, match="1 texts have no token to read, the first is number 3"):
        probe_sweep(model, [*TEXTS[:3], "", *TEXTS[4:]], TOLD, ["resid_post.1"], ["ridge"])
    with pytest.raises(InputError, match="too few for a split"):
        probe_sweep(model, TEXTS, Labels.of(TOLD, groups=TOLD), ["resid_post.1"], ["ridge"])
    assert model.forwards == forwards
    constant = PooledRows(torch.ones(20, 3), Labels.of([0, 1] * 10), Source("resid_post.0"))
    with pytest.raises(InputError, match=r"every unit has the same values at resid_post\.0"):
        measure(constant, ["ridge"])
