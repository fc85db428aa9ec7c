"""One evaluation's reading: its forward passes, and what is left of it when it is stopped."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from monosem.lab.models.hooked_model import HookedModel
from monosem.lab.runs.first_rows import FirstRows
from monosem.lab.runs.read import read
from monosem.lab.streams.token_stream import TokenStream
from monosem.lab.text.corpus import Corpus
from monosem.saes.architectures.sae import SAEConfig
from monosem.saes.architectures.topk import TopK
from monosem.saes.evaluation.evaluate import evaluate, evaluate_many
from monosem.saes.evaluation.reconstruction import Reconstruction
from monosem.saes.evaluation.splicing import Splices
from monosem.saes.features.collect import FeatureCollector, collect
from tiny_models import Letters, build

WIDTH = 32
SIZES: dict[str, Any] = {"tokens": 200, "ce_tokens": 150, "fit_tokens": 80, "progress": False}


@pytest.fixture
def model() -> HookedModel:
    return HookedModel(build("llama"), name="tiny-llama")


def corpus() -> Corpus:
    texts = ["".join(chr(33 + (i * i + j * (7 + i % 5)) % 90) for j in range(12 + i % 9)) for i in range(60)]
    return Corpus(texts, Letters(), context=16, batch_rows=4)


def dictionary(site: str, seed: int = 0) -> TopK:
    made = TopK(SAEConfig(WIDTH, 64, 4))
    made.W_dec.copy_(F.normalize(torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(seed)), dim=1))
    made.W_enc.copy_(0.5 * made.W_dec)
    made.place = site
    return made


def scores(evaluation: Any) -> dict[str, Any]:
    return json.loads(json.dumps(evaluation.to_json()))


def test_dictionaries_of_different_sites_share_the_pass(model: HookedModel) -> None:
    """Each gets the scores that it gets alone, and their rows are read once."""
    early, late = dictionary("resid_post.0"), dictionary("resid_post.1", 1)
    alone = [scores(evaluate(model, corpus(), one, **SIZES)) for one in (early, late)]
    apart, model.forwards = model.forwards, 0
    both = evaluate_many(model, corpus(), {"early": early, "late": late}, **SIZES)
    assert [scores(both[name]) for name in ("early", "late")] == alone
    rows = TokenStream.reading(model, corpus(), "resid_post.1")
    before = model.forwards
    reading = read(rows, FirstRows(model.site("resid_post.1"), 280), progress=False).batches
    assert before <= apart - (reading - 1)


@pytest.mark.parametrize("stopped_in", [Reconstruction, Splices])
def test_a_stopped_evaluation_keeps_its_scores_and_continues(
    model: HookedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_in: type[Any]
) -> None:
    expected = scores(evaluate(model, corpus(), dictionary("resid_post.1"), **SIZES))
    step, calls = stopped_in.step, []

    def interrupted(self: Any, batch: Any) -> None:
        step(self, batch)
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt, match="can be continued"):
        patched.setattr(stopped_in, "step", interrupted)
        evaluate(model, corpus(), dictionary("resid_post.1"), folder=tmp_path, **SIZES)
    partial = json.loads((tmp_path / "partial.json").read_text())
    assert partial["complete"] is False
    kept = partial["evaluations"]["dictionary"]
    assert (kept["fvu"] == expected["fvu"]) == (stopped_in is Splices) and kept["count_rows"] > 0
    assert ("ce_recovered_zero" in kept) == (stopped_in is Splices)
    model.forwards = 0
    assert scores(evaluate(model, corpus(), dictionary("resid_post.1"), folder=tmp_path, **SIZES)) == expected
    resumed, model.forwards = model.forwards, 0
    evaluate(model, corpus(), dictionary("resid_post.1"), **SIZES)
    assert resumed < model.forwards and not list(tmp_path.iterdir())  # not read twice, and nothing is left behind


def test_ctrl_c_on_the_last_batch_of_the_first_pass_begins_no_second(
    model: HookedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, pressed = Reconstruction.step, []

    def interrupted(self: Any, batch: Any) -> None:
        step(self, batch)
        if self.done and not pressed:  # one measure ends with the last batch, and so do the nulls
            pressed.append(True)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Reconstruction, "step", interrupted)
    monkeypatch.setattr(Splices, "step", lambda *_: pytest.fail("the second pass begins"))
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, corpus(), dictionary("resid_post.1"), folder=tmp_path, **SIZES)
    assert json.loads((tmp_path / "partial.json").read_text())["evaluations"]["dictionary"]["fvu"] > 0


def test_evaluating_and_collecting_share_a_pass(model: HookedModel) -> None:
    site = "resid_post.1"
    features = FeatureCollector(model, corpus(), dictionary(site), tokens=150, top=3)
    measure = Reconstruction(dictionary(site), rows=220)
    counts = read(TokenStream.reading(model, corpus(), site), [features, measure], progress=False)
    assert model.forwards == counts.batches and measure.rows == 220
    alone = collect(model, corpus(), dictionary(site), tokens=150, top=3)
    assert (features.features().count == alone.count).all() and alone.measured == 150
