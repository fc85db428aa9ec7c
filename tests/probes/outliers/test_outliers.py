"""Out-of-distribution scores: scorers against closed forms, and texts of another kind through a small model."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from monosem.lab.errors import InputError
from monosem.lab.models.hooked_model import HookedModel
from monosem.lab.models.loading import load_model
from monosem.lab.models.sites import Site
from monosem.probes.fitting.sparse import auc
from monosem.probes.outliers.measure import SCORERS, OutlierConfig, ood_scores
from monosem.probes.outliers.texts import outside_texts, passages
from monosem.probes.prompts import read_texts
from monosem.saes.architectures.basis import PCA
from monosem.saes.architectures.sae import SAEConfig
from monosem.saes.architectures.topk import TopK
from monosem.saes.dictionary import Provenance
from scipy.spatial.distance import mahalanobis
from tiny_commands import TOPICS, Tiny, write_model, write_text

torch.set_num_threads(1)
SITE = "resid_post.1"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("outliers")
    return Tiny(write_model(folder / "model"), write_text(folder / "text", 120))


@pytest.fixture(scope="module")
def model(tiny: Tiny) -> HookedModel:
    return load_model(str(tiny.model), dtype="fp32", device="cpu")


def texts(topic: str, n: int, seed: int) -> list[str]:
    chance = Random(f"{topic}/{seed}")
    return [" ".join(chance.choices(TOPICS[topic], k=12)) for _ in range(n)]


def basis(model: HookedModel, k: int = 8) -> PCA:
    """Principal components of texts about the sea."""
    x, _ = read_texts(model, Site.parse(SITE), texts("sea", 60, 9), tokens=12)
    found = PCA.fit(x, k)
    found.place, found.provenance = SITE, Provenance(model.fingerprint())
    return found


def rows(n: int, seed: int, d: int = 20) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_scorers_by_hand() -> None:
    mixing = rows(6, 1, 6)
    fit, tested = rows(200, 2, 6) @ mixing + 3, rows(15, 3, 6) @ mixing
    config = OutlierConfig(rank=5, neighbours=4)
    inverse = np.linalg.inv(np.cov(fit.numpy().T))
    expected = [mahalanobis(row, fit.mean(0).numpy(), inverse) ** 2 for row in tested.numpy()]
    np.testing.assert_allclose(SCORERS["mahalanobis"](fit, tested, config).numpy(), expected, rtol=1e-6)
    unit = [part / part.norm(dim=1, keepdim=True) for part in (fit, tested)]
    fourth = torch.cdist(unit[1], unit[0]).sort(1).values[:, 3]
    torch.testing.assert_close(SCORERS["neighbours"](fit, tested, config), fourth, rtol=0, atol=1e-6)
    fires = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    told = SCORERS["rarity"](fires, torch.tensor([[1.0, 0.0], [0.0, 5.0]], dtype=torch.float64), config)
    p, q = 2.5 / 4, 0.5 / 4
    assert told.tolist() == pytest.approx([-np.log(p * (1 - q)), -np.log((1 - p) * q)])


@pytest.mark.parametrize("name", SCORERS)
def test_the_same_kind_is_chance_and_other_units_are_not(name: str) -> None:
    """Codes of 300 units for fewer texts, so that a covariance must be shrunk; other texts use other units more."""
    rate = torch.linspace(-1.5, 0.5, 300, dtype=torch.float64)
    fit, same, other = ((rows(n, seed, 300) + rate * sign).clamp_min(0)
                        for n, seed, sign in ((80, 4, 1), (150, 5, 1), (150, 6, 0)))  # fmt: skip
    scorer, config = SCORERS[name], OutlierConfig()
    told = [scorer(fit, part, config).numpy() for part in (same, other)]
    y = np.repeat([0, 1], 150)
    assert auc(np.concatenate(told), y, np.ones(300)) > 0.95
    halves = auc(told[0], np.arange(150) % 2, np.ones(150))
    assert 0.35 < halves < 0.65


def test_another_topic_is_told_apart_and_an_unseen_direction_by_reconstruction(model: HookedModel) -> None:
    """Components of one topic do not span another; more of the first is chance."""
    outside = {"proof": texts("proof", 40, 2), "more": texts("sea", 40, 3)}
    found = ood_scores(model, basis(model), texts("sea", 80, 0), texts("sea", 40, 1), outside, OutlierConfig(tokens=12))
    assert found["auroc_proof_reconstruction"].value > 0.95 and found["auroc_proof_mahalanobis"].value > 0.95
    for scorer in OutlierConfig().scorers:
        evidence = found[f"auroc_more_{scorer}"]
        low, high = evidence.interval or (0, 0)
        assert 0.3 < evidence.value < 0.7 and low < evidence.value < high and evidence.nulls["tokens"] == 0.5
        assert {"pca", "untrained", "norm", "tokens", "same_kind"} <= evidence.nulls.keys()
    gain, codes = found["gain_proof_neighbours"], found["auroc_proof_neighbours"]
    assert gain.value == pytest.approx(codes.value - codes.nulls["activations"])
    assert "auroc_proof_reconstruction" in found and "gain_proof_reconstruction" not in found


def test_token_counts_give_away_shorter_texts(model: HookedModel) -> None:
    short = [" ".join(text.split()[:5]) for text in texts("sea", 30, 4)]
    config = OutlierConfig(scorers=("mean_cosine",))
    found = ood_scores(model, basis(model), texts("sea", 40, 0), texts("sea", 30, 1), {"short": short}, config)
    assert found["auroc_short_mean_cosine"].nulls["tokens"] == 1


def test_passages_are_as_long_and_on_their_side(model: HookedModel, tiny: Tiny) -> None:
    form = f"text:{tiny.text}"
    train, held = (passages(model, form, 30, 16, split=side) for side in ("train", "heldout"))
    assert len(train) == 30 and len(held) > 15 and not set(train) & set(held)
    assert {len(model.tokenizer(text)["input_ids"]) for text in train + held} == {16}
    shuffled = outside_texts(model, "shuffled", 10, 16, usual=form)
    assert len(shuffled) == 10 and not set(shuffled) & set(held)
    assert {len(model.tokenizer(text)["input_ids"]) for text in shuffled} == {16}
    code = outside_texts(model, "code", 12, 16, usual=form)
    assert len(code) == 12
    with pytest.raises(InputError, match="unknown kind of texts 'citys': did you mean 'cities'"):
        outside_texts(model, "citys", 10, 16, usual=form)


def test_what_cannot_be_scored_is_refused(model: HookedModel, tmp_path: Path) -> None:
    sea, proof = texts("sea", 30, 0), texts("proof", 30, 0)
    with pytest.raises(InputError, match="30 texts inside are among those to fit on"):
        ood_scores(model, basis(model), sea, sea, {"proof": proof})
    with pytest.raises(InputError, match="3 texts proof are too few: give at least 10"):
        ood_scores(model, basis(model), sea, texts("sea", 30, 1), {"proof": proof[:3]})
    with pytest.raises(InputError, match="no texts of another kind are given"):
        ood_scores(model, basis(model), sea, texts("sea", 30, 1), {})
    transcoder = TopK(SAEConfig(32, 64, 4, d_out=32))
    with pytest.raises(InputError, match="does not reconstruct the one site it reads"):
        ood_scores(model, transcoder, sea, texts("sea", 30, 1), {"proof": proof})
    with pytest.raises(InputError, match="unknown scorer 'knn'"):
        OutlierConfig(scorers=("knn",))
    with pytest.raises(InputError, match="tokens must be at least 1, got 0"):
        OutlierConfig(tokens=0)
