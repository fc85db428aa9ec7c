"""One forward pass feeds every consumer of a stream, and none of them notices the others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monosem.lab.models.hooked_model import HookedModel
from monosem.lab.models.loading import load_model
from monosem.lab.models.sites import Site
from monosem.lab.runs.loop import train
from monosem.lab.runs.run import Run
from monosem.lab.streams.activation_stream import ActivationStream
from monosem.lab.text.corpus import Corpus
from monosem.lab.text.packing import TokenBatch
from monosem.saes.architectures.sae import SAEConfig
from monosem.saes.architectures.topk import TopK
from monosem.saes.evaluation.reconstruction import Reconstruction
from monosem.saes.files import load
from monosem.saes.training.trainer import TrainConfig, Trainer
from tiny_commands import Tiny

RESID, MLP = Site("resid_post", 0), Site("mlp_out", 1)


@pytest.fixture
def model(tiny: Tiny) -> HookedModel:
    return load_model(tiny.model, dtype="fp32", device="cpu")


def corpus(tiny: Tiny, model: HookedModel) -> Corpus:
    return Corpus(f"text:{tiny.text}", model.tokenizer, context=32, batch_rows=8, limit=60)


def stream(tiny: Tiny, model: HookedModel, *sites: Site) -> ActivationStream:
    return ActivationStream(model, corpus(tiny, model), sites, batch=64, buffer=512, epochs=1, max_norm_multiple=None)


def trainer(site: Site) -> Trainer:
    return Trainer(TopK(SAEConfig(d_in=32, n_latents=64, k=4)), site, TrainConfig(rows=100_000))


def test_one_forward_pass_a_token_batch(tiny: Tiny, model: HookedModel, trained: Path, tmp_path: Path) -> None:
    shared = stream(tiny, model, RESID, MLP, Site("resid_post", 1))
    (folder,) = trained.glob("dictionaries/*")
    measure = Reconstruction(load(folder))
    consumers = [trainer(RESID), trainer(MLP), measure]
    before = model.forwards
    train(shared, consumers, Run.create(tmp_path / "run"), allow_short=True, progress=False)
    batches: list[TokenBatch] = list(corpus(tiny, model))
    usable = sum(int(batch.usable.sum()) for batch in batches)
    assert model.forwards - before == len(batches) > 10
    assert [consumer.rows for consumer in consumers] == [usable, usable, usable]
    assert shared.counts["tokens"] == sum(batch.tokens.numel() for batch in batches)


def test_sharing_changes_nothing(tiny: Tiny, model: HookedModel, trained: Path, tmp_path: Path) -> None:
    """A dictionary is the same to the byte whether it is trained alone or beside others on the same sites."""
    (folder,) = trained.glob("dictionaries/*")
    sites = (RESID, MLP, Site("resid_post", 1))
    together = [trainer(RESID), trainer(MLP), Reconstruction(load(folder))]
    train(stream(tiny, model, *sites), together, Run.create(tmp_path / "together"), allow_short=True, progress=False)
    for number, site in enumerate((RESID, MLP)):
        alone = trainer(site)
        run = Run.create(tmp_path / f"alone{number}")
        train(stream(tiny, model, *sites), alone, run, allow_short=True, progress=False)
        mine, theirs = alone.folded().tensors(), together[number].folded().tensors()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_the_measure_agrees_with_the_rows_themselves(tiny: Tiny, model: HookedModel, trained: Path, tmp_path: Path):
    (folder,) = trained.glob("dictionaries/*")
    dictionary, site = load(folder), Site("resid_post", 1)
    measure = Reconstruction(dictionary)
    shared, run = stream(tiny, model, RESID, site), Run.create(tmp_path / "run")
    train(shared, [trainer(RESID), measure], run, allow_short=True, progress=False)
    rows = torch.cat([model.capture(b.tokens, [site])[site][b.usable] for b in corpus(tiny, model)]).double()
    error = (dictionary(rows.float()).double() - rows).square().sum()
    expected = error / (rows - rows.mean(0)).square().sum()
    assert measure.metrics()["fvu"] == pytest.approx(float(expected), rel=1e-6)
