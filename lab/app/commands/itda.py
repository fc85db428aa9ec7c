"""`monosem itda`: dictionaries of real activations, one for each site, off one forward pass."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import tyro

from ....saes.architectures.itda.dictionary import ITDA
from ....saes.files import load
from ....saes.training.itda.growth_config import GrowthConfig
from ....saes.training.trainer import Trainer
from ...models.loading import device_named
from ...models.sites import Site
from ...runs.run import Run
from ...streams.activation_stream import StreamConfig
from ..command import Command, Result
from ..options import Flat
from ..training_options import LoopOptions, StreamOptions, outcome

BUFFER = 16_384
"""Rows that are shuffled by default: those still in the buffer when it is done were read for nothing."""


@dataclass(frozen=True)
class ItdaCommand(Command):
    """Build an ITDA for each site: atoms are activations that those before them explain badly, each with its token."""

    example = "monosem itda runs/itda --rows 20000 --max-atoms 2304"

    out: tyro.conf.Positional[Path]
    """Folder of the run."""
    sites: tuple[str, ...] = ("resid_post.12",)
    """Where to read, TransformerLens names included."""
    growth: Flat[GrowthConfig] = field(default_factory=GrowthConfig)
    reading: Flat[StreamOptions] = field(default_factory=lambda: StreamOptions(stream=StreamConfig(buffer=BUFFER)))
    loop: Flat[LoopOptions] = field(default_factory=lambda: LoopOptions(log_every=10))

    def run(self) -> Result:
        """Build them and return where everything is, and of each how it ended and its last atom's place."""
        self.reading.check(self.sites, self.out, self.loop.resume)
        stream = self.reading.open(self.sites, rows=self.growth.rows, out=self.out)
        sites, device = list(dict.fromkeys(map(Site.parse, self.sites))), device_named(self.reading.source.device)
        trainers = [Trainer.on(stream, site, "itda", training=self.growth, device=device) for site in sites]
        config = {"sites": list(self.sites), "growth": asdict(self.growth)}
        run = Run.create(self.out, config, stream.fingerprint(), resume=self.loop.resume)
        self.loop.train(stream, trainers, run, self.growth.rows)
        return self.result({**outcome(run), "built": {name: _facts(path) for name, path in run.dictionaries.items()}})


def _facts(folder: Path) -> dict[str, Any]:
    itda = load(folder)
    assert isinstance(itda, ITDA), "the run's dictionaries are ITDAs"
    training = itda.provenance.training
    return {"atoms": itda.n_latents, "rows": training["rows"], "stopped": training["stopped"],
            "warmup_atoms": itda.warmup_atoms, "text_hash": itda.text_hash, "order_hash": itda.order_hash}  # fmt: skip
