"""`monosem bench`: every contestant gets the same input, and the result says what was measured and where."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from monosem.lab.app.timing import interleaved
from tiny_commands import Ended, Tiny

Command = Callable[..., Ended]


def test_turns_alternate_and_the_warm_up_is_not_counted() -> None:
    calls: list[tuple[str, int]] = []

    def slow(number: int) -> None:
        calls.append(("slow", number))
        time.sleep(0.3 if number < 1 else 0.02)

    seconds = interleaved({"slow": slow, "fast": lambda number: calls.append(("fast", number))}, 3, 1)
    assert calls == [(name, number) for number in range(4) for name in ("slow", "fast")]
    assert 0.02 <= seconds["slow"] < 0.3 and seconds["fast"] < seconds["slow"]


def test_harvesting_beside_a_plain_forward(tiny: Tiny, monosem: Command) -> None:
    sizes = ("--contexts", "16", "32", "--tokens=128", "--rounds=2", "--against=plain", "--site=resid_post.1")
    result = monosem("bench", "harvest", *tiny.source, *sizes, "--json").result
    assert result["site"] == "resid_post.1" and result["dtype"] == "float32"
    for context in ("16", "32"):
        rates = result["tokens_per_second"][context]
        assert result["ratio"][context]["plain"] == pytest.approx(rates["monosem"] / rates["plain"])
    assert result["machine"]["cpus"] >= 1 and "torch" in result["machine"]["versions"]


def test_training_beside_a_peer(tiny: Tiny, monosem: Command) -> None:
    pytest.importorskip("dictionary_learning")
    sizes = ("--n-latents=64", "--k=4", "--batch=64", "--steps=12", "--warmup=2", "--held-out=512", "--reuse=2")
    options = ("--against=dictionary-learning", "--site=resid_post.1", "--json")
    result = monosem("bench", "train", *tiny.source, *sizes, *options).result
    assert result["shape"] == {"d_in": 32, "n_latents": 64, "k": 4, "batch": 64} and result["rows_trained"] == 768
    assert set(result["fvu"]) == set(result["tokens_per_second"]) == {"monosem", "dictionary-learning"}
    assert all(0 < fvu < 1.5 for fvu in result["fvu"].values())


def test_the_buffer_mixes(monosem: Command) -> None:
    sizes = ("--rows", "512", "2048", "--d-in=16", "--n-latents=64", "--batch=64", "--rounds=3")
    result = monosem("bench", "buffer", *sizes, "--json").result
    assert set(result["seconds_per_batch"]) == set(result["mixing"]) == {"512", "2048"}
    cost = result["seconds_per_batch"]["2048"] - result["seconds_per_batch"]["512"]
    assert result["extra_share"] == pytest.approx(cost / result["step_seconds"])


@pytest.mark.parametrize(
    ("options", "parts"),
    [
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
