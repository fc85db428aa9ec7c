"""Commands that get fewer rows than they ask for end with an error, unless that is allowed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from monosem.lab.runs.run import Run
from monosem.saes.files import load
from tiny_commands import Ended, Tiny

Command = Callable[..., Ended]


@pytest.fixture(scope="module")
def store(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from monosem.lab.app.cli import main

    folder = tmp_path_factory.mktemp("stored") / "store"
    assert main(["harvest", str(folder), *tiny.source, "--sites=resid_post.1", "--rows=600"]) == 0
    return folder


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_a_store_that_is_too_short(tiny: Tiny, store: Path, monosem: Command, tmp_path: Path, command: str) -> None:
    line = tiny.train(tmp_path / "run", f"--store={store}")
    if command == "sweep":
        line = ["sweep", *line[1:], "--no-evaluate"]
    ended = monosem(*line)
    assert ended.status == 2 and "4,000 rows are asked for and the stream has 600" in ended.err
    assert "--allow-short" in ended.err and not (tmp_path / "run").exists()
    ended = monosem(*line, "--allow-short", "--json")
    assert ended.status == 0
    run = Run.open(tmp_path / "run")
    manifest, (name,) = run.manifest or {}, run.dictionaries
    assert (manifest["status"], manifest["asked_rows"], manifest["rows"]) == ("short", 4000, 600)
    assert run.metrics(name)[-1]["lr"] < 1e-4 and load(run.dictionaries[name]).provenance.training["rows"] == 600
    if command == "train":
        assert (ended.result["status"], ended.result["asked_rows"], ended.result["rows"]) == ("short", 4000, 600)


def test_texts_that_are_read_once(tiny: Tiny, monosem: Command, tmp_path: Path) -> None:
    line = tiny.train(tmp_path / "run", "--rows=1000000", "--stream.epochs=1")
    ended = monosem(*line)
    assert ended.status == 2 and "1,000,000 rows are asked for and the stream has " in ended.err
    assert monosem(*line, "--allow-short").status == 0
    harvest = (
        "harvest",
        tmp_path / "store",
        *tiny.source,
        "--sites=resid_post.1",
        "--rows=999999",
        "--stream.epochs=1",
    )
    ended = monosem(*harvest)
    assert ended.status == 2 and "of the 999,999 rows that are asked for; nothing is written" in ended.err
    assert not (tmp_path / "store").exists()
    ended = monosem(*harvest, "--allow-short", "--json")
    assert ended.status == 0 and ended.result["rows"] < ended.result["asked_rows"] == 999999
    atoms = ("atoms", tmp_path / "atoms", f"--store={tmp_path / 'store'}", *tiny.source, "--site=resid_post.1")
    ended = monosem(*atoms, "--rows=100000")
    assert ended.status == 2 and "rows are asked for and the stream has" in ended.err
    assert not (tmp_path / "atoms").exists()


def test_an_itda_of_a_short_store_is_kept(tiny: Tiny, store: Path, monosem: Command, tmp_path: Path) -> None:
    """It may be done before its rows are read: only the end tells."""
    line = ("itda", tmp_path / "run", f"--store={store}", *tiny.source, "--sites=resid_post.1")
    small = (*line, "--max-atoms=40", "--k=4", "--stream.batch=64", "--stream.buffer=256")
    assert monosem(*small, "--tau=0.0001").status == 0
    loose = (*small[:1], tmp_path / "loose", *small[2:], "--tau=0.9", "--warmup=0")
    ended = monosem(*loose)
    assert ended.status == 2 and "ended after 600 of 100,0" in ended.err
    assert load(next(iter(Run.open(tmp_path / "loose").dictionaries.values()))).n_latents < 40
    assert monosem(*loose, "--resume", "--allow-short").status == 0
