"""`monosem bench train`: the training step beside other libraries', on the same batches in turn."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....saes.training.trainer import TrainConfig
from ...errors import InputError
from ...models.sites import Site
from ..options import Flat, ModelText
from ..rows import split_rows
from .command import Bench
from .contestant import Contestant, Ours
from .peers import PEERS
from .timing import interleaved, named

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BenchTrain(Bench):
    """Train the same TopK shape with each library on the same activations, batch by batch in turn."""

    example = "monosem bench train --against sae-lens --n-latents 2304 --steps 20"

    against: str = "sae-lens,dictionary-learning"
    """Peers, comma-separated."""
    n_latents: int = 9216
    """Number of latents."""
    k: int = 32
    """Active latents a row."""
    batch: int = 2048
    """Rows a step."""
    steps: int = 60
    """Steps of every library."""
    warmup: int = 3
    """Steps at the start that are trained on but not timed."""
    held_out: int = 16_384
    """Rows the FVU is measured on, from held-out documents."""
    reuse: int = 2
    """Passes over the harvested rows; fewer rows to harvest for more steps."""
    peer_lr: float | None = None
    """Learning rate of the peers in place of the one their documentation gives."""
    site: str = "resid_post.12"
    """Where the activations come from."""
    source: Flat[ModelText] = field(default_factory=ModelText)
    store: Path | None = None
    """Train on this store's rows (written by `monosem harvest`) and hold out its last ones."""

    def race(self) -> dict[str, Any]:
        """Race; JSON keys tokens_per_second, ratio (ours to theirs) and fvu, each by library."""
        if self.warmup >= self.steps:
            raise InputError(f"warmup={self.warmup} leaves no step of {self.steps} to time: give more steps")
        peers = named(self.against, PEERS)
        site = Site.parse(self.site)
        wanted = -(-self.steps * self.batch // self.reuse)
        x, held = split_rows(self.source, self.store, site, wanted, self.held_out, self.batch)
        sample = x[: self.batch]
        racers: dict[str, Contestant] = {"monosem": Ours(sample, self.n_latents, self.k, self.steps, site)}
        for name in peers:
            share = TrainConfig().warmup
            racers[name] = PEERS[name](sample, self.n_latents, self.k, self.steps, share, self.peer_lr)
        g = torch.Generator().manual_seed(0)
        order = torch.cat([torch.randperm(len(x), generator=g) for _ in range(self.reuse)])
        batches = [x[part] for part in order.split(self.batch)[: self.steps]]
        log.info("racing %s: %d steps of %d rows", ", ".join(racers), self.steps, self.batch)
        turns = {name: lambda number, racer=racer: racer.step(batches[number]) for name, racer in racers.items()}
        seconds = interleaved(turns, self.steps - self.warmup, self.warmup)
        rates = {name: self.batch / value for name, value in seconds.items()}
        return {
            "shape": {"d_in": x.shape[1], "n_latents": self.n_latents, "k": self.k, "batch": self.batch},
            "rows_trained": self.steps * self.batch,
            "tokens_per_second": rates,
            "ratio": {name: rates["monosem"] / rates[name] for name in peers},
            "fvu": {name: _fvu(racer, held) for name, racer in racers.items()},
        }


def _fvu(racer: Contestant, held: Tensor) -> float:
    error = sum(float((racer.reconstruct(part) - part).square().sum()) for part in held.split(2048))
    return error / float((held - held.mean(0)).square().sum())
