"""Recovery scores: known answers on true, permuted, flipped, copied, silent and trained dictionaries."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from monosem.lab.errors import InputError
from monosem.lab.evidence import Evidence
from monosem.lab.models.sites import Site
from monosem.saes.dictionary import Dictionary, DictionaryConfig
from monosem.saes.evaluation.planted import Planted, PlantedConfig
from monosem.saes.evaluation.recovery import match, recovery, uniqueness
from monosem.saes.registry import build_trainable
from monosem.saes.sparse_code import SparseCode
from monosem.saes.training.trainer import TrainConfig, Trainer
from torch import Tensor

torch.set_num_threads(1)
WORLD = Planted(PlantedConfig(n_features=12, d_in=16, l0=3, coherence=0.0, zipf=0.3))


class Oracle(Dictionary):
    """Reads each row's coordinates along orthonormal directions, exactly; rows may be changed for a test."""

    architecture = "oracle"

    def __init__(self, directions: Tensor) -> None:
        super().__init__(DictionaryConfig(directions.shape[1], len(directions)))
        self.W_dec, self.b_dec = directions.clone(), torch.zeros(directions.shape[1])

    def encode(self, x: Tensor) -> SparseCode:
        codes = self.rows(x) @ self.W_dec.T
        return SparseCode.from_dense(codes.where(codes.abs() > 0.2, 0))


class Changed(Oracle):
    """An oracle whose codes a function has changed."""

    def __init__(self, directions: Tensor, change) -> None:
        super().__init__(directions)
        self.change = change

    def encode(self, x: Tensor) -> SparseCode:
        return SparseCode.from_dense(self.change(super().encode(x).to_dense()))


def scored(dictionary: Dictionary, **options) -> dict[str, Evidence]:
    return recovery(dictionary, WORLD, **{"rows": 6000, **options})


@pytest.mark.parametrize("variant", ["true", "permuted", "flipped"])
def test_the_true_dictionary_scores_one(variant: str) -> None:
    truth = WORLD.directions
    rows = {"true": truth, "permuted": truth[torch.randperm(12, generator=torch.Generator().manual_seed(0))]}
    found = scored(Oracle(rows.get(variant, -truth)))
    for name in ("mcc", "recovered", "precision", "recall", "f1", "uniqueness"):
        assert found[name].value == pytest.approx(1, abs=1e-5), name
    assert found["dead"].value == 0
    assert found["mcc"].interval == pytest.approx((1, 1), abs=1e-5) and found["mcc"].unit == "features"
    assert found["mcc"].nulls["random"] < 0.6 and found["mcc"].beats_nulls() and found["f1"].beats_nulls()


def test_copies_are_not_unique_and_match_once() -> None:
    truth = WORLD.directions
    found = scored(Oracle(torch.cat([truth, truth[:3]])), nulls={})
    assert found["uniqueness"].value == pytest.approx(9 / 15)
    assert found["mcc"].value == pytest.approx(1, abs=1e-5)


def test_latents_that_never_fire_are_dead_and_recall_nothing() -> None:
    def silence(codes: Tensor) -> Tensor:
        codes[:, ::2] = 0
        return codes

    found = scored(Changed(WORLD.directions, silence), nulls={})
    assert found["dead"].value == 0.5
    assert found["recall"].value == found["precision"].value == found["f1"].value == 0.5
    assert found["mcc"].value == pytest.approx(1, abs=1e-5)


def test_firing_always_has_the_precision_of_the_base_rate() -> None:
    found = scored(Changed(WORLD.directions, lambda codes: torch.ones_like(codes)), nulls={})
    assert found["recall"].value == 1
    assert found["precision"].value == pytest.approx(float(WORLD.rates.mean()), rel=0.03)
    rates = WORLD.rates
    assert found["f1"].value == pytest.approx(float((2 * rates / (1 + rates)).mean()), rel=0.03)


def test_absorbed_firing_lowers_recall_by_its_share() -> None:
    """Latent 0 stays silent wherever feature 1 is active too: its recall is the share of its rows without it."""

    def absorb(codes: Tensor) -> Tensor:
        codes[codes[:, 1] != 0, 0] = 0
        return codes

    found = scored(Changed(WORLD.directions, absorb), nulls={})
    assert found["precision"].value == 1
    assert found["recall"].value == pytest.approx(1 - float(WORLD.rates[1]) / 12, abs=0.005)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 20))
def test_matching_is_one_to_one_and_undoes_any_permutation(seed: int, n: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    truth = F.normalize(torch.randn(n, 8, generator=rng), dim=1)
    order = torch.randperm(n, generator=rng)
    scale = (torch.rand(n, 1, generator=rng) + 0.1) * torch.randn(n, 1, generator=rng).sign()
    pairs = match(scale * truth[order], truth)
    assert torch.equal(order[pairs.latents], pairs.features)
    torch.testing.assert_close(pairs.cosines, torch.ones(n), rtol=0, atol=1e-5)
    assert uniqueness(scale * truth[order], truth) == 1


def test_a_smaller_dictionary_is_matched_as_far_as_it_goes() -> None:
    found = scored(Oracle(WORLD.directions[:5]), nulls={})
    assert found["mcc"].value == pytest.approx(1, abs=1e-5)
    assert found["recovered"].value == pytest.approx(5 / 12) and found["recovered"].n == 12


def test_training_recovers_a_planted_dictionary_and_random_does_not() -> None:
    world = Planted(PlantedConfig(n_features=32, d_in=24, l0=2.5, noise=0.05))
    site = Site.parse("resid_post.1")
    sae = build_trainable("topk", d_in=24, n_latents=32, k=3)
    trainer = Trainer(sae, site, TrainConfig(rows=60_000, lr=1e-2))
    for batch in world.batches(site, 60_000, 128):
        trainer.step(batch)
    found = recovery(trainer.folded(), world, rows=6000)
    assert found["mcc"].value > 0.9 and found["f1"].value > 0.6  # 0.957 and 0.704
    for name in ("mcc", "recovered", "f1"):
        assert found[name].beats_nulls()
        assert found[name].interval is not None and found[name].interval[0] > found[name].nulls["random"]


def test_bad_input_is_named() -> None:
    with pytest.raises(InputError, match="width 8 and the planted directions 16"):
        match(torch.eye(8), WORLD.directions)
    with pytest.raises(InputError, match="rows must be at least 2, got 1"):
        scored(Oracle(WORLD.directions), rows=1)
