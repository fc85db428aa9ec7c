"""Measuring that is stopped keeps what is done, and the same command continues from there."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from monosem.lab.app.commands import suites
from monosem.saes.evaluation.reconstruction import Reconstruction
from monosem.saes.features.examples import FeatureExamples
from tiny_commands import Ended, Tiny

Command = Callable[..., Ended]

EVALUATION = ("--tokens=400", "--evaluation.ce-tokens=80", "--evaluation.fit-tokens=200", "--only", "core", "meta",
              "--meta.steps=5", "--meta.batch=32")  # fmt: skip


def pressing(monkeypatch: pytest.MonkeyPatch, kind: Any, name: str, at: int) -> None:
    """Press Ctrl-C once, in a call of a method."""
    method, calls = getattr(kind, name), []

    def pressed(*arguments: Any, **options: Any) -> Any:
        result = method(*arguments, **options)
        calls.append(1)
        if len(calls) == at:
            signal.raise_signal(signal.SIGINT)
        return result

    monkeypatch.setattr(kind, name, pressed)


@pytest.fixture(autouse=True)
def heard():
    """Ctrl-C is heard: what a shell starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("where", ["core", "meta"])
def test_a_stopped_evaluation_goes_on(
    where: str, tiny: Tiny, trained: Path, monosem: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ("eval", trained, *tiny.source, *EVALUATION, "--json")
    expected = monosem(*line).result
    (folder,) = trained.glob("dictionaries/*")
    stopped = folder / "evaluation.stopped"
    assert not stopped.exists()
    with monkeypatch.context() as patched:
        if where == "core":
            pressing(patched, Reconstruction, "step", 3)
        else:
            pressing(patched, suites.meta, "measure_meta", 1)
        ended = monosem(*line)
    assert ended.status == 130 and "the same command continues" in ended.err.splitlines()[-1], ended.err
    assert stopped.is_dir() and (stopped / "core.json").exists() == (where == "meta")
    other = monosem(*line, "--tokens=300")
    assert other.status == 2 and "evaluation.tokens = 400 and this one 300" in other.err.splitlines()[-1]
    assert "give the options it was begun with, or remove that folder" in other.err.splitlines()[-1]
    with monkeypatch.context() as patched:
        if where == "meta":
            patched.setattr(suites, "evaluate", lambda *_, **__: pytest.fail("what is done is measured again"))
        assert monosem(*line).result == expected
    assert not stopped.exists()


def test_stopped_features_go_on(
    tiny: Tiny, trained: Path, monosem: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def line(out: str) -> list[Any]:
        return ["features", trained, tmp_path / out, *tiny.source, "--tokens=1000", "--latents=4", "--json"]

    assert monosem(*line("whole")).status == 0
    with monkeypatch.context() as patched:
        pressing(patched, FeatureExamples, "step", 2)
        ended = monosem(*line("out"))
    assert ended.status == 130 and "the same command continues" in ended.err and not (tmp_path / "out").exists()
    other = monosem(*line("out"), "--tokens=900")
    assert other.status == 2 and "tokens = 1000 and this one 900" in other.err
    assert monosem(*line("out")).status == 0
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name
    assert not (tmp_path / "out.stopped").exists()
