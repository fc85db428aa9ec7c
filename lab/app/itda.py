"""`monosem itda`: dictionaries of real activations, one for each site, off one forward pass."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import tyro

from ...saes.files import load
from ...saes.itda.dictionary import ITDA
from ...saes.itda.training import GrowthConfig, itda_on
from ..loading import device_named
from ..loop import train
from ..runs import Run
from ..sites import Site
from ..streams import StreamConfig
from .options import Flat, ModelText, check_loop
from .training import Train, stream_counts, tokens_per_second

BUFFER = 16_384
"""Rows that are shuffled by default: those still in the buffer when it is done were read for nothing."""


@dataclass(frozen=True)
class Itda:
    """Build an ITDA for each site: atoms are activations that those before them explain badly, each with its token."""

    out: tyro.conf.Positional[Path]
    """Folder of the run."""
    sites: tuple[str, ...] = ("resid_post.12",)
    """Where to read, TransformerLens names included."""
    source: Flat[ModelText] = field(default_factory=ModelText)
    store: Path | None = None
    """Read activations from this store (written by `monosem harvest`) in place of a model."""
    growth: Flat[GrowthConfig] = field(default_factory=GrowthConfig)
    stream: StreamConfig = field(default_factory=lambda: StreamConfig(buffer=BUFFER))
    resume: bool = False
    """Continue the run in `out`; it ends in the same bytes as if it had never stopped."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    checkpoint_minutes: float = 10.0
    """Minutes between checkpoints."""
    sinks: tuple[str, ...] = ()
    """Also send metrics to wandb, tensorboard or trackio."""

    def __post_init__(self) -> None:
        check_loop(self.log_every, self.checkpoint_minutes, self.sinks)

    def run(self) -> dict[str, Any]:
        """Build them and return where everything is, and of each how it ended and its last atom's place."""
        stream = Train(
            self.out, sites=self.sites, source=self.source, store=self.store, stream=self.stream
        ).open_stream()
        sites, device = list(dict.fromkeys(map(Site.parse, self.sites))), device_named(self.source.device)
        trainers = [itda_on(stream, site, self.growth, device=device) for site in sites]
        config = {"sites": list(self.sites), "growth": asdict(self.growth)}
        run = Run.create(self.out, config, stream.fingerprint(), resume=self.resume)
        train(
            stream, trainers, run, steps=-(-self.growth.rows // self.stream.batch),
            log_every=self.log_every, checkpoint_minutes=self.checkpoint_minutes, sinks=self.sinks,
        )  # fmt: skip
        return {
            "run": str(run.folder),
            "dictionaries": {name: str(path) for name, path in run.dictionaries.items()},
            "tokens": stream_counts(run)["tokens"],
            "rows": stream_counts(run)["served"],
            "tokens_per_second": tokens_per_second(run),
            "built": {name: _facts(path) for name, path in run.dictionaries.items()},
        }


def _facts(folder: Path) -> dict[str, Any]:
    itda = load(folder)
    assert isinstance(itda, ITDA), "the run's dictionaries are ITDAs"
    told = itda.provenance.training
    return {"atoms": itda.n_latents, "rows": told["rows"], "stopped": told["stopped"],
            "warmup_atoms": itda.warmup_atoms, "text_hash": itda.text_hash, "order_hash": itda.order_hash}  # fmt: skip
