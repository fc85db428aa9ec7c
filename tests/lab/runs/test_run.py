from __future__ import annotations

import json
import resource
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from monosem.lab.errors import InputError
from monosem.lab.runs.run import Run
from monosem.lab.runs.trackers import open_sink

CONFIG = {"seed": 0, "dictionary": {"k": 32, "n_latents": 1024}}
PRINTS = {
    "model": {"name": "tiny", "revision": "a1"},
    "corpus": {"hash": "c0ffee"},
    "sites": ["resid_post.1"],
}


@contextmanager
def small_files(limit: int) -> Iterator[None]:
    """A disk on which no file may grow beyond `limit` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def state(step: int, size: int = 10) -> dict[str, Any]:
    return {
        "step": step,
        "consumers": {"sae": {"W": torch.full((size,), float(step))}},
        "stream": {"next": None},
    }


def test_a_run_is_opened_as_it_was_created(tmp_path: Path) -> None:
    created = Run.create(tmp_path / "run", CONFIG, PRINTS)
    opened = Run.open(tmp_path / "run")
    assert (opened.config, opened.fingerprints, opened.id) == (CONFIG, PRINTS, created.id)
    assert opened.manifest is None and opened.latest() is None and opened.metrics() == []
    assert "unfinished" in repr(opened) and "<table>" in opened._repr_html_()


def test_a_folder_that_holds_a_run_is_not_taken(tmp_path: Path) -> None:
    first = Run.create(tmp_path, CONFIG, PRINTS)
    with pytest.raises(InputError, match="already holds a run: resume it"):
        Run.create(tmp_path, CONFIG, PRINTS)
    assert Run.create(tmp_path, CONFIG, PRINTS, resume=True).id == first.id
    with pytest.raises(InputError, match="holds no run"):
        Run.open(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("config", "prints", "message"),
    [
        ({"dictionary": {"k": 64, "n_latents": 1024}}, {}, r"config.dictionary.k = 32 and this one 64"),
        ({}, {"model": {"name": "tiny", "revision": "b2"}}, r"model.revision = 'a1' and this one 'b2'"),
        ({}, {"corpus": {"hash": "decaf"}}, r"corpus.hash = 'c0ffee' and this one 'decaf'"),
        ({}, {"sites": ["resid_post.2"]}, r"sites = \['resid_post.1'\] and this one \['resid_post.2'\]"),
        ({"extra": 1}, {}, r"config.extra = None and this one 1"),
    ],
)
def test_resuming_something_else_names_the_key_and_both_values(
    tmp_path: Path, config: dict, prints: dict, message: str
) -> None:
    Run.create(tmp_path, CONFIG, PRINTS)
    with pytest.raises(InputError, match=message):
        Run.create(tmp_path, {**CONFIG, **config}, {**PRINTS, **prints}, resume=True)


def test_only_the_newest_checkpoint_stays(tmp_path: Path) -> None:
    run = Run.create(tmp_path)
    for step in (9, 10, 100):
        run.checkpoint(state(step))
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1
    latest = run.latest()
    assert latest is not None and latest["step"] == 100 and latest["stream"] == {"next": None}
    assert torch.equal(latest["consumers"]["sae"]["W"], torch.full((10,), 100.0))


def test_resume_cuts_metrics_back_and_sweeps(tmp_path: Path) -> None:
    run = Run.create(tmp_path)
    run.log({"step": 1, "consumer": "sae", "loss": 0.5})
    run.checkpoint(state(1))
    run.log({"step": 2, "consumer": "sae", "loss": 0.4})
    with open(run.metrics_path, "a") as file:
        file.write('{"step": 3, "cons')  # killed here
    half = tmp_path / "checkpoints" / ".000000002.123.tmp"
    half.mkdir()
    (half / "state.safetensors").write_bytes(b"half")
    resumed = run.resume()
    assert resumed is not None and resumed["step"] == 1 and not half.exists()
    assert run.metrics() == [{"step": 1, "consumer": "sae", "loss": 0.5}]


def test_resume_without_a_checkpoint_begins_again(tmp_path: Path) -> None:
    run = Run.create(tmp_path)
    run.log({"step": 1, "consumer": "sae", "loss": 0.5})
    assert run.resume() is None and run.metrics() == []


def test_edited_metrics_are_refused(tmp_path: Path) -> None:
    run = Run.create(tmp_path)
    run.log({"step": 1, "consumer": "sae"})
    run.checkpoint(state(1))
    run.metrics_path.unlink()
    with pytest.raises(InputError, match="put the file back"):
        run.resume()


def test_metrics_hold_only_json_numbers(tmp_path: Path) -> None:
    run = Run.create(tmp_path)
    run.log({"step": 1, "consumer": "sae", "loss": float("nan"), "l0": float("inf"), "fvu": 0.1})
    assert run.metrics("sae") == [{"step": 1, "consumer": "sae", "loss": None, "l0": None, "fvu": 0.1}]
    assert run.metrics("other") == []


def test_a_full_disk_leaves_the_checkpoint_and_the_metrics_before(tmp_path: Path) -> None:
    run = Run.create(tmp_path)
    run.log({"step": 1, "consumer": "sae", "loss": 0.5})
    run.checkpoint(state(1))
    with small_files(20_000), pytest.raises(InputError, match=r"no space left to write .*state.safetensors"):
        run.checkpoint(state(2, size=100_000))
    with small_files(60), pytest.raises(InputError, match=r"no space left to write .*metrics.jsonl"):
        run.log({"step": 2, "consumer": "sae", "loss": 0.25})
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["000000001"]
    latest = run.resume()
    assert latest is not None and latest["step"] == 1
    assert run.metrics() == [{"step": 1, "consumer": "sae", "loss": 0.5}]


def test_manifest_says_what_it_stood_on(tmp_path: Path) -> None:
    run = Run.create(tmp_path, CONFIG, PRINTS)
    run.finish(steps=7)
    manifest = run.manifest
    assert manifest is not None
    assert manifest["status"] == "complete" and manifest["steps"] == 7
    assert manifest["config"] == CONFIG and manifest["fingerprints"] == PRINTS
    assert manifest["versions"]["torch"] == torch.__version__ and manifest["hardware"]["cpus"] > 0
    assert "complete" in repr(run)


def test_artefacts_are_whole_or_absent(tmp_path: Path) -> None:
    class Sae:
        name, fails = "sae", False

        def save(self, folder: Path) -> None:
            (folder / "weights").write_text("abc")
            if self.fails:
                raise RuntimeError("half way")

    run, sae = Run.create(tmp_path), Sae()
    sae.fails = True
    with pytest.raises(RuntimeError):
        run.save(sae)
    assert run.dictionaries == {}
    sae.fails = False
    run.save(sae)
    assert run.dictionaries == {"sae": run.artefact("sae")}
    assert (run.artefact("sae") / "weights").read_text() == "abc"


def test_another_schema_is_refused(tmp_path: Path) -> None:
    Run.create(tmp_path)
    record = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**record, "schema": 9}))
    with pytest.raises(InputError, match="schema 9 and this version reads 1"):
        Run.open(tmp_path)


class Calls(types.ModuleType):
    """A module that remembers what was called on it."""

    def __init__(self, name: str):
        super().__init__(name)
        self.made: list[tuple[str, tuple, dict]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args: Any, **options: Any) -> Calls:
            self.made.append((name, args, options))
            return self

        return call


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_trackers_share_an_interface(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    module = Calls(name)
    monkeypatch.setitem(sys.modules, name, module)
    run = Run.create(tmp_path / "my-run", CONFIG)
    sink = open_sink(name, run)
    sink.log(50, {"sae/loss": 0.5})
    sink.close()
    assert [call for call, *_ in module.made] == ["init", "log", "finish"]
    options = module.made[0][2]
    assert options["project"] == "monosem" and options["name"] == "my-run" and options["config"] == CONFIG
    assert options["resume"] == "allow" and options.get("id", run.id) == run.id
    assert module.made[1][1:] == (({"sae/loss": 0.5},), {"step": 50})


def test_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = Calls("torch.utils.tensorboard")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    sink = open_sink("tensorboard", Run.create(tmp_path))
    sink.log(50, {"sae/loss": 0.5})
    sink.close()
    assert module.made == [
        ("SummaryWriter", (), {"log_dir": str(tmp_path / "tensorboard")}),
        ("add_scalar", ("sae/loss", 0.5, 50), {}),
        ("close", (), {}),
    ]


def test_a_missing_or_unknown_sink_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    run = Run.create(tmp_path)
    with pytest.raises(InputError, match="pip install wandb"):
        open_sink("wandb", run)
    with pytest.raises(InputError, match="unknown tracker 'wandbb': did you mean 'wandb'"):
        open_sink("wandbb", run)
