"""`monosem bench`: every contestant gets the same input, and the result says what was measured and where."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from monosem.kernels.chunks import chunk_rows
from monosem.kernels.tuples import Codes
from monosem.lab.app.bench import buffer, harvest, kernels, step, tables, train
from monosem.lab.app.bench.contestant import Asked, matched_rates
from monosem.lab.app.bench.kernel_cases import CASES, Bed, Case, relative, values_error
from monosem.lab.app.bench.kernels import BenchKernels
from monosem.lab.app.bench.l0_search import reach_l0
from monosem.lab.app.bench.peers import PEERS
from monosem.lab.app.bench.shapes import Planted, Shape
from monosem.lab.app.bench.step_memory import extra_memory
from monosem.lab.app.bench.timing import interleaved
from tiny_commands import Ended, Tiny, clocked

Command = Callable[..., Ended]


def test_turns_alternate_and_the_warm_up_is_not_counted() -> None:
    calls: list[tuple[str, int]] = []

    def slow(number: int) -> None:
        calls.append(("slow", number))
        time.sleep(0.3 if number < 1 else 0.02)

    seconds = interleaved({"slow": slow, "fast": lambda number: calls.append(("fast", number))}, 3, 1)
    assert calls == [(name, number) for number in range(4) for name in ("slow", "fast")]
    assert 0.02 <= seconds["slow"] < 0.3 and seconds["fast"] < seconds["slow"]


def test_harvesting_beside_a_plain_forward(tiny: Tiny, monosem: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock by which a pass of 128 tokens takes ours 0.5 s and a plain one 0.25 s."""
    clocked(monkeypatch, harvest, 0.5, 0.25)
    sizes = ("--contexts", "16", "32", "--tokens=128", "--rounds=2", "--against=plain", "--site=resid_post.1")
    result = monosem("bench", "harvest", *tiny.source, *sizes, "--json").result
    assert result["site"] == "resid_post.1" and result["dtype"] == "float32"
    assert result["tokens_per_second"] == {context: {"monosem": 256, "plain": 512} for context in ("16", "32")}
    assert result["ratio"] == {context: {"plain": 0.5} for context in ("16", "32")}
    assert result["machine"]["cpus"] == os.cpu_count() and result["machine"]["versions"]["torch"] == torch.__version__


def test_training_beside_a_peer(tiny: Tiny, monosem: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock by which our step of 64 rows takes 0.25 s, a documented peer's 1 s, a matched one's 0.5 s."""
    pytest.importorskip("dictionary_learning")
    clocked(monkeypatch, train, 0.25, 1.0, 0.5, 0.5, 0.5)
    sizes = ("--n-latents=64", "--k=4", "--batch=64", "--steps=12", "--warmup=2", "--held-out=512", "--reuse=2")
    options = ("--against=dictionary-learning", "--site=resid_post.1", "--json")
    result = monosem("bench", "train", *tiny.source, *sizes, *options).result
    assert result["shape"] == {"d_in": 32, "n_latents": 64, "k": 4, "batch": 64} and result["rows_trained"] == 768
    peer = "dictionary-learning"
    assert result["tokens_per_second"] == {"monosem": 256, peer: 64, f"{peer} matched": 128}
    assert result["ratio"] == {peer: 4, f"{peer} matched": 2} and set(result["fvu"]) == {"monosem", peer}
    found = result["fvu"][peer]
    assert all(0.2 < fvu < 0.9 for fvu in (result["fvu"]["monosem"], found["documented"], found["matched"]))
    assert found["lr"] in [pytest.approx(rate, rel=1e-5) for rate in matched_rates(64, 64, 768)]


def test_the_buffer_mixes(monosem: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock by which a batch of the small buffer takes 0.1 s, one of the large 0.4 s, a step 2 s."""
    clocked(monkeypatch, buffer, 0.1, 0.4, 2.0)
    sizes = ("--rows", "512", "2048", "--d-in=16", "--n-latents=64", "--batch=64", "--rounds=3")
    result = monosem("bench", "buffer", *sizes, "--json").result
    assert result["seconds_per_batch"] == {"512": 0.1, "2048": 0.4} and result["step_seconds"] == 2
    assert result["extra_share"] == pytest.approx(0.15) and set(result["mixing"]) == {"512", "2048"}
    for mixing in result["mixing"].values():  # rows in the order they came in would all be of one document
        assert 0.1 < mixing["expected"] < 0.5 and mixing["observed"] == pytest.approx(mixing["expected"], abs=0.1)


def test_every_kernel_is_checked_while_it_is_timed(monosem: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock by which ours takes half a second and everything else three."""

    def told(contestants: Any, *args: Any) -> dict[str, float]:
        interleaved(contestants, *args)
        return {name: 0.5 if name == "monosem" else 3.0 for name in contestants}

    monkeypatch.setattr(kernels, "interleaved", told)
    result = monosem("bench", "kernels", "--shape", "16,96,3,40 8,64,64,5", "--rounds=2", "--json").result
    assert set(result["shapes"]) == {"16,96,3,40", "8,64,64,5"}
    for shape, found in result["shapes"].items():
        bed = Bed(Shape(*map(int, shape.split(","))))
        assert set(found["kernels"]) == set(CASES)
        for name, one in found["kernels"].items():
            case = CASES[name](bed)
            assert one["error"] <= min(1e-3, case.tolerance) and one["ratio"] == dict.fromkeys(case.others, 6)
            assert one["bytes_per_second"] == 2 * case.bytes > 0 and one["flops_per_second"] == 2 * case.flops
            selects = {"torch.topk"} if name in ("topk", "encode_topk") else set()
            assert {"reference"} | selects <= set(one["ratio"]) and ("torch.topk" in one["ratio"]) == bool(selects)
        assert min(found["ceilings"].values()) > 0


def test_a_wrong_kernel_has_no_timing() -> None:
    wrong = Case("half", lambda: torch.ones(3), lambda x: x / 2, {"reference": lambda x: x}, 1, 1, relative, 0.4)
    with pytest.raises(ArithmeticError, match=r"half is off by 0\.5, more than 0\.4"):
        BenchKernels(rounds=1, warmup=0)._timed(wrong)
    assert BenchKernels(rounds=1, warmup=0)._timed(replace(wrong, tolerance=0.6))["error"] == 0.5


def test_selections_that_differ_are_told_apart() -> None:
    one = Codes(torch.tensor([[1.0, 2.0]]), torch.tensor([[0, 1]]))
    assert values_error(one, Codes(torch.tensor([[2.0, 1.0]]), torch.tensor([[1, 0]]))) == 0
    assert values_error(one, Codes(torch.tensor([[2.0, 0.5]]), torch.tensor([[1, 0]]))) > 0.1
    assert values_error(one, Codes(torch.tensor([[2.0]]), torch.tensor([[1]]))) == float("inf")


PLANTED = Shape(24, 128, 4, 64)


@pytest.mark.parametrize("peer", ["sparsify", "dense-compiled", "dictionary-learning", "sae-lens"])
def test_every_peer_learns_planted_rows(peer: str) -> None:
    if (module := {"dense-compiled": "torch"}.get(peer, peer.replace("-", "_"))) != "torch":
        pytest.importorskip(module)
    supply = Planted(PLANTED, features=16)
    held = supply.rows(256)
    racer = PEERS[peer](supply.rows(), Asked(PLANTED.n, PLANTED.k, 60, lr=0.01))

    def error() -> float:
        return float((racer.reconstruct(held) - held).square().sum() / (held - held.mean(0)).square().sum())

    racer.step(supply.rows())
    before = error()
    for _ in range(40):
        racer.step(supply.rows())
    assert error() < min(0.8 * before, 0.7)


def test_the_step_beside_a_peer_and_its_memory(monosem: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock by which our step of 64 rows takes 0.25 s and a peer's a second."""
    clocked(monkeypatch, step, 0.25, 1.0)
    pytest.importorskip("dictionary_learning")
    options = ("--shape=24,128,4,64", "--against=dictionary-learning", "--steps=2", "--warmup=1")
    result = monosem("bench", "step", *options, "--json").result["shapes"]["24,128,4,64"]
    assert result["tokens_per_second"] == {"monosem": 256, "dictionary-learning": 64}
    assert result["step_seconds"] == {"monosem": 0.25, "dictionary-learning": 1}
    assert result["ratio"] == {"dictionary-learning": 4} and result["side_by_side"]
    assert 0 <= result["extra_memory"]["bytes"] < 32 * 2**20  # what the process holds besides is ten times that


def test_the_memory_of_a_step_is_at_most_about_a_row_chunk() -> None:
    shape = Shape(32, 8192, 8, 2560)
    assert chunk_rows(shape.n) == shape.batch
    found = extra_memory(shape)
    assert found["row_chunks"] == pytest.approx(found["bytes"] / (80 * 2**20)) and 0.02 < found["row_chunks"] < 1.5


def test_tables_are_appended(monosem: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "BENCHMARKS.md"
    file.write_text("# Measurements\n")
    monkeypatch.setattr(tables, "FILE", file)
    monosem("bench", "kernels", "--shape=16,96,3,40", "--rounds=1", "--only=topk", "--write", "--json")
    text = file.read_text()
    assert text.startswith("# Measurements\n\n## Kernels\n") and f"torch {torch.__version__}" in text
    assert "`monosem bench kernels --shape '16,96,3,40' --rounds 1 --only topk`" in text
    assert text.count("\n| 16,96,3,40 |") == 2


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("kernels", "--only=topc"), ("unknown kernel 'topc'", "did you mean 'topk'?")),
        (("kernels", "--shape=4,8,2"), ("d,n,k,batch such as 576,9216,32,2048", "got '4,8,2'")),
        (("step", "--shape=4,8,9,2"), ("k=9", "n=8")),
        (("step", "--steps=0"), ("at least one timed step", "steps=0")),
        (("step", "--against=sparsfy"), ("unknown peer 'sparsfy'", "did you mean 'sparsify'?")),
        (("train", "--against=sae-lenss"), ("unknown peer 'sae-lenss'", "did you mean 'sae-lens'?")),
        (("harvest", "--against=plane"), ("unknown peer 'plane'", "did you mean 'plain'?")),
        (("train", "--against="), ("--against names no peer", "dictionary-learning")),
        (("train", "--warmup=60"), ("warmup=60 leaves no step of 60", "give more steps")),
    ],
)
def test_bad_options(monosem: Command, options: tuple[str, ...], parts: tuple[str, ...]) -> None:
    ended = monosem("bench", *options)
    assert (ended.status, ended.out) == (2, "") and ended.err.startswith("monosem: ") and ended.err.count("\n") == 1
    assert all(part in ended.err for part in parts)


@pytest.mark.parametrize(("slope", "floor"), [(-0.4, 0.0), (-1.0, 0.0), (-2.5, 0.0), (-1.0, 30.0)])
def test_a_coefficient_is_found_wherever_the_search_starts(slope: float, floor: float) -> None:
    """L0 as a power of the coefficient, and one that only nears what is asked for."""
    for start in (1e-3, 1.0, 1e3):
        made = reach_l0(lambda c: (floor + 200 * c**slope, c), 32, start, trials=12, tolerance=0.05)
        assert made[-1].l0 == pytest.approx(32, rel=0.05) and made[-1].result == made[-1].coefficient
        assert all(abs(trial.l0 / 32 - 1) > 0.05 for trial in made[:-1])
    stuck = reach_l0(lambda c: (500.0 + 1 / c, c), 32, 1.0, trials=4, tolerance=0.05)
    assert len(stuck) == 4 and stuck[-1].l0 == min(trial.l0 for trial in stuck)
