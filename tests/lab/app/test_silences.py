"""Phases that take long with a real model say what they do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_commands import Ended, Tiny

Command = Callable[..., Ended]

TOKENS = ("--tokens=400", "--evaluation.ce-tokens=80", "--evaluation.fit-tokens=200")


def test_fitting_nulls_and_collecting_features_show_bars(
    tiny: Tiny, trained: Path, monosem: Command, tmp_path: Path
) -> None:
    assert "fit nulls" in monosem("eval", trained, *tiny.source, *TOKENS).err
    assert "features:" in monosem("features", trained, tmp_path / "out", *tiny.source, "--latents=4").err


def test_comparing_and_exporting_speak(
    tiny: Tiny, trained: Path, monosem: Command, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert monosem("export", trained, tmp_path / "sae").status == 0
    assert "writing TopK" in caplog.text
    options = (f"--corpus=text:{tiny.text}", "--dtype=fp32", "--device=cpu", "--text.context=32")
    ended = monosem("compare", trained, tmp_path / "sae", *options, "--covariance-rows=200")
    assert ended.status == 0 and "rows:" in ended.err and "matching 64 latents of" in caplog.text
