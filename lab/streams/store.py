"""Activations on disk: harvest once, train many times.

    manifest.json              written last: a folder without it is not a store
    shard-00000.safetensors    `shard_rows` rows of every site, and their origins
    .progress/                 while writing: where to continue

Rows are shuffled when they are written, by the stream's own buffer, so reading is sequential: a few shards at
a time, mixed once more by the buffer of the stream that reads them.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from ..errors import InputError, unknown
from ..models.sites import Site
from ..rng import generator
from ..storage import read_json
from .activation_stream import DTYPES, ActivationStream, Batch
from .harvest import NO_LIMIT, Chunk, Limits
from .shards import ORIGIN, SCHEMA, ShardWriter, crc32

READ_ROWS = 8192  # rows per read: tens of megabytes at usual widths


class ActivationStore:
    """Shuffled activations of one or more sites on disk. Make one with `write` or `open`."""

    def __init__(self, folder: Path, manifest: dict[str, Any]):
        self.folder, self.manifest = folder, manifest
        self.widths = {Site.parse(name): width for name, width in manifest["sites"].items()}
        self.sites = tuple(self.widths)
        self.rows: int = manifest["rows"]
        self.dtype = DTYPES[manifest["dtype"]]
        self.norm_limit = {Site.parse(name): limit for name, limit in manifest["norm_limit"].items()}
        self._checked: set[int] = set()

    @classmethod
    def open(cls, folder: Path | str) -> ActivationStore:
        """The store in `folder`.

        Raises:
            InputError: there is none, it is unfinished or of another schema, or a shard is cut or missing.
        """
        folder = Path(folder)
        if not (folder / "manifest.json").is_file():
            if any(folder.glob("shard-*.safetensors")) or (folder / ".progress").exists():
                raise InputError(
                    f"{folder} is an unfinished activation store (no manifest.json): "
                    "run the same harvest into it again to finish it"
                )
            raise InputError(
                f"{folder} holds no activation store (no manifest.json): write one with "
                "ActivationStore.write or 'monosem harvest'"
            )
        manifest = read_json(folder / "manifest.json", "activation store manifest")
        if manifest.get("schema") != SCHEMA:
            raise InputError(
                f"{folder} is an activation store of schema {manifest.get('schema')!r} and this version "
                f"reads {SCHEMA}: open it with the version that wrote it, or harvest again"
            )
        for shard in manifest["shards"]:
            path = folder / shard["file"]
            size = path.stat().st_size if path.is_file() else 0
            if size != shard["bytes"]:
                raise _damaged(path, f"{size} bytes instead of {shard['bytes']}")
        return cls(folder, manifest)

    @classmethod
    def write(
        cls,
        batches: ActivationStream | Iterable[Batch],
        folder: Path | str,
        *,
        shard_rows: int = 65536,
        dtype: torch.dtype = torch.bfloat16,
        limit_rows: int | None = None,
        allow_short: bool = False,
        progress: bool = True,
    ) -> ActivationStore:
        """Write a stream to disk; after a kill, the same call continues to the same bytes.

        Args:
            batches: a fresh stream, or any batches (those cannot be continued).
            shard_rows: rows per file.
            dtype: what rows are stored in.
            limit_rows: rows to write. Unset: all, until the batches end.
            allow_short: accept fewer rows than `limit_rows`; the manifest has both numbers.
            progress: show a bar on stderr.

        Raises:
            InputError: the folder holds a finished store or the beginning of a different one, there is not
                one row, or the disk is full (what is written stays valid). Or there are fewer rows than `limit_rows`,
                without `allow_short`: refused at the start where that is known, else once the store is finished.
        """
        folder = Path(folder)
        require_unfinished(folder)
        if shard_rows < 1 or (limit_rows is not None and limit_rows < 1):
            raise InputError(f"shard_rows={shard_rows} and limit_rows={limit_rows} must be 1 or more")
        if limit_rows is not None and isinstance(batches, ActivationStream) and not allow_short:
            had = batches.rows_at_most(limit_rows)
            if had is not None and had < limit_rows:
                raise _short(limit_rows, had, "nothing is written")
        writer = ShardWriter(folder, batches, shard_rows, dtype, limit_rows)
        with tqdm(total=limit_rows, initial=writer.rows, unit="row", unit_scale=True, disable=not progress) as bar:
            served = iter(batches)
            while not writer.full:
                try:
                    batch = next(served, None)
                except Exception:
                    writer.keep()
                    raise
                if batch is None:
                    break
                bar.update(writer.add(batch))
        if isinstance(batches, ActivationStream):
            batches.close()
        store = cls(folder, writer.finish())
        if limit_rows is not None and store.rows < limit_rows and not allow_short:
            raise _short(limit_rows, store.rows, f"{folder} is a whole store of those")
        return store

    def read(self, shard: int, start: int, stop: int, sites: Sequence[Site] | None = None) -> Batch:
        """Rows `start:stop` of one shard. The first read of a shard checks the whole file.

        Raises:
            InputError: the file is not what was written, or a value is not finite.
        """
        entry = self.manifest["shards"][shard]
        path = self.folder / entry["file"]
        try:
            if shard not in self._checked:
                if crc32(path) != entry["crc32"]:
                    raise _damaged(path, "its checksum differs")
                self._checked.add(shard)
            with safe_open(path, framework="pt") as file:
                acts = {site: file.get_slice(str(site))[start:stop] for site in sites or self.sites}
                batch = Batch(acts, file.get_slice(ORIGIN)[start:stop])
        except (OSError, SafetensorError) as error:
            raise _damaged(path, str(error)) from None
        _require_finite(path, batch)
        return batch

    def verify(self) -> None:
        """Check every shard against its checksum.

        Raises:
            InputError: naming the first that differs.
        """
        for shard in range(len(self.manifest["shards"])):
            self.read(shard, 0, 1)

    def source(
        self, sites: Sequence[Site | str] | None, *, mix: int, seed: int, dtype: torch.dtype | None
    ) -> StoreSource:
        """Row source that `ActivationStream.from_store` reads."""
        named = {str(site): site for site in self.sites}
        for site in sites or ():
            if str(site) not in named:
                raise unknown(f"site in {self.folder}", str(site), named)
        chosen = tuple(named[str(site)] for site in sites) if sites else self.sites
        return StoreSource(self, chosen, mix, seed, dtype or self.dtype)

    def __repr__(self) -> str:
        sites = ", ".join(f"{site} [{width}]" for site, width in self.widths.items())
        return f"ActivationStore({str(self.folder)!r}: {self.rows} rows of {sites}, {self.manifest['dtype']})"


@dataclass(frozen=True)
class StoreSource:
    """A store as the `RowSource` of a stream: slices of `mix` shards in turn, shards in a drawn order."""

    store: ActivationStore
    sites: tuple[Site, ...]
    mix: int
    seed: int
    dtype: torch.dtype

    @property
    def widths(self) -> dict[Site, int]:
        return {site: self.store.widths[site] for site in self.sites}

    def fingerprint(self) -> dict[str, Any]:
        manifest = self.store.manifest
        digest = zlib.crc32(repr([shard["crc32"] for shard in manifest["shards"]]).encode())
        return {**manifest["source"], "store": {"rows": self.store.rows, "crc32": digest, "mix": self.mix}}

    def rows_at_most(self, enough: int) -> int:
        """Return the rows of the store."""
        return self.store.rows

    def chunks(self, state: Any, limits: Limits) -> Iterator[Chunk]:
        """The state is the number of slices read."""
        limits = limits or dict.fromkeys(self.sites, NO_LIMIT)
        for number, (shard, start) in enumerate(self._schedule()):
            if number < (state or 0):
                continue
            read = self.store.read(shard, start, start + READ_ROWS, self.sites)
            yield Chunk(
                acts={site: rows.to(self.dtype) for site, rows in read.acts.items()},
                origin=read.origin,
                state=number + 1,
                limits=limits,
                tokens=len(read.origin),
                special=0,
                too_long=dict.fromkeys(self.sites, 0),
            )

    def _schedule(self) -> Iterator[tuple[int, int]]:
        sizes = [shard["rows"] for shard in self.store.manifest["shards"]]
        order = torch.randperm(len(sizes), generator=generator(self.seed, "shards")).tolist()
        for first in range(0, len(order), self.mix):
            group = order[first : first + self.mix]
            for start in range(0, max(sizes[shard] for shard in group), READ_ROWS):
                yield from ((shard, start) for shard in group if start < sizes[shard])


def _require_finite(path: Path, batch: Batch) -> None:
    for site, rows in batch.acts.items():
        if not bool(rows.isfinite().all()):
            bad = int(rows.isfinite().all(1).logical_not().nonzero()[0, 0])
            document, offset = batch.origin[bad, :2].tolist()
            raise InputError(
                f"{path} holds a value at {site} that is not finite (document {document}, token {offset}): "
                "harvest the store again"
            )


def require_unfinished(folder: Path) -> None:
    """Refuse to write a store into a folder with a finished one, or with anything else.

    Raises:
        InputError: names the folder.
    """
    if (folder / "manifest.json").exists() and any(folder.glob("shard-*.safetensors")):
        raise InputError(f"{folder} already holds an activation store: open it, or choose another folder")
    begun = (folder / ".progress").exists() or any(folder.glob("shard-*.safetensors"))
    if not begun and folder.is_dir() and any(path for path in folder.iterdir() if path.name[0] != "."):
        raise InputError(f"{folder} holds something else than an activation store: choose another folder")


def _short(asked: int, had: int, kept: str) -> InputError:
    return InputError(
        f"the stream has {had:,} of the {asked:,} rows that are asked for; {kept}: ask for at most {had:,} (limit_rows,"
        " --rows), give more text or passes (epochs), or allow fewer (allow_short=True, --allow-short)"
    )


def _damaged(path: Path, how: str) -> InputError:
    return InputError(f"shard {path} is damaged or missing ({how}): restore the file, or harvest the store again")
