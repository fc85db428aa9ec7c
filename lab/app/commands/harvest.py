"""`monosem harvest`: activations to disk, to train on many times."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
import tyro

from ...streams.activation_stream import ActivationStream, StreamConfig
from ...streams.store import ActivationStore, require_unfinished
from ..checks import check_folder
from ..command import Command, Result
from ..options import Flat, ModelText


@dataclass(frozen=True)
class HarvestCommand(Command):
    """Write shuffled activations of one or more sites to a folder; interrupted, the same command continues."""

    example = "monosem harvest stores/docs --sites resid_post.12 --rows 20000"

    out: tyro.conf.Positional[Path]
    """Folder of the store."""
    sites: tuple[str, ...] = ("resid_post.12",)
    """Where to read, TransformerLens names included."""
    rows: int = 1_000_000
    """Rows to write (the corpus is read again and again until they are there, unless --epochs says otherwise)."""
    source: Flat[ModelText] = field(default_factory=ModelText)
    stream: StreamConfig = field(default_factory=StreamConfig)
    shard_rows: int = 65_536
    """Rows per file."""
    allow_short: bool = False
    """Accept a text that ends before --rows (with --stream.epochs)."""

    def run(self) -> Result:
        """Harvest and return what is on disk."""
        check_folder(self.out)
        require_unfinished(self.out)
        self.source.check(self.sites)
        model = self.source.open_model()
        corpus = self.source.open_corpus(model, split="train")
        stream = ActivationStream(model, corpus, self.sites, config=self.stream)
        store = ActivationStore.write(
            stream,
            self.out,
            shard_rows=self.shard_rows,
            dtype=torch.bfloat16,
            limit_rows=self.rows,
            allow_short=self.allow_short,
        )
        size = sum(shard["bytes"] for shard in store.manifest["shards"])
        sites = {str(site): width for site, width in store.widths.items()}
        written = {
            "store": str(self.out),
            "rows": store.rows,
            "asked_rows": self.rows,
            "sites": sites,
            "bytes": size,
            "counts": stream.counts,
        }
        return self.result(written)
