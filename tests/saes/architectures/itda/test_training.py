"""Building an ITDA: what enters, when it ends, that it goes on to the byte, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from itda_data import SITE, batches, grown, mixtures
from monosem.kernels.dispatch import using
from monosem.kernels.growth import lost
from monosem.lab.errors import InputError
from monosem.lab.runs.loop import train
from monosem.lab.runs.run import Run
from monosem.lab.streams.activation_stream import ActivationStream, Batch
from monosem.saes.files import load
from monosem.saes.registry import build_trainable
from monosem.saes.training.itda.trainer import GrowthConfig, ITDATrainer, build_itda
from monosem.saes.training.trainer import TrainConfig, Trainer
from toys import WIDTHS, A, B, TinyCorpus, TinyModel, Tokens, tiny_stream

SMALL = GrowthConfig(max_atoms=60, rows=1500, k=4, tau=0.02)


class Padded(TinyCorpus):
    """The same documents with `extra` masked tokens of any kind behind each."""

    extra = 6

    def iterate(self, state: dict[str, int] | None = None) -> Iterator[tuple[Tokens, dict[str, int]]]:
        for batch, after in super().iterate(state):
            room = torch.full((len(batch.tokens), self.extra), 7)
            masked = torch.zeros_like(room, dtype=torch.bool)
            added = (room, masked, masked, room - 8, room - 8)
            yield Tokens(*(torch.cat(pair, 1) for pair in zip(batch, added, strict=True))), after


def kept(stream: ActivationStream) -> tuple[bytes, list[list[int]]]:
    itda = build_itda(stream, A, SMALL)
    return itda.W_dec.numpy().tobytes(), itda.identities.tolist()


def test_padding_and_special_tokens_take_no_part() -> None:
    plain, padded = (tiny_stream(model=TinyModel(), corpus=corpus) for corpus in (TinyCorpus(), Padded()))
    atoms, places = kept(plain)
    assert (atoms, places) == kept(padded)
    assert len(places) > 30 and min(min(place) for place in places) >= 0
    assert all(offset > 0 for _, offset in places)  # position 0 is special in this corpus


def test_no_row_that_was_seen_is_lost_without_a_reason() -> None:
    x, config = mixtures(1200, 24), GrowthConfig(max_atoms=1000, k=5, tau=0.03)
    itda = grown(x, config, 200).folded()
    assert itda.n_latents > 50 and itda.warmup_atoms == 24
    first = x[itda.identities[:, 1]]
    torch.testing.assert_close(itda.W_dec, first / first.norm(dim=1, keepdim=True))
    assert itda.arrivals.tolist() == (itda.identities[:, 1] // 200 * 200).tolist()
    lost_now = lost(x, itda.reconstruct(x), cosine=True) > 0.03
    assert float(lost_now.float().mean()) < 0.05  # an atom that came later may lead a pursuit astray


def test_copies_in_one_batch_enter_once_unless_asked_for() -> None:
    fresh = mixtures(40, 24, seed=1)
    x = torch.cat([mixtures(100, 24, seed=2), fresh, fresh * 2, fresh + 1e-4])
    base = {"k": 5, "tau": 0.01, "max_atoms": 1000, "warmup": 10}
    once = grown(x, GrowthConfig(**base), len(x))
    every = grown(x, GrowthConfig(**base, dedupe="none"), len(x))
    assert once.atoms.n < every.atoms.n
    copies = [place % 40 for place in (once.identities[10:, 1] - 100).tolist() if place >= 0]
    assert copies and len(copies) == len(set(copies))
    repeated = [place % 40 for place in (every.identities[10:, 1] - 100).tolist() if place >= 0]
    assert len(repeated) == 3 * len(set(repeated))


def test_warm_up_takes_the_most_frequent_rows_first() -> None:
    rows = mixtures(6, 8)
    x = torch.cat([rows[[0, 1, 2, 1, 3, 3, 3, 4, 5]], torch.zeros(2, 8)])
    trainer = grown(x, GrowthConfig(warmup=4, max_atoms=4), len(x))
    assert trainer.identities[:, 1].tolist() == [4, 1, 0, 2] and trainer.warmup_atoms == 4


def test_where_room_is_short_the_rows_that_are_lost_most_enter() -> None:
    """Rows at 10, 80 and 45 degrees from the one atom, each in a direction of its own; there is room for one or two."""
    angles, axes = torch.tensor([10.0, 80.0, 45.0]).deg2rad()[:, None], torch.eye(4)
    x = torch.cat([axes[:1], axes[:1], angles.cos() * axes[0] + angles.sin() * axes[1:]])
    for room, entered in ((1, [0, 3]), (2, [0, 3, 4])):
        trainer = grown(x, GrowthConfig(warmup=1, max_atoms=1 + room, k=1, tau=0.01), len(x))
        assert trainer.identities[:, 1].tolist() == entered


@pytest.mark.parametrize(
    ("fields", "reason"),
    (({"max_atoms": 40}, "max_atoms"), ({"rows": 500}, "rows"), ({"saturation": 0.5, "patience": 200}, "saturation")),
)
def test_each_rule_ends_it(fields: dict[str, Any], reason: str) -> None:
    trainer = grown(mixtures(2000, 24), GrowthConfig(**{"k": 5, "tau": 0.03, "max_atoms": 900, **fields}), 100)
    assert trainer.done and trainer.stopped == reason and trainer.rows < 2000
    assert trainer.atoms.n <= fields.get("max_atoms", 900) and trainer.rows <= fields.get("rows", 2000)


def test_a_run_that_stops_ends_in_the_same_bytes(tmp_path: Path) -> None:
    def run(folder: Path, steps: int | None = None) -> Run:
        stream = tiny_stream()
        sae = build_trainable("topk", d_in=WIDTHS[B], n_latents=30, k=3)
        consumers = [
            Trainer.on(stream, A, "itda", training=SMALL, name="itda"),
            Trainer(sae, B, TrainConfig(rows=1500), name="sae"),
        ]
        made = Run.create(folder, {}, stream.fingerprint(), resume=True)
        return train(stream, consumers, made, steps=steps, log_every=3, progress=False)

    whole = run(tmp_path / "whole")
    for steps in (4, 11, None):
        run(tmp_path / "stopped", steps)
    one, other = (load(folder / "dictionaries" / "itda") for folder in (whole.folder, tmp_path / "stopped"))
    assert one.n_latents > 20
    for name in ("dictionaries/itda/dictionary.safetensors", "dictionaries/itda/dictionary.json"):
        assert (whole.folder / name).read_bytes() == (tmp_path / "stopped" / name).read_bytes()
    assert other.tensors()["identities"].equal(one.tensors()["identities"])
    alone = build_itda(tiny_stream(), A, SMALL)
    assert alone.W_dec.equal(one.W_dec)


def test_state_restores_inner_products_to_the_bit() -> None:
    x, config = mixtures(900, 24), GrowthConfig(max_atoms=800, k=5, tau=0.02)
    whole, first = ITDATrainer(24, SITE, config), ITDATrainer(24, SITE, config)
    for number, batch in enumerate(batches(x, 100)):
        whole.step(batch)
        first.step(batch)
        if number == 4:
            again = ITDATrainer(24, SITE, config)
            again.load_state_dict(first.state_dict())
            assert again.atoms.gram is not None and first.atoms.gram is not None
            assert again.atoms.gram.equal(first.atoms.gram)
            first = again
    assert first.atoms.rows.equal(whole.atoms.rows) and first.metrics() == whole.metrics()


def test_the_published_criterion_is_a_cosine() -> None:
    x = mixtures(800, 24)
    cosine = grown(x, GrowthConfig(max_atoms=700, k=5, tau=0.03))
    paper = grown(x, GrowthConfig(max_atoms=700, k=5, criterion="paper_code", paper_tau=0.03 * 2 / 24))
    assert cosine.identities.equal(paper.identities)
    squared = grown(x, GrowthConfig(max_atoms=700, k=5, criterion="fvu", tau=0.03 * (2 - 0.03)))
    # |x - x_hat| is at least the sine of the angle: nothing more is lost by the cosine
    assert squared.atoms.n >= cosine.atoms.n


def test_backends_agree() -> None:
    x, config = mixtures(400, 16), GrowthConfig(max_atoms=300, k=4, tau=0.03, encoder="nonnegative")
    compiled = grown(x, config, 100)
    with using("reference"):
        assert grown(x, config, 100).identities.equal(compiled.identities)


@pytest.mark.parametrize(
    ("fields", "words"),
    (
        ({"tau": 1.5}, "tau is a share"),
        ({"criterion": "fuv"}, "unknown criterion 'fuv': did you mean 'fvu'"),
        ({"criterion": "paper_code"}, "give both or neither"),
        ({"paper_tau": 0.01}, "give both or neither"),
        ({"encoder": "lasso"}, "unknown encoder 'lasso'"),
        ({"max_atoms": 0}, "max_atoms must be at least 1"),
        ({"max_atoms": 70_000}, "70,000"),
        ({"warmup": -1}, "warmup must be at least 0"),
        ({"tolerance": 2.0}, "tolerance"),
    ),
)
def test_bad_options_are_named(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        GrowthConfig(**fields)


def test_a_threshold_that_cannot_fire_is_refused() -> None:
    config = GrowthConfig(criterion="paper_code", paper_tau=0.01)
    ITDATrainer(150, SITE, config)
    with pytest.raises(InputError, match=r"paper_tau=0.01 can never be exceeded at width 5120.*4/d = 0.000781"):
        ITDATrainer(5120, SITE, config)


def test_what_cannot_be_built_is_told() -> None:
    with pytest.raises(InputError, match=r"resid_post\.9 is not streamed"):
        build_itda(tiny_stream(), "resid_post.9", SMALL)
    trainer = ITDATrainer(8, SITE, SMALL)
    trainer.step(Batch({SITE: torch.zeros(5, 8)}, torch.zeros(5, 2, dtype=torch.int64)))
    with pytest.raises(InputError, match="has no atom"):
        trainer.folded()
    with pytest.raises(InputError, match="of width 24"):
        trainer.load_state_dict(grown(mixtures(200, 24), SMALL).state_dict())
