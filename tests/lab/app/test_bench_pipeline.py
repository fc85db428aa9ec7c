"""`monosem bench pipeline`: every library harvests and trains by itself, and its own files are measured alike."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TextIO

import pytest
from monosem.lab.app.bench import pipeline, pipeline_worker
from monosem.lab.app.bench.cells import Cells
from monosem.lab.app.bench.pipeline import BenchPipeline, curves, seconds_to
from tiny_commands import Ended, Tiny

Command = Callable[..., Ended]


def test_seconds_are_read_between_two_counts() -> None:
    curve = [{"seconds": 10.0, "fvu": 0.5}, {"seconds": 20.0, "fvu": 0.3}, {"seconds": 30.0, "fvu": 0.2}]
    assert seconds_to(curve, 0.5) == 10 and seconds_to(curve, 0.4) == pytest.approx(15)
    assert seconds_to(curve, 0.25) == pytest.approx(25) and seconds_to(curve, 0.1) is None


def test_counts_reach_from_a_small_part_to_all_rows() -> None:
    marks = BenchPipeline(out=Path("nowhere"), rows=64_000).marks
    assert marks[0] == 1000 and marks[-1] == 64_000 and 48_000 in marks and list(marks) == sorted(set(marks))


SIZES = (
    "--n-latents=64",
    "--k=4",
    "--batch=64",
    "--rows=1024",
    "--held-out=256",
    "--targets=0.9",
    "--site=resid_post.1",
)


def test_every_run_is_measured_and_not_run_again(
    tiny: Tiny, monosem: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # before the import
    pytest.importorskip("sparsify")
    ran: list[str] = []

    def in_this_process(command: list[str], **_: object) -> SimpleNamespace:
        """A process takes seconds to start; what it does is the same."""
        assert command[1:3] == ["-m", "monosem.lab.app.bench.pipeline_worker"]
        pipeline_worker.work(Path(command[3]))
        ran.append(command[3])
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(pipeline, "subprocess", SimpleNamespace(run=in_this_process))
    options = ("bench", "pipeline", str(tmp_path / "out"), *tiny.source, *SIZES, "--site=resid_post.1")
    peers = ("--against=sparsify", "--columns=matched")
    first = monosem(*options, *peers, "--json").result
    ours, sparsify = first["contestants"]
    assert [mark["rows"] for mark in ours["curve"]][-1] == 1024
    assert ours["curve"][-1]["fvu"] < ours["curve"][0]["fvu"] and ours["peak_bytes"] > 1e8
    assert all(a["seconds"] < b["seconds"] for a, b in zip(ours["curve"], ours["curve"][1:], strict=False))
    assert sparsify["curve"][-1]["fvu"] < sparsify["curve"][0]["fvu"] and sparsify["curve"][-1]["rows"] == 1024
    page = Path(first["page"]).read_text()
    assert "Time to quality" in page and "FVU against seconds" in page
    again = monosem(*options, *peers)
    assert json.loads((tmp_path / "out" / "results.json").read_text())["contestants"] == first["contestants"]
    assert len(ran) == 2 and again.out.count("\nmonosem ") == again.out.count("\nsparsify ") == 1


def test_a_peer_that_fails_is_told_in_one_sentence(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], *, stdout: TextIO, **_: object) -> SimpleNamespace:
        stdout.write("Traceback\nOSError: no such device\n")
        stdout.flush()
        return SimpleNamespace(returncode=1)

    monkeypatch.setattr(pipeline, "subprocess", SimpleNamespace(run=run))
    bench = BenchPipeline(out=tmp_path / "out", against="sae-lens", columns="documented", rows=2048)
    found = bench._finished("sae-lens", "documented", Cells(tmp_path / "out", {}), [])
    assert found["cannot"] == "sae-lens (documented) did not run on this machine: OSError: no such device"
    assert not (tmp_path / "out" / "cells.jsonl").exists(), "it is tried again"
    assert found["cannot"] in bench.as_text({"contestants": [found]}) and not curves([]).data
