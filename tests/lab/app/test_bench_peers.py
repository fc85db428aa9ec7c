"""Peers in benchmarks: every contestant gets the same rows, is scored alike, and a stopped comparison continues."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from monosem.lab.app.bench import architectures, step, train
from monosem.lab.app.bench.cells import Cells
from monosem.lab.app.bench.contestant import Asked, Ours, Start, matched_rates
from monosem.lab.app.bench.peers import LIBRARIES
from monosem.lab.app.bench.score import fvu, score
from monosem.lab.app.bench.shapes import Planted, Shape
from monosem.lab.errors import InputError
from monosem.saes.registry import build
from monosem.saes.training.config import TrainConfig, default_lr
from tiny_commands import Ended, Tiny

Command = Callable[..., Ended]
SHAPE = Shape(16, 64, 4, 64)
ALL = [(peer, name) for peer, library in LIBRARIES.items() for name in library.KINDS]


def peer_of(name: str) -> Any:
    """The class of a peer that is installed."""
    if find_spec(name.replace("-", "_")) is None:  # an import here would come before its Triton decoder is turned off
        pytest.skip(f"{name} is not installed")
    return LIBRARIES[name]


@pytest.mark.parametrize(("peer", "architecture"), ALL)
@pytest.mark.parametrize("matched", [False, True])
def test_every_architecture_of_every_peer_learns_and_is_read_as_it_infers(
    peer: str, architecture: str, matched: bool
) -> None:
    supply = Planted(SHAPE, features=12)
    batches, held = [supply.rows() for _ in range(60)], supply.rows(512)
    asked = Asked(SHAPE.n, SHAPE.k, 60, architecture, matched=matched, lr=0.01, coefficient=0.1)
    racer = peer_of(peer)(batches[0], asked)
    racer.step(batches[0])
    before = fvu(racer.reconstruct, held)
    for batch in batches[1:]:
        racer.step(batch)
    after = fvu(racer.reconstruct, held)
    assert after < before
    found = score(racer.dictionary(), held)
    if architecture not in ("batchtopk", "matryoshka"):  # these infer with a threshold, which training does not use
        assert found.fvu == pytest.approx(after, rel=1e-3, abs=1e-4)
    assert found.fvu < 1 and found.l0 > 0


@pytest.mark.parametrize("peer", LIBRARIES)
def test_a_matched_peer_has_our_schedule_scale_and_first_b_dec(peer: str) -> None:
    supply = Planted(SHAPE, features=12)
    rows, asked = supply.rows(), Asked(SHAPE.n, SHAPE.k, 10, matched=True, lr=0.01)
    racer, ours = peer_of(peer)(rows, asked), Ours(rows, asked)
    optimizer = getattr(racer, "optimizer", None) or racer.trainer.optimizer
    start, config, rates, expected = Start.of(rows), TrainConfig(rows=10 * SHAPE.batch, lr=0.01), [], []
    original = optimizer.step

    def recorded(*args: Any, **kwargs: Any) -> Any:
        rates.append(optimizer.param_groups[0]["lr"])
        return original(*args, **kwargs)

    optimizer.step = recorded
    for number in range(10):
        expected.append(config.lr_after(number * SHAPE.batch, SHAPE.n, SHAPE.batch))
        racer.step(rows)
        ours.step(rows)
        if number == 0:  # one step of Adam at the lowest rate moves no entry by more than that rate
            holder = {"sparsify": "coder", "sae-lens": "trainer.sae", "dictionary-learning": "trainer.ae"}[peer]
            b_dec = attrgetter(f"{holder}.b_dec")(racer)
            assert torch.allclose(b_dec, start.b_dec, atol=2 * expected[0])
    assert rates == pytest.approx(expected) and rates[-1] < rates[5]
    assert ours.trainer.units is not None and ours.trainer.units.scale == pytest.approx(start.scale)
    factor = {"sae-lens": lambda: racer.trainer.activation_scaler.scaling_factor, "sparsify": lambda: racer.scale}
    assert factor.get(peer, lambda: racer.factor)() == pytest.approx(start.scale)


def test_documented_sae_lens_is_constant_from_zero() -> None:
    rows = Planted(SHAPE, features=12).rows()
    racer = peer_of("sae-lens")(rows, Asked(SHAPE.n, SHAPE.k, 10))
    assert not racer.trainer.sae.b_dec.any()
    for _ in range(10):
        racer.step(rows)
        assert racer.trainer.optimizer.param_groups[0]["lr"] == 3e-4


def test_rates_are_tried_on_until_neither_end_is_best(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = default_lr(2048, 512, 102_400)
    assert matched_rates(2048, 512, 102_400) == pytest.approx((rule / 2, rule, 2 * rule))
    bench = architectures.BenchArchitectures(seeds=(0,))
    match = architectures.Match(Asked(2048, 32, 200), 512, None, Cells(None, {}), bench)  # type: ignore[arg-type]
    for best, tried in (
        (1, (0.5, 1, 2)),
        (0.5, (0.25, 0.5, 1, 2)),
        (4, (0.5, 1, 2, 4, 8)),
        (99, (0.5, 1, 2, 4, 8, 16)),
    ):

        def theirs(*found: Any, best: float = best) -> dict[str, Any]:
            return {"validation": {"fvu": abs(math.log(found[3] / rule / best))}, "coefficient": 1.0}

        monkeypatch.setattr(architectures.Match, "_theirs", theirs)
        found = match._rates_tried("sae-lens", ())
        assert sorted(rate / rule for rate in found if rate) == pytest.approx(tried)
    assert list(match._rates_tried("sae-lens", (0.1, 0.2))) == [0.1, 0.2]


def test_fvu_is_about_the_mean() -> None:
    held = torch.randn(300, 8, generator=torch.Generator().manual_seed(0)) + 50
    assert fvu(lambda x: held.mean(0).expand_as(x), held) == pytest.approx(1)
    dictionary = build("topk", d_in=8, n_latents=16, k=2)
    dictionary.b_dec.copy_(held.mean(0))
    found = score(dictionary, held)
    assert found.fvu == pytest.approx(1) and found.unfired == 1 and found.l0 == 0


class Recorder:
    """A contestant that learns nothing and remembers the rows it was given."""

    made: dict[str, Recorder]

    def __init__(self, sample: torch.Tensor, asked: Asked, name: str) -> None:
        self.batches: list[torch.Tensor] = []
        self.made[f"{name}{asked.matched}{asked.lr}"] = self

    def step(self, x: torch.Tensor) -> None:
        """Remember."""
        self.batches.append(x)

    def reconstruct(self, x: torch.Tensor) -> torch.Tensor:
        """Nothing but the mean."""
        return x.mean(0).expand_as(x)


def recorders(monkeypatch: pytest.MonkeyPatch, module: Any) -> dict[str, Recorder]:
    """Put recorders in the place of all contestants of a benchmark."""
    made: dict[str, Recorder] = {}
    monkeypatch.setattr(Recorder, "made", made, raising=False)
    monkeypatch.setattr(module, "Ours", lambda sample, asked: Recorder(sample, asked, "monosem"))
    fakes = {name: (lambda sample, asked, name=name: Recorder(sample, asked, name)) for name in LIBRARIES}
    monkeypatch.setattr(module, "PEERS", fakes)
    return made


def test_every_contestant_of_a_step_gets_the_same_lead_in(monkeypatch: pytest.MonkeyPatch) -> None:
    made = recorders(monkeypatch, step)
    monkeypatch.setattr(step, "extra_memory", lambda shape: {"bytes": 0, "row_chunks": 0})
    step.BenchStep(shape="16,64,4,8", against="sae-lens,sparsify", steps=2, warmup=1).race()
    assert len(made) == 3
    for one in made.values():
        assert len(one.batches) == 6  # two for each of three turns
        assert all(torch.equal(a, b) for a, b in zip(one.batches, made["monosemFalseNone"].batches, strict=True))


def test_every_contestant_of_a_race_gets_the_same_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    made = recorders(monkeypatch, train)
    rows, held = torch.randn(64, 4), torch.randn(300, 4) + 9
    monkeypatch.setattr(train, "split_rows", lambda *_: (rows, held))
    bench = train.BenchTrain(against="sae-lens", n_latents=8, k=2, batch=16, steps=6, warmup=2, held_out=300)
    result = bench.race()
    assert len(made) == 5 and f"sae-lensTrue{default_lr(8, 16, 96)}" in made
    for one in made.values():
        assert len(one.batches) == 6
        assert all(a is b for a, b in zip(one.batches, made["monosemFalseNone"].batches, strict=True))
    assert result["fvu"]["monosem"] == pytest.approx(result["fvu"]["sae-lens"]["matched"]) == pytest.approx(1)


def test_the_rate_of_a_racing_peer_is_chosen_on_other_rows_than_those_reported() -> None:
    """Each of two rates is exact on one half of the held-out rows, and no better than the mean on the other."""
    g = torch.Generator().manual_seed(0)
    validation, test = torch.randn(64, 4, generator=g) + 9, torch.randn(64, 4, generator=g) - 9

    def exact_on(sign: float) -> Any:
        mean = (validation if sign < 0 else test).mean(0)
        return SimpleNamespace(reconstruct=lambda x: x if float(x.mean()) * sign > 0 else mean.expand_as(x))

    racers = {name: exact_on(1.0) for name in ("monosem", "sae-lens", "sae-lens matched 0.1")}
    best, found = train._quality(racers | {"sae-lens matched 0.2": exact_on(-1.0)}, ["sae-lens"], validation, test)
    assert best["sae-lens matched"] == "sae-lens matched 0.1" and found["sae-lens"]["lr"] == 0.1
    assert found["sae-lens"]["matched"] == pytest.approx(1) == found["monosem"]


SIZES = ("--n-latents=64", "--k=6", "--batch=64", "--rows=1024", "--held-out=512", "--site=resid_post.1")


def test_both_columns_over_seeds_at_the_l0_of_the_peer(tiny: Tiny, monosem: Command, tmp_path: Path) -> None:
    pytest.importorskip("sae_lens")
    chosen = (
        "--peers=sae-lens",
        "--architectures=topk,relu",
        "--seeds",
        "0",
        "1",
        "--trials=4",
        "--matched-lr",
        "0.01",
    )
    options = ("bench", "architectures", *tiny.source, *SIZES, *chosen, f"--keep={tmp_path / 'out'}")
    topk, relu = monosem(*options, "--json").result["lines"]
    for line in (topk, relu):
        for column in ("documented", "matched"):
            found = line[column]
            first, second = found["peer"]["by_seed"]
            assert len(found["peer"]["by_seed"]) == len(found["monosem"]["by_seed"]) == 2
            assert found["ratio"] == pytest.approx(found["monosem"]["fvu"] / found["peer"]["fvu"])
            assert found["peer"]["spread"] == pytest.approx(abs(first - second))
    assert topk["documented"]["lr"] is None and topk["matched"]["lr"] == 0.01
    assert topk["matched"]["peer"]["l0"] == pytest.approx(6) and topk["matched"]["monosem"]["k"] == [[6], [6]]
    assert topk["matched"]["peer"]["fvu"] < topk["documented"]["peer"]["fvu"]
    offs = [abs(l0 / 6 - 1) for _, l0 in relu["matched"]["trials"][0]]
    assert offs[-1] == min(offs)
    cells = tmp_path / "out" / "cells.jsonl"
    before = cells.read_text()
    again = monosem(*options)  # nothing is trained again, and the table has both columns
    assert cells.read_text() == before and again.out.count(" matched ") == again.out.count(" documented ") == 2
    cells.write_text(before[: before.rindex("\n", 0, -1) + 20])  # a kill cut the last line
    assert monosem(*options).status == 0 and sorted(cells.read_text().splitlines()) == sorted(before.splitlines())
    ended = monosem(*options, "--rows=512")
    assert ended.status == 2 and "has rows = 1024 and this one 512" in ended.err


def test_rates_are_chosen_on_other_rows_than_those_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rate that is best on validation rows only is the one that counts, whatever it gives on the test rows."""

    def peer(sample: torch.Tensor, asked: Asked) -> Any:
        class Fixed(Recorder):
            """Leaves its learning rate in place of a dictionary."""

            def dictionary(self) -> Any:
                """The learning rate."""
                return asked.lr

        return Fixed(sample, asked, "peer")

    monkeypatch.setattr(Recorder, "made", {}, raising=False)
    monkeypatch.setitem(LIBRARIES, "sae-lens", peer)
    rows = architectures.Rows(torch.randn(32, 4), torch.zeros(4, 4), torch.ones(4, 4))
    scores = {(0.1, 0.0): 0.2, (0.1, 1.0): 0.9, (0.2, 0.0): 0.8, (0.2, 1.0): 0.1}
    fvu_of = lambda lr, held: architectures.Score(2.0, scores[lr, float(held[0, 0])], 0)  # noqa: E731
    monkeypatch.setattr(architectures, "score", fvu_of)
    bench = architectures.BenchArchitectures(
        n_latents=(8,), k=2, batch=(16,), rows=32, seeds=(0,), columns="matched", matched_lr=(0.1, 0.2)
    )
    match = architectures.Match(Asked(8, 2, 2), 16, rows, Cells(None, {}), bench)
    ours = {"validation": {"l0": 2.0}, "test": {"l0": 2.0, "fvu": 0.3, "unfired": 0}}
    monkeypatch.setattr(architectures.Match, "_our_training", lambda *_: ours)
    found = match.line("sae-lens")["matched"]
    assert found["lr"] == 0.1 and found["peer"]["fvu"] == 0.9 and found["monosem"]["fvu"] == 0.3


def test_a_damaged_cell_is_named(tmp_path: Path) -> None:
    cells = Cells(tmp_path / "a", {"rows": 1})
    assert cells.get({"seed": 0}, lambda: {"fvu": 1}) == {"fvu": 1}
    cells.get({"seed": 1}, lambda: {"fvu": 2})
    assert Cells(tmp_path / "a", {"rows": 1}).get({"seed": 1}, lambda: pytest.fail("made again")) == {"fvu": 2}
    file = tmp_path / "a" / "cells.jsonl"
    file.write_text("{}\n" + json.dumps({"key": {}, "value": 1}) + "\n")
    with pytest.raises(InputError, match="line 1, is not a finished cell"):
        Cells(tmp_path / "a", {"rows": 1})


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("--tolerance=2", "tolerance must lie"),
        ("--trials=0", "trials must be at least 1"),
        ("--rows=9", "less than one batch"),
        ("--matched-lr=7", "matched_lr must lie"),
        ("--peers=sae-lenss", "did you mean 'sae-lens'?"),
        ("--columns=matches", "did you mean 'matched'?"),
        ("--seeds=-1", "seeds must be one or more numbers from 0"),
    ],
)
def test_bad_options_of_the_comparison(monosem: Command, option: str, told: str) -> None:
    ended = monosem("bench", "architectures", *SIZES, option)
    assert ended.status == 2 and told in ended.err
