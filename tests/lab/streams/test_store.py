from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from monosem.lab.errors import InputError
from monosem.lab.streams.activation_stream import ActivationStream, Batch
from monosem.lab.streams.store import ActivationStore
from toys import A, B, TinyCorpus, TinyModel, tiny_stream


def write(folder: Path, stream: ActivationStream | None = None, **options) -> ActivationStore:
    settings = {"shard_rows": 150, "progress": False, **options}
    return ActivationStore.write(stream or tiny_stream(), folder, **settings)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def by_origin(batches: list[Batch]) -> dict[tuple[int, ...], torch.Tensor]:
    rows = zip(torch.cat([b.origin for b in batches]).tolist(), torch.cat([b.acts[A] for b in batches]), strict=True)
    return {tuple(origin): row for origin, row in rows}


def shard_batches(store: ActivationStore) -> list[Batch]:
    return [store.read(shard, 0, entry["rows"]) for shard, entry in enumerate(store.manifest["shards"])]


def test_what_is_read_is_what_was_streamed(tmp_path: Path) -> None:
    store = write(tmp_path / "store", dtype=torch.float32)
    reopened = ActivationStore.open(tmp_path / "store")
    streamed = list(tiny_stream())
    assert reopened.rows == store.rows == sum(len(batch.origin) for batch in streamed)
    for site in (A, B):
        stored = torch.cat([batch.acts[site] for batch in shard_batches(reopened)])
        assert torch.equal(stored, torch.cat([batch.acts[site] for batch in streamed]))
    assert torch.equal(
        torch.cat([batch.origin for batch in shard_batches(reopened)]),
        torch.cat([b.origin for b in streamed]),
    )
    assert [entry["rows"] for entry in store.manifest["shards"][:-1]] == [150] * (store.rows // 150)


def test_half_the_bytes_by_default(tmp_path: Path) -> None:
    store = write(tmp_path / "store")
    stored = torch.cat([batch.acts[A] for batch in shard_batches(store)])
    assert stored.dtype == store.dtype == torch.bfloat16
    assert torch.equal(stored, torch.cat([batch.acts[A] for batch in tiny_stream()]).bfloat16())


def test_a_stream_from_a_store_serves_every_row_once_and_continues_exactly(tmp_path: Path) -> None:
    live = tiny_stream()
    store = write(tmp_path / "store", live, dtype=torch.float32)
    options = {"batch": 32, "buffer": 300, "mix": 3}
    whole = list(stream := ActivationStream.from_store(store, **options, seed=5))
    truth, served = by_origin(shard_batches(store)), by_origin(whole)
    assert truth.keys() == served.keys() and sum(len(b.origin) for b in whole) == store.rows
    assert all(torch.equal(truth[key], served[key]) for key in truth)
    assert stream.norm_limit == live.norm_limit
    half = ActivationStream.from_store(store, **options, seed=5, prefetch=2)
    start = [next(half) for _ in range(20)]
    rest = ActivationStream.from_store(store, **options, seed=5)
    rest.load_state_dict(half.state_dict())
    half.close()
    for left, right in zip(start + list(rest), whole, strict=True):
        assert torch.equal(left.acts[B], right.acts[B]) and torch.equal(left.origin, right.origin)
    other = list(ActivationStream.from_store(store, **options, seed=6))
    assert not torch.equal(other[0].origin, whole[0].origin)


def test_shards_are_read_in_a_drawn_order(tmp_path: Path) -> None:
    """Every shard once, in an order that is the seed's and not that of the harvest."""
    store = write(tmp_path / "store", shard_rows=40)
    orders = []
    for seed in (0, 0, 1, 2):
        chunks = store.source(None, mix=1, seed=seed, dtype=None).chunks(None, {})
        orders.append([tuple(chunk.origin[0].tolist()) for chunk in chunks])
    written = [tuple(batch.origin[0].tolist()) for batch in shard_batches(store)]
    assert len(written) > 5 and all(sorted(order) == sorted(written) for order in orders)
    assert orders[0] == orders[1] and len({*map(tuple, orders), tuple(written)}) == 4


def test_a_part_of_the_sites_in_another_dtype(tmp_path: Path) -> None:
    store = write(tmp_path / "store")
    stream = ActivationStream.from_store(store, sites=[str(B)], batch=32, buffer=64, dtype="float32")
    batch = next(stream)
    assert list(batch.acts) == [B] and batch.acts[B].dtype == torch.float32
    with pytest.raises(InputError, match=r"did you mean 'mlp_out.1'"):
        ActivationStream.from_store(store, sites=["mlp_out.2"])


class Killed(Exception):
    pass


def dying(stream: ActivationStream, after: int) -> ActivationStream:
    """The same stream, until it has served `after` batches."""

    class Dying(ActivationStream):
        def __next__(self) -> Batch:
            if self.counts["served"] >= after * 32:
                raise Killed
            return super().__next__()

    stream.__class__ = Dying
    return stream


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_killed_writer_continues_to_the_same_bytes(tmp_path: Path, prefetch: int) -> None:
    write(tmp_path / "whole", limit_rows=2000)
    model = TinyModel(sink=7)
    for after in (6, 20, 21, 50, 62):
        with pytest.raises(Killed):
            stream = tiny_stream(model=model, prefetch=prefetch)
            write(tmp_path / "killed", dying(stream, after), limit_rows=2000)
        with pytest.raises(InputError, match="unfinished activation store"):
            ActivationStore.open(tmp_path / "killed")
        (tmp_path / "killed" / ".shard-00009.safetensors.77.tmp").write_bytes(b"half a shard")
        stream.close()
    write(tmp_path / "killed", tiny_stream(model=model), limit_rows=2000)
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    if not prefetch:
        assert model.forwards < 20 + 5 * 12  # six times from the beginning would be more


def test_limit_and_plain_batches(tmp_path: Path) -> None:
    store = write(tmp_path / "limited", limit_rows=333)
    assert store.rows == 333 and [entry["rows"] for entry in store.manifest["shards"]] == [150, 150, 33]

    def batches() -> Iterator[Batch]:
        for _ in range(4):
            yield Batch({A: torch.ones(100, 12)}, torch.zeros(100, 2, dtype=torch.int64))

    plain = ActivationStore.write(batches(), tmp_path / "plain", shard_rows=250, progress=False)
    assert plain.rows == 400 and plain.widths == {A: 12}
    with pytest.raises(InputError, match="not one row"):
        ActivationStore.write([], tmp_path / "none", progress=False)


def test_the_manifest_says_where_rows_come_from(tmp_path: Path) -> None:
    write(tmp_path / "store")
    manifest = json.loads((tmp_path / "store" / "manifest.json").read_text())
    assert manifest["source"]["model"] == TinyModel().fingerprint()
    assert manifest["source"]["corpus"] == TinyCorpus().fingerprint()
    assert manifest["source"]["stream"]["seed"] == 0
    assert manifest["sites"] == {str(A): 12, str(B): 20} and manifest["dtype"] == "bfloat16"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store") / "store"
    write(folder)
    return folder


@pytest.fixture
def store(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "store"))


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no activation store \(no manifest.json\): write one"):
        ActivationStore.open(tmp_path / "nothing")


def test_another_schema(store: Path) -> None:
    manifest = json.loads((store / "manifest.json").read_text())
    (store / "manifest.json").write_text(json.dumps({**manifest, "schema": 99}))
    with pytest.raises(InputError, match="schema 99 and this version reads 1"):
        ActivationStore.open(store)


def test_a_missing_or_cut_shard(store: Path) -> None:
    shard = store / "shard-00003.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-10])
    with pytest.raises(InputError, match=r"shard-00003.safetensors is damaged .* harvest the store again"):
        ActivationStore.open(store)
    shard.unlink()
    with pytest.raises(InputError, match="shard-00003"):
        ActivationStore.open(store)


def test_a_flipped_bit_is_found_before_it_is_served(store: Path) -> None:
    shard = store / "shard-00003.safetensors"
    content = bytearray(shard.read_bytes())
    content[-100] ^= 1
    shard.write_bytes(content)
    opened = ActivationStore.open(store)
    with pytest.raises(InputError, match=r"shard-00003.safetensors is damaged or missing \(its checksum differs\)"):
        opened.verify()
    with pytest.raises(InputError, match="shard-00003"):
        list(ActivationStream.from_store(opened, batch=32, buffer=64))


def test_a_finished_store_or_another_beginning_is_not_overwritten(store: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="already holds an activation store"):
        write(store)
    with pytest.raises(Killed):
        write(tmp_path / "begun", dying(tiny_stream(), 40))
    with pytest.raises(InputError, match=r"source.stream.seed = 0 and this one 1"):
        write(tmp_path / "begun", tiny_stream(seed=1))
