"""`monosem bench train`: the training step beside other libraries', on the same batches in turn."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import InputError
from ...models.sites import Site
from ..options import Flat, ModelText
from ..rows import split_rows
from .command import Bench
from .contestant import Asked, Contestant, Ours, matched_rates
from .peers import LIBRARIES, PEERS
from .score import fvu
from .timing import interleaved, named

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BenchTrain(Bench):
    """Train the same TopK shape with each library on the same activations, batch by batch in turn."""

    example = "monosem bench train --against sae-lens --n-latents 2304 --steps 20"

    against: str = "sae-lens,dictionary-learning"
    """Peers, comma-separated. A library races as documented, and matched to ours once for each of `matched_lr`."""
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
    """Learning rate of documented peers in place of their own."""
    matched_lr: tuple[float, ...] = ()
    """Learning rates of matched peers, of which the best counts; by default half of our rule, the rule and twice."""
    site: str = "resid_post.12"
    """Where the activations come from."""
    source: Flat[ModelText] = field(default_factory=ModelText)
    store: Path | None = None
    """Train on this store's rows (written by `monosem harvest`) and hold out its last ones."""

    def race(self) -> dict[str, Any]:
        """Race all contestants on the same batches, in turn.

        Returns:
            JSON keys tokens_per_second and ratio (ours to theirs) by contestant, and `fvu`: ours, and of every peer as
            documented and matched, there with the learning rate that was best on the first half of the held-out rows.
            Every FVU is of the second half.
        """
        if self.warmup >= self.steps:
            raise InputError(f"warmup={self.warmup} leaves no step of {self.steps} to time: give more steps")
        if self.held_out < 2 or not all(0 < rate < 1 for rate in self.matched_lr):
            raise InputError(f"held_out must be at least 2 and matched_lr lie between 0 and 1, got {self.held_out} and "
                             f"{self.matched_lr}")  # fmt: skip
        peers = named(self.against, PEERS)
        site = Site.parse(self.site)
        wanted = -(-self.steps * self.batch // self.reuse)
        x, held = split_rows(self.source, self.store, site, wanted, self.held_out, self.batch)
        racers = self._racers(x[: self.batch], peers)
        g = torch.Generator().manual_seed(0)
        order = torch.cat([torch.randperm(len(x), generator=g) for _ in range(self.reuse)])
        batches = [x[part] for part in order.split(self.batch)[: self.steps]]
        log.info("racing %s: %d steps of %d rows", ", ".join(racers), self.steps, self.batch)
        turns = {name: lambda number, racer=racer: racer.step(batches[number]) for name, racer in racers.items()}
        seconds = interleaved(turns, self.steps - self.warmup, self.warmup)
        best, quality = _quality(racers, peers, *held.chunk(2))
        rates = {name: self.batch / seconds[racer] for name, racer in best.items()}
        return {
            "shape": {"d_in": x.shape[1], "n_latents": self.n_latents, "k": self.k, "batch": self.batch},
            "rows_trained": self.steps * self.batch,
            "tokens_per_second": rates,
            "ratio": {name: rates["monosem"] / rate for name, rate in rates.items() if name != "monosem"},
            "fvu": quality,
        }

    def _racers(self, sample: Tensor, peers: Sequence[str]) -> dict[str, Contestant]:
        """Every contestant, by what it is called while the race lasts."""
        asked = Asked(self.n_latents, self.k, self.steps)
        racers: dict[str, Contestant] = {"monosem": Ours(sample, asked)}
        for name in peers:
            racers[name] = PEERS[name](sample, replace(asked, lr=self.peer_lr))
            rates = self.matched_lr or matched_rates(self.n_latents, self.batch, self.steps * self.batch)
            for rate in rates if name in LIBRARIES else ():
                racers[f"{name} matched {rate:g}"] = PEERS[name](sample, replace(asked, matched=True, lr=rate))
        return racers


def _quality(
    racers: Mapping[str, Contestant], peers: Sequence[str], validation: Tensor, test: Tensor
) -> tuple[dict[str, str], dict[str, Any]]:
    """The contestants that count, by their names in the result, and the FVU of each on the test rows."""
    best = {"monosem": "monosem"}
    quality: dict[str, Any] = {"monosem": fvu(racers["monosem"].reconstruct, test)}
    for name in peers:
        best[name], quality[name] = name, {"documented": fvu(racers[name].reconstruct, test)}
        matched = [racer for racer in racers if racer.startswith(f"{name} matched ")]
        if matched:
            chosen = min(matched, key=lambda racer: fvu(racers[racer].reconstruct, validation))
            best[f"{name} matched"] = chosen
            quality[name] |= {"matched": fvu(racers[chosen].reconstruct, test), "lr": float(chosen.split()[-1])}
    return best, quality
