"""TPP and SCR: planted attributes, their nulls, labelled texts with several classes, and what is refused."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monosem.lab.errors import InputError
from monosem.lab.models.loading import load_model
from monosem.probes.fitting.linear import LinearFit, fit_linear
from monosem.probes.latents import check_rewrites, dense_codes, matched, text_means
from monosem.probes.tasks import tpp as module
from monosem.probes.tasks.concepts import families, load_classes, load_crossed
from monosem.probes.tasks.datasets import load_dataset
from monosem.probes.tasks.tpp import ErasureConfig, SCRConfig, TPPConfig, measure_tpp, scr, tpp
from monosem.saes.architectures.basis import Neurons
from monosem.saes.architectures.relu import ReLU, ReLUConfig
from monosem.saes.architectures.sae import SAEConfig
from monosem.saes.dictionary import Provenance
from tiny_commands import write_model
from torch import Tensor

torch.set_num_threads(1)
installed = pytest.mark.skipif(not importlib.util.find_spec("sae_probes"), reason="sae-probes is not installed")
FIT = LinearFit(3e-2, 1e-3, 1e-2, 32, 80)
CLASSES, NOISE = 3, 12


def dictionary(rows: Tensor) -> ReLU:
    """Latents relu(x . row) that write their rows."""
    found = ReLU(ReLUConfig(rows.shape[1], len(rows), k=1))
    found.W_dec.copy_(rows)
    found.W_enc.copy_(rows)
    return found


def noise(rows: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return (torch.rand(rows, NOISE, generator=rng) < 0.3).float()


def attributes(each: int = 15) -> tuple[Tensor, Tensor]:
    """Rows of every combination of attributes, one direction for each, and directions that say nothing."""
    labels = torch.cartesian_prod(*[torch.tensor([False, True])] * CLASSES).repeat(each, 1)
    return torch.cat([2.0 * labels, noise(len(labels))], 1), labels


def crossed(each: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    """Labels a and b as signs, of one coordinate and of two: a probe fitted where they agree follows b elsewhere."""
    first, second = (torch.tensor(part).repeat_interleave(each) for part in ([0, 0, 1, 1], [0, 1, 0, 1]))
    signs = torch.stack([first, second, second], 1) * 2.0 - 1
    return torch.cat([signs, noise(len(signs))], 1), first.bool(), second.bool()


def test_independent_attributes_lose_their_own_probe_alone() -> None:
    """Each probe falls from 1 to a half by its own latent and stays at 1 by any other."""
    x, labels = attributes()
    found = tpp(x, labels, dictionary(torch.eye(x.shape[1])), ErasureConfig((1, 2), fit=FIT), nulls={})
    ones = np.ones(found.rows)
    assert found.rows == 8 * 4 and found.scores["accuracy"](ones) == 1
    assert found.scores["n1"](ones) == found.scores["n2"](ones) == 0.5
    assert found.nulls["random_latents"]["n1"](ones) < 0.1 and found.nulls["chance"]["accuracy"](ones) == 0.5


def test_probes_and_nulls_see_training_texts_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels that say nothing: a probe knows its own texts by heart, and the others at chance."""
    rng = torch.Generator().manual_seed(0)
    x, labels = torch.randn(160, 200, generator=rng), torch.rand(160, 2, generator=rng) < 0.5
    seen: dict[str, list[Tensor]] = {"probes": [], "nulls": []}
    fit, fit_nulls = module.fit_linear, module.nulls_of
    monkeypatch.setattr(module, "fit_linear", lambda x, *rest: seen["probes"].append(x) or fit(x, *rest))
    monkeypatch.setattr(module, "nulls_of", lambda one, x, *rest: seen["nulls"].append(x) or fit_nulls(one, x, *rest))
    config, mine = ErasureConfig((2,), fit=FIT), dictionary(torch.eye(200)[:40])
    for found, name in ((tpp(x, labels, mine, config), "accuracy"), (scr(x, *labels.T, mine, config), "oracle")):
        assert found.rows == pytest.approx(0.3 * 160, abs=2)
        assert found.scores[name](np.ones(found.rows)) == pytest.approx(0.5, abs=0.2)
    whole = [set(rows[:, 0].tolist()) for rows in (seen["probes"][0], seen["probes"][2], *seen["nulls"])]
    assert all(len(rows) == 160 - found.rows for rows in whole) and whole[0] == whole[2] and whole[1] == whole[3]


def test_a_latent_of_two_classes_harms_both() -> None:
    """What writes classes 0 and 1 together cannot be zeroed for one of them: TPP is below that of separate latents."""
    x, labels = attributes()
    rows = torch.eye(x.shape[1])
    rows[0, 1] = rows[1, 0] = 1.0  # both latents fire for both classes and write both
    shared = tpp(x, labels, dictionary(rows), ErasureConfig((2,), fit=FIT), nulls={})
    assert shared.scores["n2"](np.ones(shared.rows)) < 0.4


def test_more_latents_than_there_are_are_left_out() -> None:
    x, labels = attributes()
    found = tpp(x, labels, dictionary(torch.eye(x.shape[1])), ErasureConfig((2, 500), fit=FIT))
    assert {"n2", "accuracy"} == set(found.scores) and set(found.nulls) == {
        "random_latents",
        "chance",
        "untrained",
        "pca",
    }
    assert set(found.nulls["pca"]) == {"n2"}


def test_zeroing_the_spurious_label_gives_the_meant_one_back() -> None:
    x, first, second = crossed()
    eye = torch.eye(x.shape[1])
    both_signs = dictionary(torch.cat([eye, -eye[:3]]))
    for labels in ((first, second), (second, first)):
        found = scr(x, *labels, both_signs, ErasureConfig((4,), fit=FIT), nulls={})
        ones = np.ones(found.rows)
        assert found.scores["biased"](ones) == pytest.approx(0.5, abs=0.1) and found.scores["oracle"](ones) == 1
        assert found.scores["n4"](ones) == pytest.approx(1, abs=0.1) and found.nulls["random_latents"]["n4"](ones) < 0.3


def test_rows_of_a_text_are_read_as_their_mean() -> None:
    """Each row taken apart into two tokens whose codes do not overlap: the same scores as of their mean."""
    x, labels = attributes()
    keep = torch.arange(x.shape[1]) % 2 == 0
    tokens = torch.cat([2 * x * keep, 2 * x * ~keep])
    text = torch.arange(len(x)).repeat(2)
    config, mine = ErasureConfig((1, 4), fit=FIT), dictionary(torch.eye(x.shape[1]))
    whole, apart = tpp(x, labels, mine, config, {}), tpp(tokens, labels, mine, config, {}, text)
    for name, score in whole.scores.items():
        assert apart.scores[name](np.ones(apart.rows)) == pytest.approx(score(np.ones(whole.rows)))


def test_means_over_texts_by_hand() -> None:
    x, text = torch.tensor([[1.0, 0.0], [5.0, 2.0], [3.0, 4.0]]), torch.tensor([0, 1, 0])
    assert text_means(x, text).tolist() == [[2, 2], [5, 2]]
    assert dense_codes(dictionary(torch.eye(2)), x, text).tolist() == [[2, 2], [5, 2]]
    assert dense_codes(dictionary(torch.eye(2)), x).tolist() == x.tolist()


def test_nothing_to_win_is_zero() -> None:
    """Labels that cannot be told: the oracle is no better than the biased probe, or the score would be noise."""
    x, first, second = crossed()
    found = scr(torch.zeros_like(x), first, second, dictionary(torch.eye(x.shape[1])), ErasureConfig((2,), fit=FIT), {})
    assert found.scores["n2"](np.ones(found.rows)) == 0


@settings(max_examples=12, deadline=None)
@given(st.floats(0.1, 10), st.floats(-5, 5))
def test_probes_do_not_change_with_scale_and_shift(scale: float, shift: float) -> None:
    x, told = attributes(3)
    x = torch.cat([x, torch.full((len(x), 1), 0.3)], 1)  # constant, but for rounding once it is moved
    fit = LinearFit(1e-2, 1e-3, 1e-3, 16, 3)
    plain, moved = (
        fit_linear(rows, told, fit, torch.Generator().manual_seed(0)).odds(rows) for rows in (x, scale * x + shift)
    )
    torch.testing.assert_close(plain, moved, rtol=0, atol=0.05)


def test_labels_of_one_kind_are_refused() -> None:
    x, told = attributes(3)
    with pytest.raises(InputError, match="1 of 2 labels hold for every row or for none"):
        fit_linear(x, told[:, :2] & torch.tensor([True, False]), FIT, torch.Generator())
    with pytest.raises(InputError, match="24 rows of activations and 23 of labels"):
        fit_linear(x, told[1:], FIT, torch.Generator())
    with pytest.raises(InputError, match="every class needs at least 2 rows"):
        tpp(*attributes(1), dictionary(torch.eye(x.shape[1])))
    with pytest.raises(InputError, match="TPP compares classes"):
        tpp(x, told[:, :1], dictionary(torch.eye(x.shape[1])))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 15))
def test_matches_fire_as_often_and_are_others(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    rates = torch.from_numpy(np.repeat(rng.random(10), 20))  # ten rates, twenty latents of each
    chosen = torch.from_numpy(rng.choice(200, n, replace=False))
    found = matched(rates, chosen, rng)
    assert len(found.unique()) == n and not set(found.tolist()) & set(chosen.tolist())
    twins = [int((rates[chosen] == rates[c]).sum()) <= 6 for c in chosen]
    assert all(rates[f] == rates[c] for f, c, free in zip(found, chosen, twins, strict=True) if free)
    few = matched(rates[:3], torch.tensor([0, 1]), rng)
    assert few.tolist() == [2]


@installed
def test_classes_are_disjoint_and_combinations_even() -> None:
    data = load_classes("athlete_sport", 20)
    assert data.classes == ["football", "basketball", "baseball"] and len(set(data.texts)) == 60
    assert data.labels == [0] * 20 + [1] * 20 + [2] * 20 and data == load_classes("athlete_sport", 20)
    baseball = load_dataset("156_athlete_sport_baseball")
    truth = dict(zip(baseball.texts, baseball.labels, strict=True))
    assert all(truth.get(text, label == 2) == (label == 2) for text, label in zip(data.texts, data.labels, strict=True))
    both = load_crossed("21_headline_istrump+26_headline_isfrontpage", 15)
    assert [both.first.count(True), both.second.count(True), len(both.texts)] == [30, 30, 60]
    assert sum(a and b for a, b in zip(both.first, both.second, strict=True)) == 15
    assert "Donald" in " ".join(text for text, a in zip(both.texts, both.first, strict=True) if a)
    assert {"news_class", "us_state", "art_type"} <= families().keys()


@installed
def test_unknown_data_is_refused() -> None:
    with pytest.raises(InputError, match="unknown family of data sets 'news_clas': did you mean 'news_class'"):
        load_classes("news_clas", 10)
    with pytest.raises(InputError, match="does not name two data sets"):
        load_crossed("5_hist_fig_ismale", 10)
    with pytest.raises(InputError, match="one of the four combinations"):
        load_crossed("154_athlete_sport_football+155_athlete_sport_basketball", 10)


@installed
def test_measured_in_a_tiny_model(tmp_path: Path) -> None:
    model = load_model(str(write_model(tmp_path / "model")), dtype="fp32", device="cpu")
    mine = Neurons(SAEConfig(32, 32, 32))
    mine.W_dec.copy_(torch.eye(32))
    mine.place, mine.provenance = "resid_post.1", Provenance(model.fingerprint())
    config = TPPConfig((2, 5), fit=FIT, families=("it_tick",), per_class=10)
    found = measure_tpp(model, mine, config)
    assert set(found) == {"tpp_n2", "tpp_n5", "tpp_accuracy"}
    evidence = found["tpp_n5"]
    assert set(evidence.nulls) == {"random_latents", "untrained", "pca"} and evidence.n == 9
    assert evidence.interval is not None and evidence.interval[0] <= evidence.value <= evidence.interval[1]
    assert "TPP falls as training goes on" in evidence.note and found["tpp_accuracy"].nulls == {"chance": 0.5}
    assert measure_tpp(model, mine, config) == found


def test_configs_and_dictionaries_that_do_not_fit_are_refused() -> None:
    for message, options in {
        "latents needs numbers": {"latents": ()},
        "no families are named": {"families": ()},
        "per_class must be at least 4": {"per_class": 3},
    }.items():
        with pytest.raises(InputError, match=message):
            TPPConfig(**options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no pairs are named"):
        SCRConfig(pairs=())
    reads = ReLU(ReLUConfig(8, 4, k=1, d_out=6))
    with pytest.raises(InputError, match="which a transcoder"):
        check_rewrites(reads, "TPP")
