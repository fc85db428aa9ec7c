"""Writing shuffled activations as shards, so that a killed writer continues to the same bytes."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoints import load_newest, require_same, save_newest, sweep
from ..environment import versions
from ..errors import InputError
from ..models.sites import Site
from ..storage import State, write_json, write_tensors
from .activation_stream import ActivationStream, Batch

SCHEMA = 1
ORIGIN = "origin"


class ShardWriter:
    """Collects batches into shards, and keeps on disk what is needed to continue."""

    def __init__(self, folder: Path, batches: Any, shard_rows: int, dtype: torch.dtype, limit_rows: int | None):
        self.folder, self.shard_rows, self.dtype, self.limit = folder, shard_rows, dtype, limit_rows
        self.stream = batches if isinstance(batches, ActivationStream) else None
        self.plan = {
            "dtype": str(dtype).removeprefix("torch."),
            "shard_rows": shard_rows,
            "limit_rows": limit_rows,
            "source": self.stream.fingerprint() if self.stream else {},
        }
        # a state is as large as the stream's buffer: write it no more often than as many rows in shards
        self.every = max(1, self.stream.config.buffer // shard_rows) if self.stream else None
        self.shards: list[dict[str, Any]] = []
        self.staged: dict[str, Tensor] = {}
        self.fill = 0
        self._continue()

    @property
    def rows(self) -> int:
        return sum(shard["rows"] for shard in self.shards) + self.fill

    @property
    def full(self) -> bool:
        return self.limit is not None and self.rows >= self.limit

    def _continue(self) -> None:
        sweep(self.folder)
        sweep(self.folder / ".progress")
        state = load_newest(self.folder / ".progress")
        if state is None or self.stream is None:
            return
        require_same(state["plan"], self.plan, f"the unfinished store in {self.folder}")
        self.stream.load_state_dict(state["stream"])
        self.shards = state["shards"]
        for name, rows in state["staged"].items():
            self._stage(name, rows, 0)
        self.fill = len(state["staged"][ORIGIN])

    def _stage(self, name: str, rows: Tensor, at: int) -> None:
        if name not in self.staged:
            dtype = torch.int64 if name == ORIGIN else self.dtype
            self.staged[name] = torch.empty(self.shard_rows, rows.shape[1], dtype=dtype)
        self.staged[name][at : at + len(rows)].copy_(rows)

    def add(self, batch: Batch) -> int:
        """Stage a batch, write the shards it fills, and perhaps the state after it; returns its rows."""
        total = len(batch.origin)
        if self.limit is not None:
            total = min(total, self.limit - self.rows)
        tensors = {**{str(site): rows for site, rows in batch.acts.items()}, ORIGIN: batch.origin}
        before, start = len(self.shards), 0
        while start < total:
            count = min(total - start, self.shard_rows - self.fill)
            for name, rows in tensors.items():
                self._stage(name, rows[start : start + count], self.fill)
            self.fill += count
            start += count
            if self.fill == self.shard_rows:
                self._write_shard()
        if self.every and len(self.shards) // self.every > before // self.every:
            self._save_progress(2 * len(self.shards))
        return total

    def keep(self) -> None:
        """Write the state as it is between two batches, before an error of the stream ends the writing."""
        if self.stream is not None and self.rows:
            self._save_progress(2 * len(self.shards) + 1)

    def _write_shard(self) -> None:
        path = self.folder / f"shard-{len(self.shards):05d}.safetensors"
        write_tensors(path, {name: rows[: self.fill] for name, rows in self.staged.items()})
        entry = {"file": path.name, "rows": self.fill, "bytes": path.stat().st_size, "crc32": crc32(path)}
        self.shards.append(entry)
        self.fill = 0

    def _save_progress(self, number: int) -> None:
        assert self.stream is not None
        state: State = {
            "plan": self.plan,
            "stream": self.stream.state_dict(),
            "shards": self.shards,
            "staged": {name: rows[: self.fill] for name, rows in self.staged.items()},
        }
        save_newest(self.folder / ".progress", number, state)

    def finish(self) -> dict[str, Any]:
        """Write the last shard and the manifest."""
        if self.fill:
            self._write_shard()
        if not self.shards:
            raise InputError(f"there was not one row to write to {self.folder}: check the corpus")
        limits: Mapping[Site, float] = self.stream.norm_limit if self.stream else {}
        sites = map(str, self.stream.sites) if self.stream else sorted(self.staged.keys() - {ORIGIN})
        manifest = {
            "schema": SCHEMA,
            "sites": {name: self.staged[name].shape[1] for name in sites},
            "dtype": self.plan["dtype"],
            "rows": self.rows,
            "asked_rows": self.limit,
            "shards": self.shards,
            "norm_limit": {str(site): limit for site, limit in limits.items()},
            "counts": self.stream.counts if self.stream else {},
            "source": self.plan["source"],
            "versions": versions(),
        }
        write_json(self.folder / "manifest.json", manifest)
        shutil.rmtree(self.folder / ".progress", ignore_errors=True)
        return manifest


def crc32(path: Path) -> int:
    """The CRC-32 of a file's bytes."""
    value = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            value = zlib.crc32(block, value)
    return value
