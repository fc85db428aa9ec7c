"""Every kind of probe against planted truth, scikit-learn and its own definition; and its files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from monosem.lab.errors import InputError
from monosem.lab.models.hooked_model import HookedModel
from monosem.lab.rng import generator
from monosem.lab.storage import read_json, write_json
from monosem.probes.files import load
from monosem.probes.fitting.fits import KINDS, FitConfig, fit, fit_all
from monosem.probes.fitting.moments import Moments
from monosem.probes.fitting.nonlinear import AttentionFit, MLPProbe
from monosem.probes.fitting.scaling import Scaling
from monosem.probes.labels import Bags, Labels, PooledRows, Source
from monosem.saes.registry import build_trainable
from planted_rows import planted

ROWS = tuple(kind for kind in KINDS if kind != "attention")
LINEAR = tuple(kind for kind in ROWS if kind not in ("mlp", "multinomial"))


@pytest.mark.parametrize("kind", ROWS)
def test_every_kind_tells_planted_classes_apart(kind: str) -> None:
    world = planted()
    train, test = world.rows.take(range(300)), world.rows.take(range(300, 400))
    probe = fit(kind, train, FitConfig(k=12))
    right = (probe.predict(test.x) == test.labels.y).double().mean()
    assert right > 0.85  # the best possible is 0.933
    assert probe.classes == ("no", "yes") and probe.kind == kind


@pytest.mark.parametrize("kind", LINEAR)
def test_directions_point_from_the_negative_to_the_positive_class(kind: str) -> None:
    world = planted(n=4000, d=6)
    probe = fit(kind, world.rows, FitConfig(k=6))
    torch.testing.assert_close(probe.direction.norm(), torch.tensor(1.0))
    assert probe.direction @ world.direction > 0.98
    moved = world.rows.x + 2 * probe.direction
    assert (probe.scores(moved) > probe.scores(world.rows.x)).all()


def test_mean_difference_is_the_mass_mean_with_its_threshold_half_way() -> None:
    rows = planted(n=60, d=4, positive=0.3).rows
    low, high = (rows.x[rows.labels.y == c].double().mean(0) for c in (0, 1))
    probe = fit("mean_difference", rows)
    torch.testing.assert_close(probe.weight[0].double(), high - low, rtol=1e-5, atol=1e-6)
    at_middle = probe.scores(((low + high) / 2)[None].float())
    assert abs(float(at_middle)) < 1e-5


def test_lda_without_shrinkage_is_the_inverse_within_covariance_of_scikit_learn() -> None:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    rows = planted(n=300, d=8, positive=0.3).rows
    theirs = LinearDiscriminantAnalysis(solver="lsqr").fit(rows.x.double().numpy(), rows.labels.y.numpy())
    ours = fit("lda", rows, FitConfig(class_weights="none", shrinkage=0.0))
    np.testing.assert_allclose(ours.weight[0], theirs.coef_[0], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(ours.bias[0], theirs.intercept_[0], rtol=1e-3, atol=1e-3)


def test_ridge_solves_the_normal_equations_and_balances_classes() -> None:
    from sklearn.linear_model import RidgeClassifier

    rows = planted(n=200, d=8, positive=0.2).rows
    scaled = Scaling.of(rows.x.double())(rows.x.double()).numpy()
    weights = rows.labels.weights.numpy()
    # our penalty is over the mean eigenvalue of the weighted covariance, and per unit
    centred = scaled - np.average(scaled, axis=0, weights=weights)
    level = np.trace((weights[:, None] * centred).T @ centred) / len(rows) / 8
    alpha = 0.1 * level * len(rows)
    theirs = RidgeClassifier(alpha=alpha).fit(scaled, rows.labels.y.numpy(), sample_weight=weights)
    ours = fit("ridge", rows, FitConfig(penalty=0.1))
    np.testing.assert_allclose(ours.scores(rows.x)[:, 0], theirs.decision_function(scaled), atol=1e-4)


def test_ridge_predicts_planted_numbers_and_chooses_a_small_penalty_for_clean_ones() -> None:
    rng = generator(0, "numbers")
    x = torch.randn(300, 10, generator=rng)
    told = x[:, :2] * 3 + 100
    noise = torch.randn(300, 2, generator=rng)
    clean, noisy = (fit("ridge", PooledRows(x, Labels.numbers(one))) for one in (told, noise))
    torch.testing.assert_close(clean.predict(x), told, atol=0.01, rtol=0)
    assert clean.training["penalty"] < 1e-3 < noisy.training["penalty"]


def test_more_than_two_classes_have_one_row_of_weights_each() -> None:
    rng = generator(0, "three")
    y = torch.arange(300) % 3
    x = torch.randn(300, 6, generator=rng) + 4 * torch.eye(6)[y]
    rows = PooledRows(x, Labels.of(y))
    for kind, probe in fit_all(["mean_difference", "ridge", "lda", "logistic", "mlp"], rows).items():
        assert probe.weight.shape[0] == 3, kind
        assert (probe.predict(x) == y).double().mean() > 0.9, kind  # 0.99 at best
    with pytest.raises(InputError, match="k_sparse probe needs 2 classes, got 3"):
        fit("k_sparse", rows)


def test_multinomial_of_two_classes_is_logistic_written_twice() -> None:
    rows = planted().rows
    one, two = fit("logistic", rows), fit("multinomial", rows)
    torch.testing.assert_close(two.weight[1] - two.weight[0], one.weight[0])
    assert torch.equal(one.predict(rows.x), two.predict(rows.x))


def test_k_sparse_reads_k_columns_only() -> None:
    rows = planted(d=32).rows
    probe = fit("k_sparse", rows, FitConfig(k=3))
    assert (probe.weight != 0).sum() == 3
    assert sorted(probe.training["columns"]) == probe.weight[0].nonzero()[:, 0].tolist()
    with pytest.raises(InputError, match="k=40 is more than the 32 columns"):
        fit("k_sparse", rows, FitConfig(k=40))


def test_balanced_classes_do_not_follow_the_larger_one() -> None:
    rows = planted(n=400, shift=1.0, positive=0.1).rows
    for kind in ("logistic", "ridge", "lda"):
        balanced, plain = (fit(kind, rows, FitConfig(class_weights=name)) for name in ("balanced", "none"))
        called = [float(probe.predict(rows.x).double().mean()) for probe in (balanced, plain)]
        assert called[0] > called[1] + 0.05, kind


def test_scaling_is_folded_in_and_constant_columns_weigh_nothing() -> None:
    rows = planted(d=6).rows
    x = rows.x.clone()
    x[:, 2] = 5.0
    x[:, 3] *= 1000
    wide = replace(rows, x=x)
    for kind in LINEAR:
        probe = fit(kind, wide, FitConfig(scaling="coordinate", k=3))
        assert probe.weight[0, 2] == 0 and probe.scaling.kind == "coordinate"
        if kind != "k_sparse":  # which may choose other columns
            plain = replace(rows, x=_without(rows.x, 2))
            same = fit(kind, plain, FitConfig(scaling="coordinate"))
            torch.testing.assert_close(probe.scores(x), same.scores(plain.x), atol=2e-3, rtol=1e-3)


def _without(x: torch.Tensor, column: int) -> torch.Tensor:
    """The column constant and nothing else changed."""
    x = x.clone()
    x[:, column] = 1.0
    return x


def test_moments_in_batches_are_moments_of_all_and_resume() -> None:
    rows = planted(n=100, d=5).rows
    whole = Moments.of(rows.x, rows.labels)
    parts = Moments(5, 2)
    parts.add(rows.x[:33], rows.labels.y[:33])
    after = Moments(5, 2)
    after.load_state_dict(parts.state_dict())
    after.add(rows.x[33:], rows.labels.y[33:])
    for name in ("counts", "sums", "seconds"):
        torch.testing.assert_close(getattr(after, name), getattr(whole, name), rtol=1e-12, atol=1e-12)


def test_the_penalty_is_chosen_by_cross_validation_within_training_units() -> None:
    rows = planted(n=80, d=20, shift=0.5).rows
    assert fit("logistic", rows, FitConfig(l2=(1e-4, 1.0))).training["l2"] == 1.0


def _bags(n: int = 300, tokens: int = 8, d: int = 12, seed: int = 0) -> Bags:
    """One token of every bag is marked along axis 1 and carries its label along axis 0; the others are noise."""
    rng = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    x = torch.randn(n, tokens, d, generator=rng)
    at = torch.randint(0, tokens, (n,), generator=rng)
    x[torch.arange(n), at, 0] += 3 * (2 * y - 1)
    x[torch.arange(n), at, 1] += 6
    return Bags(x.reshape(-1, d), torch.arange(n).repeat_interleave(tokens), Labels.of(y))


def test_attention_finds_the_token_that_tells() -> None:
    bags = _bags()
    train, test = bags.take(range(200)), bags.take(range(200, 300))
    probe = fit("attention", train, FitConfig(attention=AttentionFit(epochs=20)))
    mean = fit("logistic", train.pooled("mean"))
    attended = (probe.decide(probe.read(test)) == test.labels.y).double().mean()
    averaged = (mean.predict(test.pooled("mean").x) == test.labels.y).double().mean()
    assert attended > 0.95 and attended > averaged + 0.05
    share = probe.attention(test)  # type: ignore[attr-defined]
    torch.testing.assert_close(torch.zeros(100).index_add_(0, test.bag, share), torch.ones(100))
    with pytest.raises(InputError, match="give it Bags"):
        fit("attention", train.pooled("mean"))


def test_an_mlp_reads_what_no_direction_tells() -> None:
    rng = generator(0, "xor")
    x = torch.randn(800, 4, generator=rng)
    rows = PooledRows(x, Labels.of((x[:, 0] * x[:, 1] > 0).long()))
    mlp, line = (fit(kind, rows.take(range(600))) for kind in ("mlp", "logistic"))
    right = [float((p.predict(x[600:]) == rows.labels.y[600:]).double().mean()) for p in (mlp, line)]
    assert isinstance(mlp, MLPProbe) and right[0] > 0.85 and right[1] < 0.65
    with pytest.raises(InputError, match="not linear and has no direction"):
        _ = mlp.directions


@pytest.mark.parametrize("kind", ["logistic", "mlp", "attention"])
def test_probes_come_back_from_disk_as_they_were(kind: str, tmp_path: Path) -> None:
    units = _bags(60) if kind == "attention" else planted(n=60).rows
    probe = fit(kind, units)
    again = load(probe.save(tmp_path / "p"))
    assert type(again) is type(probe) and again.training == probe.training and again.source == probe.source
    assert torch.equal(again.read(units), probe.read(units))
    assert torch.equal(again.scaling.spread, probe.scaling.spread)


def test_a_probe_of_another_model_site_or_file_is_refused(tmp_path: Path) -> None:
    mine, other = (HookedModel(tiny_models.build("llama", seed)) for seed in (0, 1))
    rows = planted(n=40, d=32).rows
    probe = fit("ridge", replace(rows, source=Source("resid_post.1", model=mine.fingerprint())))
    folder = probe.save(tmp_path / "p")
    assert load(folder, mine, "resid_post.1").matching_site(mine) == mine.site("resid_post.1")
    with pytest.raises(InputError, match=r"the probe was trained on .* and the model is"):
        load(folder, other)
    with pytest.raises(InputError, match=r"reads resid_post\.1 and not resid_post\.2"):
        load(folder, mine, "resid_post.2")
    with pytest.raises(InputError, match="holds no probe"):
        load(tmp_path)
    description = read_json(folder / "probe.json")
    write_json(folder / "probe.json", {**description, "sha256": "0" * 64})
    with pytest.raises(InputError, match="not the file its description was written for"):
        load(folder)
    write_json(folder / "probe.json", {**description, "schema": 9})
    with pytest.raises(InputError, match="schema 9"):
        load(folder)


def test_a_probe_of_codes_is_written_through_the_decoder() -> None:
    sae = build_trainable("topk", d_in=8, n_latents=16, k=4)
    torch.nn.init.normal_(sae.W_dec)
    rows = planted(n=60, d=16).rows
    probe = fit("ridge", replace(rows, source=Source("resid_post.1", dictionary="x")))
    assert probe.scaling.kind == "overall"
    written = probe.written(sae)
    torch.testing.assert_close(written[0], torch.nn.functional.normalize(probe.weight[0] @ sae.W_dec, dim=0))
    with pytest.raises(InputError, match="not codes of"):
        fit("ridge", rows).written(sae)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a"] * 20, "every unit is labelled a"),
        (["a"] * 18 + ["b"] * 2, "only 2 units are labelled b"),
        ([1.0] * 10 + [float("nan")] * 10, r"row 10 of the labels is missing .*, 10 of 20 in all"),
        ([], "there is no label"),
    ],
)
def test_labels_that_cannot_be_learned_are_refused(labels: list[object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Labels.of(labels)


def test_other_bad_input_is_refused_in_one_sentence() -> None:
    rows = planted(n=20, d=4).rows
    with pytest.raises(InputError, match=r"unknown kind of probe 'logistics': did you mean 'logistic'\?"):
        fit("logistics", rows)
    with pytest.raises(InputError, match="no kind of probe is named"):
        fit_all([], rows)
    with pytest.raises(InputError, match=r"2 of 20 rows of .* are nan"):
        replace(rows, x=torch.where(torch.arange(20)[:, None] < 2, torch.nan, rows.x))
    with pytest.raises(InputError, match="bag 1 has no token"):
        Bags(torch.zeros(2, 3), torch.tensor([0, 2]), Labels(torch.arange(3) % 2, ("a", "b"), torch.arange(3)))
    with pytest.raises(InputError, match="these labels are numbers: use ridge"):
        fit("lda", rows.relabelled(Labels.numbers(torch.arange(20.0))))
    with pytest.raises(InputError, match=r"reads \[rows, 4\]"):
        fit("ridge", rows).scores(torch.zeros(2, 5))
    for options in ({"scaling": "rows"}, {"l2": ()}, {"penalty": 0.0}, {"shrinkage": 2.0}, {"k": 0}):
        with pytest.raises(InputError):
            FitConfig(**options)  # type: ignore[arg-type]
