from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from monosem.lab.errors import InputError
from monosem.lab.runs.consumers import Consumer
from monosem.lab.runs.loop import train
from monosem.lab.runs.run import Run
from monosem.lab.storage import flatten
from toys import A, Autoencoder, B, Mean, TinyModel, tiny_run, tiny_stream


def outcome(folder: Path) -> dict[str, Any]:
    """Everything that must not depend on how often a run was killed: states, artefacts, metrics."""
    state = Run.open(folder).latest()
    assert state is not None
    tensors, rest = flatten(state)
    content = {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}
    saved = {path.name: (path / "weight.safetensors").read_bytes() for path in folder.glob("dictionaries/*")}
    return {
        "tensors": content,
        "rest": rest,
        "saved": saved,
        "metrics": (folder / "metrics.jsonl").read_bytes(),
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    return tiny_run(tmp_path_factory.mktemp("whole") / "run").folder


def test_the_run_at_the_end(whole: Path) -> None:
    run = Run.open(whole)
    assert run.manifest is not None and run.manifest["status"] == "complete" and run.manifest["steps"] == 72
    assert list(run.dictionaries) == ["first", "second"]
    assert not (whole / "measures").exists()  # the measure kept nothing
    losses = [line["loss"] for line in run.metrics("first")]
    assert losses[-1] < 0.8 * losses[0]
    assert [line["step"] for line in run.metrics("mean")] == [*range(5, 71, 5), 72]
    assert [line["step"] for line in run.metrics("stream")] == [line["step"] for line in run.metrics("first")]
    line = run.metrics("first")[0]
    assert list(line) == ["step", "rows", "tokens", "consumer", "loss"] and line["rows"] == 5 * 32
    timing = [json.loads(text) for text in (whole / "timing.jsonl").read_text().splitlines()]
    assert len(timing) == 15 and all(line["seconds"] > 0 for line in timing)


def test_a_consumer_that_is_done_is_left_alone(whole: Path) -> None:
    losses = [(line["step"], line["loss"]) for line in Run.open(whole).metrics("second")]
    assert len({loss for step, loss in losses if step <= 40}) == 8
    assert len({loss for step, loss in losses if step >= 40}) == 1
    state = Run.open(whole).latest()
    assert state is not None and state["consumers"]["second"]["steps"] == 40


def test_same_seed_same_bytes_other_seed_not(whole: Path, tmp_path: Path) -> None:
    again, other = tiny_run(tmp_path / "again", prefetch=3), tiny_run(tmp_path / "other", seed=1)
    assert outcome(again.folder) == outcome(whole)
    assert outcome(other.folder)["saved"] != outcome(whole)["saved"]
    assert outcome(other.folder)["metrics"] != outcome(whole)["metrics"]


def test_checkpoints_and_the_bar_have_no_say(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tiny_run(tmp_path / "run", checkpoint_every=None, progress=True)
    assert outcome(run.folder) == outcome(whole)
    captured = capsys.readouterr()
    assert "tok/s" in captured.err and "first/loss" in captured.err and captured.out == ""


def test_killed_again_and_again_it_ends_in_the_same_bytes(tmp_path: Path) -> None:
    """SIGKILL in separate processes, at random times and while a checkpoint is half written."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    killed = subprocess.run(
        [sys.executable, toys.__file__, str(tmp_path / "killed"), "1"],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
        timeout=120,
    )
    kills, mid_checkpoint = map(int, killed.stdout.split())
    assert kills >= 2 and mid_checkpoint >= 1
    whole = tiny_run(tmp_path / "whole", ballast=1_000_000)
    assert outcome(tmp_path / "killed") == outcome(whole.folder)
    assert not list((tmp_path / "killed").rglob("*.tmp"))


def test_more_steps_continue_a_finished_run(whole: Path, tmp_path: Path) -> None:
    first = tiny_run(tmp_path / "run", steps=30)
    assert first.manifest is not None and first.manifest["steps"] == 30
    assert outcome(tiny_run(tmp_path / "run").folder) == outcome(whole)


def test_one_forward_pass_feeds_every_consumer(tmp_path: Path) -> None:
    model = TinyModel()
    consumers = [Autoencoder("a", A), Autoencoder("b", B), Mean("mean", (A, B))]
    assert all(isinstance(consumer, Consumer) for consumer in consumers)
    stream = tiny_stream(model=model, max_norm_multiple=None)
    run = train(stream, consumers, Run.create(tmp_path), progress=False)
    assert model.forwards == 20
    corpus = toys.TinyCorpus()
    everything = torch.cat([model.capture(batch.tokens, [A])[A][batch.usable] for batch, _ in corpus.iterate()])
    assert run.metrics("mean")[-1][str(A)] == pytest.approx(float(everything.mean()), abs=1e-5)


def test_it_ends_when_all_are_done(tmp_path: Path) -> None:
    consumers = [Autoencoder("a", A, until=3), Autoencoder("b", B, until=8)]
    run = train(tiny_stream(), consumers, Run.create(tmp_path), log_every=100, progress=False)
    assert run.manifest is not None and run.manifest["steps"] == 8
    assert [line["step"] for line in run.metrics("a")] == [8]


def test_a_short_run_has_twenty_log_points_and_keeps_its_interval(tmp_path: Path) -> None:
    def logged(steps: int | None, wanted: int | None = None, folder: str = "run", **options: Any) -> list[int]:
        consumer = Autoencoder("a", A, until=None if wanted is None else wanted // 32)
        if wanted is not None:
            consumer.rows_wanted = wanted  # ty: ignore
        run = Run.create(tmp_path / folder, resume=True)
        train(tiny_stream(), consumer, run, steps=steps, progress=False, **options)
        return [line["step"] for line in run.metrics("a")]

    assert logged(40) == [*range(2, 41, 2)]
    assert logged(60) == [*range(2, 61, 2)]  # a run of that length alone has every third step
    assert logged(None, 62 * 32, "rows") == [*range(3, 61, 3), 62]
    assert logged(None, folder="unknown") == [50, 72]
    assert logged(40, folder="asked", log_every=15) == [15, 30, 40]


@pytest.mark.parametrize("prefetch", [0, 2])
def test_nan_activations_refuse_the_step_and_leave_the_run_valid(whole: Path, tmp_path: Path, prefetch: int) -> None:
    run = Run.create(tmp_path / "run")
    consumers = [Autoencoder("first", A), Mean("mean", (A, B))]
    limits = tiny_stream().norm_limit
    broken = tiny_stream(model=TinyModel(sink=7, broken=(9, 4)), prefetch=prefetch, norm_limit=limits)
    options = {"log_every": 5, "checkpoint_every": 7, "progress": False}
    with pytest.raises(InputError, match=r"nan or inf at resid_post.0 for document 66, offset 4"):
        train(broken, consumers, run, **options)
    assert run.manifest is None and all(torch.isfinite(consumers[0].weight).flatten())  # ty: ignore
    latest = run.latest()
    assert latest is not None and latest["step"] == consumers[0].steps > 7  # ty: ignore
    assert all(line["step"] <= consumers[0].steps for line in run.metrics())  # ty: ignore
    train(tiny_stream(), [Autoencoder("first", A), Mean("mean", (A, B))], run, **options)  # the model is mended
    assert run.metrics("first") == Run.open(whole).metrics("first")


def test_an_error_in_a_consumer_is_raised_and_no_thread_stays(tmp_path: Path) -> None:
    class Refusing(Autoencoder):
        def step(self, batch: Any) -> None:
            if self.steps == 10:
                raise InputError("the loss is nan at step 10: lower lr")
            super().step(batch)

    run = Run.create(tmp_path)
    with pytest.raises(InputError, match="loss is nan"):
        train(tiny_stream(prefetch=2), Refusing("a", A), run, checkpoint_every=4, progress=False)
    latest = run.latest()
    assert latest is not None and latest["step"] == 8
    assert not [thread for thread in threading.enumerate() if thread.name == "monosem-harvest"]


def test_ctrl_c_finishes_the_step_writes_a_checkpoint_and_says_how_to_go_on(tmp_path: Path, whole: Path) -> None:
    class Pressed(Autoencoder):
        def step(self, batch: Any) -> None:
            super().step(batch)
            if self.steps == 17:
                os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    run = Run.create(tmp_path / "run")
    consumers = [Pressed("first", A), Mean("mean", (A, B))]
    with pytest.raises(KeyboardInterrupt, match=r"can be continued: resume it \(--resume\)"):
        train(tiny_stream(), consumers, run, log_every=5, progress=False)
    assert signal.getsignal(signal.SIGINT) is before
    latest = run.latest()
    assert latest is not None and latest["step"] == 17 and run.manifest is None
    consumers = [Autoencoder("first", A), Mean("mean", (A, B))]
    train(tiny_stream(), consumers, run, log_every=5, progress=False)
    assert run.metrics("mean") == Run.open(whole).metrics("mean")


def test_ctrl_c_on_the_last_step_ends_the_run_and_goes_no_further(tmp_path: Path) -> None:
    class Pressed(Autoencoder):
        def step(self, batch: Any) -> None:
            super().step(batch)
            if self.steps == 5:
                os.kill(os.getpid(), signal.SIGINT)

    run = Run.create(tmp_path)
    with pytest.raises(KeyboardInterrupt, match="can be continued"):
        train(tiny_stream(), Pressed("a", A), run, steps=5, progress=False)
    assert run.manifest is not None and run.manifest["steps"] == 5


def test_trackers_by_their_former_name_are_refused() -> None:
    with pytest.raises(InputError, match="it is called trackers now"):
        train(tiny_stream(), Autoencoder("a", A), sinks=["wandb"], progress=False)  # type: ignore[call-overload]


def test_ctrl_c_while_the_buffer_fills(tmp_path: Path) -> None:
    """No step has been made: the rows read so far are kept, and a resume reads on from there."""

    class Slow(TinyModel):
        def capture(self, *args: Any, **options: Any) -> Any:
            time.sleep(0.02)
            return super().capture(*args, **options)

    run, model = Run.create(tmp_path), Slow()
    timer = threading.Timer(0.15, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    stream = tiny_stream(model=model, buffer=2000, norm_limit={A: 1e9, B: 1e9})
    with pytest.raises(KeyboardInterrupt):
        train(stream, Autoencoder("a", A), run, progress=False)
    timer.join()
    assert 0 < model.forwards < 16
    latest = run.latest()
    assert latest is not None and latest["step"] == 0
    train(tiny_stream(model=model, buffer=2000), Autoencoder("a", A), run, progress=False)
    assert model.forwards == 20


def test_another_stream_or_consumer_cannot_continue_a_run(tmp_path: Path) -> None:
    run = Run.create(tmp_path)
    train(tiny_stream(), Autoencoder("a", A), run, steps=5, progress=False)
    with pytest.raises(InputError, match=r"stream.stream.seed = 0 and this one 3"):
        train(tiny_stream(seed=3), Autoencoder("a", A), run, steps=9, progress=False)
    with pytest.raises(InputError, match=r"stream.model.revision = 0 and this one 4"):
        train(tiny_stream(model=TinyModel(seed=4)), Autoencoder("a", A), run, steps=9, progress=False)
    with pytest.raises(InputError, match=r"consumers.a = \['resid_post.0'\] and this one \['mlp_out.1'\]"):
        train(tiny_stream(), Autoencoder("a", B), run, steps=9, progress=False)


@pytest.mark.parametrize(
    ("consumers", "options", "message"),
    [
        ([], {}, "at least one consumer"),
        ([Autoencoder("a", A), Autoencoder("a", B)], {}, "consumer name 'a' cannot be used"),
        (
            [torch.nn.Linear(2, 2)],
            {},
            "Linear is no Consumer: it lacks name, sites, done, step, metrics,",
        ),
        ([Autoencoder("stream", A)], {}, "consumer name 'stream'"),
        ([Autoencoder("a/b", A)], {}, "consumer name 'a/b'"),
        ([Autoencoder("b", B)], {"sites": [A]}, "'b' reads mlp_out.1, which is not streamed"),
    ],
)
def test_bad_consumers_are_refused_before_any_step(
    tmp_path: Path, consumers: list, options: dict, message: str
) -> None:
    model = TinyModel()
    with pytest.raises(InputError, match=message):
        train(tiny_stream(model=model, **options), consumers, Run.create(tmp_path), progress=False)
    assert model.forwards == 0


def test_sinks_get_every_log_point(tmp_path: Path) -> None:
    class Remembering:
        def __init__(self) -> None:
            self.seen: dict[int, Any] = {}
            self.closed = False

        def log(self, step: int, values: Any) -> None:
            self.seen[step] = dict(values)

        def close(self) -> None:
            self.closed = True

    sink = Remembering()
    run = train(
        tiny_stream(),
        Autoencoder("a", A),
        Run.create(tmp_path),
        steps=10,
        log_every=4,
        progress=False,
        trackers=[sink],
    )
    assert sink.closed and list(sink.seen) == [4, 8, 10]
    assert sink.seen[8]["a/loss"] == run.metrics("a")[1]["loss"] and "stream/same_document" in sink.seen[8]


class Wanting(Autoencoder):
    """Wants 20 batches of the stream, and has options."""

    def __init__(self, lr: float = 0.1):
        super().__init__("wanting", A, until=20)
        self.lr = lr

    rows_wanted = 630  # not a multiple of the batch

    def settings(self) -> dict[str, float]:
        return {"lr": self.lr}


def test_without_a_run_nothing_is_written_and_the_consumers_hold_what_they_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    kept, alone = Wanting(), Wanting()
    train(tiny_stream(), kept, tmp_path / "run", progress=False)
    assert train(tiny_stream(), alone) is None
    assert torch.equal(kept.weight, alone.weight)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert "/640" in capsys.readouterr().err  # rows wanted, in whole batches
    with pytest.raises(InputError, match="tracker 'wandb' follows a run"):
        train(tiny_stream(), Wanting(), trackers=["wandb"], progress=False)


def test_a_folder_is_a_run_that_the_same_call_continues(tmp_path: Path) -> None:
    whole = train(tiny_stream(), Wanting(), tmp_path / "whole", progress=False)
    cut = str(tmp_path / "cut")
    train(tiny_stream(), Wanting(), cut, steps=7, progress=False)
    continued = Wanting()
    train(tiny_stream(), continued, cut, progress=False)
    assert outcome(tmp_path / "cut")["tensors"] == outcome(whole.folder)["tensors"]
    again = Wanting()
    train(tiny_stream(), again, cut, progress=False)  # done already
    assert torch.equal(again.weight, continued.weight)
    with pytest.raises(InputError, match=r"wanting\.lr"):
        train(tiny_stream(), Wanting(lr=0.2), cut, progress=False)
    with pytest.raises(InputError, match="seed"):
        train(tiny_stream(seed=5), Wanting(), cut, progress=False)
