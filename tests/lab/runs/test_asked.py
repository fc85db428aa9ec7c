"""A run that gets fewer rows than it asks for says so, and an error that ends a run loses nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from monosem.lab.errors import InputError
from monosem.lab.runs.loop import train
from monosem.lab.runs.run import Run
from monosem.lab.storage import flatten
from monosem.lab.streams.activation_stream import ActivationStream
from monosem.lab.streams.buffer import rows_served
from monosem.lab.streams.store import ActivationStore
from monosem.saes.files import load
from monosem.saes.registry import build_trainable
from monosem.saes.training.trainer import TrainConfig, Trainer
from toys import WIDTHS, A, Autoencoder, TinyCorpus, tiny_stream

ROWS = 700
"""Rows in the store."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    folder = tmp_path_factory.mktemp("store") / "store"
    return ActivationStore.write(tiny_stream(), folder, limit_rows=ROWS, shard_rows=256, progress=False)


def trainer(rows: int, penalised: bool = False) -> Trainer:
    sae = build_trainable("jumprelu" if penalised else "batchtopk", d_in=WIDTHS[A], n_latents=20, k=3)
    return Trainer(sae, A, TrainConfig(rows=rows, precision="fp32"), name="sae")


def read(store: ActivationStore, **options: Any) -> ActivationStream:
    return ActivationStream.from_store(store, sites=[A], **{"batch": 32, "buffer": 200, **options})


@pytest.mark.parametrize("reuse", [1, 2, 3, 7])
@pytest.mark.parametrize(("batch", "buffer"), [(32, 200), (32, 64), (16, 900), (50, 101), (7, 699)])
def test_the_rows_that_a_stream_will_serve_are_known_beforehand(
    store: ActivationStore, batch: int, buffer: int, reuse: int
) -> None:
    stream = read(store, batch=batch, buffer=buffer, reuse=reuse)
    told = stream.rows_at_most(10**9)
    assert told == rows_served(ROWS, buffer, batch, reuse) == sum(len(served.origin) for served in stream)


def test_a_store_that_is_too_short_is_refused_before_the_first_step(store: ActivationStore, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"2,000 rows are asked for and the stream has 700: ask for at most 700 .*--al"
    ):
        train(read(store), trainer(2000), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="the stream has 1,4"):
        train(read(store, reuse=2), trainer(2000), progress=False)
    assert train(read(store, reuse=3), trainer(2000), progress=False) is None
    assert train(read(store), trainer(2000), steps=20, progress=False) is None  # 640 rows are asked for


def test_a_short_run_that_is_allowed_has_a_schedule_over_the_rows_there_are(
    store: ActivationStore, tmp_path: Path
) -> None:
    short = train(read(store), trainer(2000), tmp_path / "short", allow_short=True, progress=False)
    fitting = train(read(store), trainer(ROWS), tmp_path / "fitting", progress=False)
    assert short.metrics("sae")[-1]["lr"] < 1e-4 < max(line["lr"] for line in short.metrics("sae"))
    manifest = short.manifest or {}
    assert (manifest["status"], manifest["asked_rows"], manifest["rows"]) == ("short", 2000, ROWS)
    weights = [load(run.dictionaries["sae"]).W_dec for run in (short, fitting)]
    assert torch.equal(*weights)


def test_a_stream_that_ends_early_is_an_error_with_everything_kept(tmp_path: Path) -> None:
    """The tiny corpus does not say how many rows it has."""

    def again(**options: Any) -> Run:
        return train(tiny_stream(), trainer(5000), tmp_path / "run", progress=False, **options)

    with pytest.raises(InputError, match=r"ended after 2,\d\d\d of 5,000 rows; what was trained is kept in .*run"):
        again()
    run = Run.open(tmp_path / "run")
    manifest = run.manifest or {}
    assert (manifest["status"], manifest["asked_rows"]) == ("short", 5000) and 2000 < manifest["rows"] < 3000
    kept = load(run.dictionaries["sae"]).W_dec
    with pytest.raises(InputError, match="ended after"):
        again()
    assert (again(allow_short=True).manifest or {})["status"] == "short"
    assert torch.equal(load(run.dictionaries["sae"]).W_dec, kept)
    with pytest.raises(InputError, match="the consumers hold what they learned"):
        train(tiny_stream(), trainer(5000), progress=False)


def test_a_measure_that_reads_to_the_end_asks_for_nothing(tmp_path: Path) -> None:
    run = train(tiny_stream(), Autoencoder("a", A), tmp_path, progress=False)
    assert (run.manifest or {})["status"] == "complete" and (run.manifest or {})["asked_rows"] is None


def test_a_store_says_that_it_is_short(tmp_path: Path) -> None:
    def write(folder: str, **options: Any) -> ActivationStore:
        return ActivationStore.write(tiny_stream(), tmp_path / folder, limit_rows=9999, progress=False, **options)

    with pytest.raises(InputError, match=r"has 2,\d\d\d of the 9,999 rows .* is a whole store of those"):
        write("refused")
    store = write("allowed", allow_short=True)
    assert store.manifest["asked_rows"] == 9999 and ActivationStore.open(tmp_path / "refused").rows == store.rows


class Breaking(TinyCorpus):
    """Raises at its twelfth batch, until it is mended."""

    mended = False

    def iterate(self, state: Any = None) -> Iterator[tuple[Any, Any]]:
        for number, item in enumerate(super().iterate(state), (state or {}).get("next", 0)):
            if number == 12 and not self.mended:
                raise InputError("line 301 is missing (None)")
            yield item


def content(run: Run) -> dict[str, Any]:
    state = run.latest()
    assert state is not None
    tensors, rest = flatten(state)
    return {"tensors": {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}, "rest": rest,
            "metrics": run.metrics_path.read_bytes()}  # fmt: skip


@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_error_of_the_source_comes_after_a_checkpoint(tmp_path: Path, prefetch: int) -> None:
    def run(folder: str, mended: bool) -> Run:
        corpus = Breaking()
        corpus.mended = mended
        consumers = [trainer(1500), Autoencoder("a", A)]
        stream = tiny_stream(corpus=corpus, prefetch=prefetch, max_norm_multiple=None)
        return train(stream, consumers, tmp_path / folder, progress=False)

    with pytest.raises(InputError, match="line 301 is missing") as refused:
        run("cut", mended=False)
    (note,) = refused.value.__notes__
    assert "is kept up to step 3" in note and note.endswith("resume it (--resume)")
    kept = Run.open(tmp_path / "cut").latest()
    assert kept is not None and kept["step"] > 30  # the default is one checkpoint in 15 minutes
    assert content(run("cut", mended=True)) == content(run("whole", mended=True))


class Failing(Trainer):
    """Fails in one step: before it changed anything, or after."""

    where: str | None = None

    def training_rows(self, acts: Any) -> Any:
        if self.where == "before" and self.steps == 17:
            raise RuntimeError("out of memory")
        return super().training_rows(acts)

    def apply(self, *arguments: Any) -> None:
        if self.where == "within" and self.steps == 17:
            raise RuntimeError("out of memory")
        super().apply(*arguments)


@pytest.mark.parametrize("penalised", [False, True])
def test_an_error_in_a_step_loses_nothing_where_nothing_was_changed(tmp_path: Path, penalised: bool) -> None:
    """The batch is kept for the trainer that failed and those after it; the one before it does not see it twice."""

    def run(folder: str, where: str | None = None) -> Run:
        failing = trainer(1000, penalised)
        failing.__class__, failing.where, failing.name = Failing, where, "failing"  # ty: ignore
        consumers = [Autoencoder("before", A), failing, Autoencoder("after", A)]
        options = {"steps": 30, "log_every": 5, "checkpoint_every": 4, "progress": False}
        return train(tiny_stream(), consumers, tmp_path / folder, **options)

    whole = content(run("whole"))
    for where, step in (("before", 17), ("within", 16)):
        with pytest.raises(RuntimeError, match="out of memory"):
            run(where, where)
        latest = Run.open(tmp_path / where).latest()
        assert latest is not None and latest["step"] == step and ("batch" in latest) == (where == "before")
        assert content(run(where)) == whole
