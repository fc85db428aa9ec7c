"""Crosscoders: planted shared and exclusive directions over two sources, per-source scales, resume, and files."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from monosem.lab.errors import InputError
from monosem.lab.models.hooked_model import HookedModel
from monosem.lab.models.pairs import ModelPair
from monosem.lab.models.sites import Site
from monosem.lab.streams.activation_stream import ActivationStream, Batch
from monosem.lab.text.corpus import Corpus
from monosem.saes.analysis.diffing import diff, relative_norms
from monosem.saes.dictionary import Provenance
from monosem.saes.evaluation.evaluate import evaluate
from monosem.saes.evaluation.nulls import fit_nulls
from monosem.saes.evaluation.reconstruction import Reconstruction
from monosem.saes.files import load
from monosem.saes.place import Place
from monosem.saes.registry import build_trainable
from monosem.saes.training.trainer import TrainConfig, Trainer
from scipy.optimize import linear_sum_assignment
from tiny_models import Letters
from tiny_models import build as tiny

torch.set_num_threads(1)

A, B = Site.parse("a:resid_post.3"), Site.parse("b:resid_post.3")
D_A, D_B, SHARED, ONLY, K = 24, 20, 24, 8, 4
TRUE = SHARED + 2 * ONLY


def unit(n: int, d: int, seed: int) -> torch.Tensor:
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    return rows / rows.norm(dim=1, keepdim=True)


def directions() -> tuple[torch.Tensor, torch.Tensor]:
    """Of all features in each source: the last two groups are in one of them alone."""
    a, b = unit(TRUE, D_A, 1), unit(TRUE, D_B, 2)
    a[SHARED + ONLY :] = 0
    b[SHARED : SHARED + ONLY] = 0
    return a, b


def planted(rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """The second source has activations 50 times as large."""
    g = torch.Generator().manual_seed(seed)
    causes = (torch.rand(rows, TRUE, generator=g) < K / TRUE) * (1 + torch.rand(rows, TRUE, generator=g))
    a, b = directions()
    return causes @ a + 1, 50 * (causes @ b) - 20


def feed(trainer: Trainer, a: torch.Tensor, b: torch.Tensor) -> Trainer:
    for left, right in zip(a.split(256), b.split(256), strict=True):
        trainer.step(Batch({A: left, B: right}, torch.zeros(len(left), 2, dtype=torch.int64)))
    return trainer


def trainer_of(architecture: str, rows: int, *, n: int = 2 * TRUE, **options) -> Trainer:
    dictionary = build_trainable(architecture, d_in=D_A + D_B, sources=(D_A, D_B), n_latents=n, k=K)
    return Trainer(dictionary, [A, B], TrainConfig(**{"rows": rows, "lr": 2e-2, **options}))


@cache
def trained(architecture: str) -> Trainer:
    return feed(trainer_of(architecture, 30_000), *planted(30_000))


def matched(architecture: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The latent of every feature, and its cosine, over both sources in the units of training."""
    sae = trained(architecture).folded()
    found = torch.cat([rows * scale for rows, scale in zip(sae.split(sae.W_dec), sae.place.scales, strict=True)], 1)
    scales = torch.tensor(sae.place.scales) * torch.tensor([1.0, 50.0])
    truth = torch.cat([rows * scale for rows, scale in zip(directions(), scales, strict=True)], 1)
    cosines = torch.nn.functional.normalize(truth) @ torch.nn.functional.normalize(found).T
    latents = linear_sum_assignment(-cosines.numpy())[1]
    return torch.from_numpy(latents), cosines[range(TRUE), latents]


@pytest.mark.parametrize("architecture", ["batchtopk", "topk", "jumprelu"])
def test_shared_and_exclusive_directions_are_recovered(architecture: str) -> None:
    latents, cosines = matched(architecture)
    assert cosines.mean() >= 0.9  # MCC
    relative = relative_norms(trained(architecture).folded())[latents]
    shared, only_a, only_b = relative.split([SHARED, ONLY, ONLY])
    assert ((shared - 0.5).abs() < 0.25).float().mean() > 0.85
    assert only_a.median() < 0.12 and only_b.median() > 0.85  # random rows have 0.5


def test_each_source_is_scaled_on_its_own() -> None:
    trainer = trained("batchtopk")
    assert trainer.units is not None
    a, b = (part[:256] for part in planted(30_000))
    for part, scale in zip((a, b), trainer.units.scales, strict=True):
        assert ((part - part.mean(0)) * scale).square().mean() == pytest.approx(1, rel=1e-4)
    x = torch.cat(planted(300, seed=4), 1)
    folded, inner = trainer.folded(), trainer.dictionary
    assert torch.allclose(folded(x), inner(x * trainer.units.input) / trainer.units.input, rtol=1e-3, atol=1e-2)
    assert folded.encode(x).indices.equal(inner.encode(x * trainer.units.input).indices)
    assert [view.shape[1] for view in map(folded.decoder_of, (0, 1))] == [D_A, D_B]
    assert folded.encoder_of(1).data_ptr() == folded.W_enc[:, D_A:].data_ptr()


def test_files_hold_sources_and_scales(tmp_path: Path) -> None:
    folded = trained("batchtopk").folded()
    back = load(folded.save(tmp_path))
    assert back.config == folded.config and back.config.sources == (D_A, D_B)
    assert (back.place, back.provenance) == (folded.place, folded.provenance) and back.place.reads == (A, B)
    assert "a:resid_post.3 + b:resid_post.3" in repr(back)


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka"])
def test_a_restored_trainer_ends_in_the_same_bytes(architecture: str) -> None:
    a, b = planted(6000)
    whole, first, second = (trainer_of(architecture, 6000, n=400, aid_after=200) for _ in range(3))
    feed(whole, a, b)
    second.load_state_dict(feed(first, a[:5120], b[:5120]).state_dict())
    feed(second, a[5120:], b[5120:])
    assert whole.metrics() == second.metrics() and len(whole.dead.idle)
    mine, theirs = whole.folded().tensors(), second.folded().tensors()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_the_fvu_of_every_source_stands_beside_the_total() -> None:
    folded = trained("batchtopk").folded()
    a, b = planted(1000, seed=5)
    x = torch.cat([a, b], 1)
    nulls = fit_nulls(x[:500], folded)
    batch = Batch({A: a, B: b}, torch.arange(2000).reshape(1000, 2) // 20)
    mine, *others = (Reconstruction(found, [A, B]) for found in (folded, *nulls.values()))
    for measure in (mine, *others):
        measure.step(batch)
    scores = mine.evidence(dict(zip(nulls, others, strict=True)))
    for site, part, x_hat in zip((A, B), (a, b), folded.split(folded(x)), strict=True):
        expected = float((x_hat - part).square().sum() / (part - part.mean(0)).square().sum())
        score = scores[f"fvu_{site}"]
        assert score.value == pytest.approx(expected, rel=1e-3) and score.interval
        assert set(score.nulls) == {"untrained", "pca", "neurons"} and score.value < min(score.nulls.values())


def test_a_trainer_wants_a_site_for_every_source() -> None:
    dictionary = build_trainable("topk", d_in=6, sources=(4, 2), n_latents=8, k=2)
    with pytest.raises(InputError, match=r"reads 2 site\(s\), got 1"):
        Trainer(dictionary, A)
    two_equal = Trainer(dictionary, [A, B])
    with pytest.raises(InputError, match=r"b:resid_post\.3 are equal: nothing to learn"):
        two_equal.step(Batch({A: torch.randn(8, 4), B: torch.ones(8, 2)}, torch.zeros(8, 2, dtype=torch.int64)))


def test_from_two_models_to_their_difference() -> None:
    """Streamed off both models, trained and evaluated; nothing is spliced."""
    models = ModelPair(*(HookedModel(tiny("llama", seed=seed), name=f"llama-{seed}") for seed in (0, 1)))
    texts = ["".join(chr(33 + (i * i + 7 * j) % 90) for j in range(9 + i % 9)) for i in range(40)]
    corpus = Corpus(texts, Letters(), context=16, batch_rows=4, split="all")
    stream = ActivationStream(models, corpus, ["a:resid_post.1", "b:resid_post.1"], batch=32, buffer=64, epochs=2)
    origin, place = Provenance(stream.fingerprint()["model"]), Place.at(stream.sites).on(stream)
    dictionary = build_trainable("batchtopk", d_in=64, sources=(32, 32), n_latents=128, k=8)
    trainer = Trainer(dictionary, place, TrainConfig(rows=800), provenance=origin)
    for batch in stream:
        trainer.step(batch)
    folded = trainer.folded()
    found = evaluate(models, corpus, folded, tokens=150, fit_tokens=150, progress=False)
    assert found.site == "a:resid_post.1 + b:resid_post.1" and "kl" not in found.scores
    assert {"fvu", "fvu_a:resid_post.1", "fvu_b:resid_post.1"} <= set(found.scores)
    assert found["fvu"].value < found["fvu"].nulls["untrained"]
    assert 0 <= diff(folded)["shared"].value <= 1
    with pytest.raises(InputError, match=r"the model is 'llama-1 \| llama-0'"):
        evaluate(ModelPair(models.models["b"], models.models["a"]), corpus, folded, progress=False)
