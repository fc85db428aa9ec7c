from __future__ import annotations

import copy
import math
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monosem.lab.errors import InputError
from monosem.lab.models.sites import Site
from monosem.lab.streams.buffer import ShuffleBuffer

SITE, OTHER = Site.parse("resid_post.0"), Site.parse("resid_post.1")


def rows(start: int, stop: int, per_document: int = 10) -> tuple[dict, torch.Tensor]:
    """Row i holds the number i at one site and -i at the other, and comes from document i // per_document."""
    i = torch.arange(start, stop)
    values = i.float()[:, None].expand(-1, 3)
    return {SITE: values, OTHER: -values[:, :2]}, torch.stack([i // per_document, i % per_document], dim=1)


def serve(buffer: ShuffleBuffer, total: int, *, served: int = 0, arrived: int = 0, chunk: int = 37) -> list:
    """Feed rows `arrived:total` in chunks as room allows and take every batch."""
    batches = []
    while True:
        while buffer.room and arrived < total:
            arrived += buffer.put(*rows(arrived, min(arrived + chunk, total)))
        if arrived == total:
            buffer.finish()
        if buffer.empty:
            return batches
        batches.append((*buffer.take(), arrived))


def values(batches: list) -> torch.Tensor:
    return torch.cat([acts[SITE][:, 0] for acts, *_ in batches]).long()


def make(size: int = 200, batch: int = 16, **options) -> ShuffleBuffer:
    return ShuffleBuffer(size, {SITE: 3, OTHER: 2}, batch, **options)


@settings(max_examples=40, deadline=None)
@given(
    total=st.integers(1, 900),
    size=st.integers(8, 200),
    batch=st.integers(1, 40),
    chunk=st.integers(1, 300),
    seed=st.integers(0, 3),
)
def test_every_row_is_served_exactly_once(total: int, size: int, batch: int, chunk: int, seed: int) -> None:
    if size < 2 * batch:
        size = 2 * batch
    batches = serve(make(size, batch, seed=seed), total, chunk=chunk)
    assert values(batches).sort().values.tolist() == list(range(total))
    assert all(len(origin) == batch for _, origin, _ in batches[:-1])


def test_sites_and_origins_stay_aligned() -> None:
    for acts, origin, _ in serve(make(), 1000):
        i = acts[SITE][:, 0]
        assert torch.equal(acts[SITE], i[:, None].expand(-1, 3))
        assert torch.equal(acts[OTHER], -i[:, None].expand(-1, 2))
        assert torch.equal(origin[:, 0] * 10 + origin[:, 1], i.long())


def test_reuse_serves_each_row_so_many_times_on_average() -> None:
    for reuse in (2, 3):
        batches = serve(make(reuse=reuse), 3000)
        counts = values(batches).bincount(minlength=3000).float()
        assert counts.min() >= 1
        assert counts.mean() == pytest.approx(reuse, rel=0.02)


def test_reuse_asks_for_fewer_arrivals() -> None:
    """In steady state one row in `reuse` is new."""
    for reuse in (1, 2, 4):
        batches = serve(make(reuse=reuse), 5000)
        (early, late) = (next(a for *_, a in batches[n:]) for n in (20, 60))
        assert late - early == pytest.approx(40 * 16 / reuse, abs=16)


def test_batches_keep_their_rows_when_the_buffer_moves_on() -> None:
    buffer = make()
    buffer.put(*rows(0, 200))
    acts, _ = buffer.take()
    before = acts[SITE].clone()
    buffer.put(*rows(1000, 1016))
    while not buffer.empty:
        buffer.finish()
        buffer.take()
    assert torch.equal(acts[SITE], before)


def test_the_shuffle_spans_the_whole_buffer() -> None:
    """Once running, the age of a served row is spread over the buffer and not tied to arrival order."""
    batches = serve(make(400, 20), 4000)
    age = torch.cat([arrived - acts[SITE][:, 0] for acts, _, arrived in batches[40:150]])
    assert age.min() < 220 and age.max() > 600
    assert age.mean() == pytest.approx(400, rel=0.1)


def test_rows_meet_others_that_came_more_than_a_buffer_before() -> None:
    """Only a part of the buffer is served before the rest is shuffled again: it is no shuffle of block after block."""
    batches = serve(make(400, 20), 4000)
    span = torch.stack([acts[SITE][:, 0].max() - acts[SITE][:, 0].min() for acts, _, _ in batches[40:150]])
    assert span.median() > 600 and span.min() > 300


def test_same_seed_same_order_other_seed_another() -> None:
    first, again, other = (values(serve(make(seed=seed), 700)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("reuse", [1, 2])
@pytest.mark.parametrize("stop_after", [0, 1, 5, 6, 7, 30, 55])
def test_state_continues_exactly_from_any_batch(stop_after: int, reuse: int) -> None:
    whole = serve(make(reuse=reuse), 700)
    buffer, arrived = make(reuse=reuse), 0
    for _ in range(min(stop_after, len(whole) - 1)):
        while buffer.room and arrived < 700:
            arrived += buffer.put(*rows(arrived, min(arrived + 37, 700)))
        if arrived == 700:
            buffer.finish()
        buffer.take()
    restored = make(reuse=reuse, seed=99)
    restored.load_state_dict(copy.deepcopy(buffer.state_dict()))
    rest = serve(restored, 700, arrived=arrived)
    assert torch.equal(values(rest), values(whole[min(stop_after, len(whole) - 1) :]))


def test_memory_is_the_rows_and_nothing_grows() -> None:
    buffer = make(1000, 16)
    serve(buffer, 5000)
    held = [value for value in vars(buffer).values() if isinstance(value, torch.Tensor)]
    assert sum(block.nbytes for block in buffer._acts.values()) == 1000 * (3 + 2) * 4
    assert sum(tensor.nbytes for tensor in held) <= 1000 * 24 + 16 * 16


def test_mixing_tells_shuffled_from_sequential() -> None:
    buffer = make(1000, 100)
    serve(buffer, 0)
    assert math.isnan(buffer.mixing().observed)
    buffer = make(1000, 100)
    buffer.put(*rows(0, 1000))
    _, origin = buffer.take()
    mixing = buffer.mixing()
    assert mixing.expected == pytest.approx(9 / 999)  # 9 of the other 999 rows share a row's document
    pairs = sum(int(a == b) for i, a in enumerate(origin[:, 0]) for b in origin[:i, 0])
    assert mixing.observed == pytest.approx(pairs / (100 * 99 / 2))
    assert mixing.observed < 3 * mixing.expected  # a sequential batch of ten documents would have 9 / 99


def test_a_row_costs_the_same_in_a_large_buffer() -> None:
    """64 times the rows: a design that copies or indexes the whole buffer per batch would be far slower."""

    def median(size: int) -> float:
        buffer, times = ShuffleBuffer(size, {SITE: 3, OTHER: 2}, 512), []
        while buffer.room:
            buffer.put(*rows(0, 4096))
        arriving = rows(0, 512)
        for _ in range(101):
            start = time.perf_counter()
            buffer.take()
            buffer.put(*arriving)
            times.append(time.perf_counter() - start)
        return sorted(times)[50]

    median(4096)
    assert median(262_144) < 6 * median(4096)


def test_mixing_of_a_large_buffer_is_sampled_fairly() -> None:
    buffer = make(200_000, 100)
    buffer.put(*rows(0, 200_000, per_document=1000))
    for _ in range(500):
        buffer.take()
        buffer.put(*rows(200_000, 200_100, per_document=1000))  # one document, in the refilled slots only
    assert buffer.mixing().expected == pytest.approx(1 / 200, rel=0.05)


def test_half_precision_and_a_second_dtype() -> None:
    buffer = make(dtype=torch.bfloat16)
    buffer.put(*rows(0, 200))
    assert buffer.take()[0][SITE].dtype == torch.bfloat16


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="at least two batches"):
        make(size=31)
    with pytest.raises(InputError, match="reuse=0"):
        make(reuse=0)
    with pytest.raises(InputError, match="options it was saved with"):
        make().load_state_dict(ShuffleBuffer(200, {SITE: 4, OTHER: 2}, 16).state_dict())
