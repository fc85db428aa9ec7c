"""Training through the model: gradients against autograd, untouched rows, warm starts, exact resume, and the gain."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from monosem.lab.errors import InputError
from monosem.lab.models.hooked_model import HookedModel
from monosem.lab.models.sites import Site
from monosem.lab.runs.loop import train
from monosem.lab.runs.run import Run
from monosem.lab.streams.activation_stream import Batch
from monosem.lab.streams.token_stream import TokenStream
from monosem.lab.text.corpus import Corpus
from monosem.saes.dictionary import Provenance
from monosem.saes.edit import predicting
from monosem.saes.evaluation.evaluate import evaluate
from monosem.saes.files import load
from monosem.saes.registry import build_trainable
from monosem.saes.training.end_to_end import EndToEnd, EndToEndConfig, later_sites, mixed
from monosem.saes.training.trainer import TrainConfig, Trainer
from tiny_models import Letters, build

SITE, D, N, K = Site.parse("resid_post.1"), 32, 64, 4


@pytest.fixture(scope="module")
def model() -> HookedModel:
    return HookedModel(build("llama"), name="tiny-llama")


def corpus(**fields: Any) -> Corpus:
    g = torch.Generator().manual_seed(0)
    texts = ["".join(chr(33 + int(c)) for c in torch.randint(0, 90, (40,), generator=g)) for _ in range(60)]
    return Corpus(texts, Letters(), **{"context": 16, "batch_rows": 8, **fields})


def stream_of(model: HookedModel, *sites: str, **options: Any) -> TokenStream:
    return TokenStream(model, corpus(pack=False, split="train"), sites or [SITE], **options)


def trainer_of(architecture: str = "topk", rows: int = 4000, name: str | None = None, **options: Any) -> Trainer:
    config = TrainConfig(**{"rows": rows, "lr": 3e-3, "precision": "fp32", "aux_k": 0, **options})
    return Trainer(build_trainable(architecture, d_in=D, n_latents=N, k=K), SITE, config, name=name)


def parameters(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone().requires_grad_() for name, tensor in trainer.dictionary.tensors().items()}


@pytest.mark.parametrize(("loss", "downstream"), [("kl", 0.0), ("ce", 0.0), ("kl", 0.7)])
def test_the_step_follows_autograd_through_the_whole_model(model: HookedModel, loss: Any, downstream: float) -> None:
    later = later_sites(model, SITE) if downstream else ()
    batch = next(stream_of(model, also=later))
    source, trainer = batch.source, trainer_of()
    taught = EndToEnd(model, trainer, EndToEndConfig(loss, downstream=downstream))
    x = batch.acts[SITE]
    assert source is not None and 0 < len(x) == int(source.rows.sum())
    predicted = trainer.predict(batch)  # sets the starting weights
    weights, units = parameters(trainer), trainer.units
    assert units is not None

    centred = x * units.scale - weights["b_dec"]
    pre = centred @ weights["W_enc"].T + weights["b_enc"]
    top = pre.topk(K, dim=1)
    code = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
    x_hat = (code @ weights["W_dec"] + weights["b_dec"]) / units.scale
    assert torch.allclose(predicted, x_hat.detach(), atol=1e-4)
    seen = {}

    def splice(resid: torch.Tensor) -> torch.Tensor:
        return resid.masked_scatter(source.rows[..., None], x_hat)

    def look(resid: torch.Tensor) -> torch.Tensor:
        seen[later[0]] = resid
        return resid

    with model.editing({SITE: splice, **dict.fromkeys(later, look)}):
        logits = model.logits(source.batch.tokens, attention_mask=source.batch.attention, grad=True)
    at = predicting(source.batch)
    if loss == "kl":
        expected = F.kl_div(
            logits[at].log_softmax(1), source.logits[at].log_softmax(1), log_target=True, reduction="batchmean"
        )
    else:
        expected = F.cross_entropy(logits[at], source.batch.tokens.roll(-1, 1)[at])
    total = expected
    for site in later:
        clean = batch.acts[site]
        error = (seen[site][source.rows] - clean).square().sum() / (clean - clean.mean(0)).square().sum()
        total = total + downstream * error
    x_hat.retain_grad()
    total.backward()

    found, value, _ = taught.gradient(batch, predicted)
    assert torch.allclose(found, x_hat.grad, rtol=1e-3, atol=1e-4 * float(x_hat.grad.abs().max()))
    assert float(value) == pytest.approx(float(expected.detach()), rel=1e-4)

    taught.step(batch)
    residual = predicted - x
    factor = residual.norm() / found.norm()
    variance = (centred - centred.mean(0)).square().sum()
    scale = 2 * factor * units.scale**2 / variance  # the step's unit: half the squared error over the variance
    moments, beta = trainer.optimizer.moments.first, 1 - trainer.config.beta1
    assert moments is not None
    along = (weights["W_dec"].grad * weights["W_dec"]).sum(1, keepdim=True) * weights["W_dec"]
    for mine, theirs in (
        (moments.W_enc, weights["W_enc"].grad),
        (moments.b_enc, weights["b_enc"].grad),
        (moments.W_dec, weights["W_dec"].grad - along),
        (trainer.optimizer.bias_moments[0], weights["b_dec"].grad),
    ):
        wanted = (scale * theirs).detach()
        assert torch.allclose(mine / beta, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))
    assert all(parameter.requires_grad for parameter in model.module.parameters())


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "abstopk", "jumprelu", "relu", "gated"])
def test_a_wholly_local_share_is_local_training_on_the_same_rows(model: HookedModel, architecture: str) -> None:
    plain, taught = trainer_of(architecture), trainer_of(architecture)
    through = EndToEnd(model, taught, EndToEndConfig(local=1.0))
    for _, batch in zip(range(3), stream_of(model), strict=False):
        plain.step(batch)
        through.step(batch)
    for name, tensor in plain.dictionary.tensors().items():
        assert torch.allclose(tensor, taught.dictionary.tensors()[name], atol=2e-3), name
    assert plain.metrics()["l0"] == pytest.approx(taught.metrics()["l0"], rel=0.02)


def test_the_share_mixes_directions_of_one_length() -> None:
    gradient, residual = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    pure = mixed(1e-6 * gradient, residual, 0.0)
    assert torch.allclose(pure.norm(), residual.norm()) and torch.allclose(F.cosine_similarity(
        pure.flatten(), gradient.flatten(), dim=0), torch.tensor(1.0))  # fmt: skip
    assert torch.allclose(mixed(1e-6 * gradient, residual, 0.25), 0.75 * pure + 0.25 * residual)


def test_rows_are_the_positions_that_splicing_edits(model: HookedModel) -> None:
    stream = stream_of(model)
    batch = next(stream)
    source = batch.source
    assert source is not None
    captured = model.capture(source.batch.tokens, [SITE], attention_mask=source.batch.attention)[SITE]
    within = captured.norm(dim=-1) <= stream.norm_limit[SITE]
    assert torch.equal(source.rows, source.batch.usable & within)
    assert torch.equal(batch.acts[SITE], captured[source.rows])
    assert torch.equal(batch.origin[:, 0], source.batch.doc[source.rows])
    tight = {SITE: float(captured[source.batch.usable].norm(dim=-1).median())}
    fewer = stream_of(model, norm_limit=tight)
    assert 0 < len(next(fewer).origin) < len(batch.origin) and fewer.counts["dropped_norm"][str(SITE)] > 0


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "jumprelu", "gated", "relu"])
def test_a_trained_dictionary_is_taken_up_as_it_is(model: HookedModel, architecture: str, tmp_path: Path) -> None:
    batches = [batch for _, batch in zip(range(6), stream_of(model), strict=False)]
    trainer = trainer_of(architecture, rows=600)
    for batch in batches:
        trainer.step(batch)
    trainer.save(tmp_path)
    again = load(tmp_path)
    x, before = batches[0].acts[SITE], load(tmp_path)
    taken = Trainer(again, SITE, TrainConfig(rows=600, precision="fp32"), trained=True)
    taken.predict(batches[0])
    assert torch.allclose(taken.folded().encode(x).to_dense(), before.encode(x).to_dense(), rtol=1e-3, atol=1e-3)
    assert torch.allclose(taken.folded()(x), before(x), rtol=1e-3, atol=1e-2)


def tuned(model: HookedModel, folder: Path, start: Path, rows: int, steps: int | None = None) -> Run:
    trainers = [
        Trainer(
            load(start),
            SITE,
            TrainConfig(rows=rows, lr=3e-3, precision="fp32"),
            name=name,
            trained=True,
            provenance=Provenance(model.fingerprint()),
        )
        for name in ("kl", "local")
    ]
    stream = stream_of(model, norm_limit={SITE: None})
    run = Run.create(folder, {}, resume=True)
    consumers = [EndToEnd(model, trainers[0], EndToEndConfig(local=0.2)), trainers[1]]
    return train(stream, consumers, run, steps=steps, progress=False, log_every=5, checkpoint_minutes=None)


def test_the_model_recovers_more_than_by_local_training_and_a_resumed_run_is_the_same(
    model: HookedModel, tmp_path: Path
) -> None:
    trainer = trainer_of(rows=6000, name="start")
    for batch in stream_of(model, norm_limit={SITE: None}):
        trainer.step(batch)
        if trainer.done:
            break
    trainer.provenance = replace(trainer.provenance, model=model.fingerprint())
    trainer.save(tmp_path / "start")
    whole = tuned(model, tmp_path / "whole", tmp_path / "start", 12_000)
    tuned(model, tmp_path / "cut", tmp_path / "start", 12_000, steps=40)
    cut = tuned(model, tmp_path / "cut", tmp_path / "start", 12_000)
    assert whole.metrics_path.read_bytes() == cut.metrics_path.read_bytes()
    found = {name: load(path) for name, path in cut.dictionaries.items()}
    for name, path in whole.dictionaries.items():
        assert all(torch.equal(t, found[name].tensors()[key]) for key, t in load(path).tensors().items())
    assert found["kl"].provenance.training["end_to_end"]["loss"] == "kl"
    nulls = {"before": load(tmp_path / "start"), "local": found["local"]}
    score = evaluate(
        model, corpus(pack=False, split="heldout", heldout=0.3), found["kl"], nulls=nulls, tokens=400, ce_tokens=400,
        spliced=("before", "local"), progress=False,
    )["kl"]  # fmt: skip
    assert score.value < 0.9 * score.nulls["before"] and score.value < 0.9 * score.nulls["local"]


def test_what_cannot_be_spliced_in_is_refused(model: HookedModel) -> None:
    for architecture in ("matryoshka", "mp"):
        with pytest.raises(InputError, match=f"{architecture} learns from more than its last reconstruction"):
            EndToEnd(model, trainer_of(architecture))
    with pytest.raises(InputError, match=r"no block runs after resid_post\.2"):
        later_sites(model, "resid_post.2")
    with pytest.raises(InputError, match="give `train` a TokenStream"):
        EndToEnd(model, trainer_of()).step(Batch({SITE: torch.zeros(3, D)}, torch.zeros(3, 2, dtype=torch.int64)))
    with pytest.raises(InputError, match="local is a share"):
        EndToEndConfig(local=1.5)
    doubled = build_trainable("topk", d_in=D, n_latents=N, k=K)
    doubled.W_dec.fill_(1.0)
    with pytest.raises(InputError, match="training keeps them at 1"):
        Trainer(doubled, SITE, trained=True)
