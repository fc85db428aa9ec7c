"""`read`: one pass of the model for any number of measures, stopped and continued, and what it refuses."""

from __future__ import annotations

import logging
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from monosem.lab.errors import InputError
from monosem.lab.models.hooked_model import HookedModel
from monosem.lab.runs import read as read_module
from monosem.lab.runs.consumers import Consumer, Measuring
from monosem.lab.runs.first_rows import FirstRows, FullTokenRows
from monosem.lab.runs.read import read
from monosem.lab.runs.run import Run
from monosem.lab.streams.activation_stream import ActivationStream, Batch
from monosem.lab.streams.store import ActivationStore
from monosem.lab.streams.token_stream import TokenStream
from monosem.lab.text.corpus import Corpus
from monosem.lab.text.held import HeldText
from monosem.lab.text.packing import TokenBatch
from tiny_models import Letters, build
from toys import A, B, Mean, tiny_stream

SITE = "resid_post.1"


@pytest.fixture(scope="module")
def model() -> HookedModel:
    return HookedModel(build("llama"), name="tiny-llama")


def corpus(documents: int = 40, **fields: Any) -> Corpus:
    texts = ["".join(chr(33 + (i * i + j * (7 + i % 5)) % 90) for j in range(12 + i % 9)) for i in range(documents)]
    return Corpus(texts, Letters(), **{"context": 16, "batch_rows": 4, "pack": False, **fields})


class Texts(Mean):
    """Counts the token batches that it is served, and stops the process's reading at one of them."""

    needs_text = True

    def __init__(self, site: Any, stop_at: int | None = None) -> None:
        super().__init__("texts", ())
        self.sites, self.stop_at, self.batches = (site,), stop_at, 0

    def step(self, batch: Batch) -> None:
        assert batch.source is not None
        self.batches += 1
        self.rows += len(batch.origin)
        if self.batches == self.stop_at:
            signal.raise_signal(signal.SIGINT)

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self.batches, "rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.batches, self.rows = state["batches"], state["rows"]

    def metrics(self) -> dict[str, float]:
        return {"batches": self.batches}


def test_rows_above_the_norm_limit_are_not_served(model: HookedModel) -> None:
    rows = torch.cat([batch.acts[model.site(SITE)] for batch in TokenStream.reading(model, corpus(), SITE)])
    limit = float(rows.norm(dim=1).median())
    stream = TokenStream.reading(model, corpus(), SITE, norm_limit={SITE: limit})
    kept = torch.cat([batch.acts[model.site(SITE)] for batch in stream])
    assert torch.equal(kept, rows[rows.norm(dim=1) <= limit]) and 0.4 < len(kept) / len(rows) < 0.6
    assert stream.counts["dropped_norm"] == {SITE: len(rows) - len(kept)} and stream.counts["served"] == len(kept)


def test_measures_share_one_pass_and_it_ends_when_all_are_done() -> None:
    model = toys.TinyModel(sink=7)
    stream = tiny_stream(model=model, epochs=None)
    first, second = FirstRows(A, 70), FirstRows(B, 40)
    counts = read(stream, [first, second], progress=False)
    assert counts.batches == 3 and counts.rows == 96 and (first.rows, second.rows) == (70, 40)
    again = tiny_stream()
    expected = torch.cat([next(again).acts[A] for _ in range(3)])[:70]
    assert torch.equal(first.acts, expected)
    assert model.forwards == 20 and counts.dropped_norm[str(A)] > 0


def test_a_token_stream_serves_every_batch_and_runs_up_to_the_last_site(model: HookedModel) -> None:
    """Rows are those of an `ActivationStream`'s harvest, and a batch without one still comes."""
    before = model.forwards
    stream = TokenStream.reading(model, corpus(), SITE, norm_limit={SITE: 0.0})
    texts = Texts(model.site(SITE))
    counts = read(stream, texts, progress=False)
    assert counts.rows == texts.rows == 0 and texts.batches == model.forwards - before == len(list(corpus()))
    assert sum(counts.dropped_norm.values()) + counts.dropped_special == counts.tokens
    batch = next(TokenStream.reading(model, corpus(), SITE))
    assert batch.source is not None
    with pytest.raises(InputError, match="stops at its last site and has no logits"):
        _ = batch.source.logits
    tokens = next(iter(corpus()))
    expected = model.capture(tokens.tokens, [SITE], attention_mask=tokens.attention)[SITE]
    assert torch.equal(batch.acts[model.site(SITE)], expected[tokens.usable])
    whole = next(TokenStream(model, corpus(), SITE, norm_limit={SITE: None}, epochs=1))
    assert torch.equal(batch.acts[model.site(SITE)], whole.acts[model.site(SITE)])


def test_tokens_alone_need_no_pass_and_documents_can_be_left_out(model: HookedModel) -> None:
    before = model.forwards
    first = next(TokenStream.reading(model, corpus()))
    assert first.source is not None and not first.acts and model.forwards == before
    served = first.source.batch.doc.unique().tolist()
    left_out = next(doc for doc in range(40) if doc not in served)
    rest = TokenStream.reading(model, corpus(), start=first.source.position, without=torch.tensor([left_out]))
    documents = {doc for batch in rest if batch.source for doc in batch.source.batch.doc.unique().tolist() if doc >= 0}
    assert left_out not in documents and documents - set(served) == set(range(40)) - {left_out, *served}


def test_ctrl_c_stops_after_the_batch_and_the_same_call_continues(model: HookedModel, tmp_path: Path) -> None:
    def measures(stop_at: int | None) -> list[Consumer]:
        return [Texts(model.site(SITE), stop_at), FirstRows(model.site(SITE), 150)]

    def go(measures: list[Consumer], folder: str) -> None:
        run = Run.create(tmp_path / folder, resume=True)
        read(TokenStream.reading(model, corpus(), SITE), measures, run, progress=False)

    stopped, continued, whole = measures(4), measures(None), measures(None)
    with pytest.raises(KeyboardInterrupt, match="can be continued"):
        go(stopped, "stopped")
    assert stopped[0].metrics() == {"batches": 4} and 0 < stopped[1].metrics()["rows"] < 150
    before = model.forwards
    go(continued, "stopped")
    assert model.forwards - before == len(list(corpus())) - 4  # nothing is read twice
    go(whole, "whole")
    assert continued[0].metrics() == whole[0].metrics()
    assert isinstance(continued[1], FirstRows) and isinstance(whole[1], FirstRows)
    assert torch.equal(continued[1].acts, whole[1].acts) and torch.equal(continued[1].origin, whole[1].origin)


def test_without_a_run_ctrl_c_leaves_what_was_measured(model: HookedModel) -> None:
    texts = Texts(model.site(SITE), stop_at=3)
    with pytest.raises(KeyboardInterrupt, match="stopped after 3 batches; the consumers hold what they measured"):
        read(TokenStream.reading(model, corpus(), SITE), texts, progress=False)
    assert texts.metrics() == {"batches": 3}


def test_a_store_is_read_as_it_is(tmp_path: Path) -> None:
    store = ActivationStore.write(tiny_stream(epochs=None), tmp_path / "store", dtype=torch.float32, progress=False)
    first = FirstRows(A, 10**6)
    counts = read(store, first, progress=False)
    assert first.rows == counts.rows == store.rows
    kept = store.read(0, 0, store.rows)
    assert torch.equal(first.acts.sort(0).values, kept.acts[A].sort(0).values)


def test_the_bar_follows_the_slowest_measure(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A total is shown where every measure has one, and a long wait is announced in words."""
    monkeypatch.setattr(read_module, "FORECAST_AFTER", 0.0)
    monkeypatch.setattr(read_module, "WORTH_TELLING", 0.0)
    with caplog.at_level(logging.INFO):
        read(tiny_stream(), [FirstRows(A, 64), FirstRows(B, 1000, name="long")], description="measure")
    assert "measure: 100%" in capsys.readouterr().err
    assert "measure: about 0 min for 968 of 1,000" in caplog.text


def test_what_cannot_be_read_is_refused_before_the_model_runs(model: HookedModel) -> None:
    before = model.forwards
    stream = ActivationStream(model, corpus(), SITE, batch=8, buffer=32, epochs=1)
    with pytest.raises(InputError, match="'texts' reads whole texts, which ActivationStream does not serve"):
        read(stream, Texts(model.site(SITE)))
    with pytest.raises(InputError, match="read needs at least one consumer"):
        read(stream, [])
    with pytest.raises(InputError, match=r"reads mlp_out\.1, which is not streamed"):
        read(stream, FirstRows(B, 3))
    assert model.forwards == before
    assert isinstance(FirstRows(A, 1), Measuring) and not isinstance(Mean("mean", (A,)), Measuring)


def token_batch(rows: int, length: int, padded: int = 0) -> TokenBatch:
    tokens = torch.arange(rows * length).view(rows, length)
    attention = torch.ones_like(tokens, dtype=torch.bool)
    attention[:padded, -1] = False
    return TokenBatch(tokens, attention, attention, tokens, tokens)


def test_full_token_rows_have_one_length_and_no_padding(model: HookedModel) -> None:
    text = HeldText([token_batch(3, 5, padded=1), token_batch(2, 4), token_batch(1, 5)])
    kept = FullTokenRows(10)
    read(TokenStream.reading(model, text), kept, progress=False)
    assert kept.kept.tokens[:, 0].tolist() == [5, 10, 0] and kept.length == 5 and not kept.done
    shorter = FullTokenRows(1, length=4)
    read(TokenStream.reading(model, text), shorter, progress=False)
    assert shorter.kept.tokens.tolist() == [[0, 1, 2, 3]]
    with pytest.raises(InputError, match="rows of 4 tokens do not continue rows of 5"):
        kept.merge(shorter)
    with pytest.raises(InputError, match="has found no row of tokens without padding"):
        FullTokenRows(1).kept  # noqa: B018


def test_batches_at_hand_are_read_in_their_order_but_not_in_a_run(tmp_path: Path) -> None:
    stream, first = tiny_stream(), FirstRows(A, 100, whole=True)
    read(stream, first, progress=False)
    again = FirstRows(A, 70)
    counts = read(first.batches, again, progress=False)
    assert torch.equal(again.acts, first.acts[:70]) and torch.equal(again.origin, first.origin[:70])
    assert first.rows == sum(len(batch.origin) for batch in first.batches) >= 100
    assert counts.batches == 3 and counts.rows == 96
    with pytest.raises(InputError, match="no batch to read"):
        read([], FirstRows(A, 1), progress=False)
    with pytest.raises(InputError, match="which is not streamed"):
        read(first.batches, FirstRows(B, 1), progress=False)
    with pytest.raises(InputError, match="cannot be read in a run"):
        read(first.batches, FirstRows(A, 1), Run.create(tmp_path / "run", {}), progress=False)
