"""`monosem bench recovery`: every architecture on a planted world, scored against the directions that were planted."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field, fields
from typing import Any

from tqdm import tqdm

from ....saes.architectures.jumprelu import PENALTIES
from ....saes.architectures.matryoshka import BASES
from ....saes.evaluation.planted import Planted, PlantedConfig
from ....saes.evaluation.recovery import recovery
from ....saes.registry import build_trainable, trainable
from ....saes.training.config import TrainConfig
from ....saes.training.trainer import Trainer
from ...errors import InputError
from ...models.sites import Site
from .command import Bench
from .timing import named

log = logging.getLogger(__name__)

SITE = Site.parse("resid_post.0")
"""Planted rows come from no model; a trainer wants a name for their place."""

VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {
    "jumprelu": tuple({"penalty": penalty} for penalty in PENALTIES),
    "matryoshka": tuple({"base": base} for base in BASES),
}
"""Architectures that are trained more than one way."""


@dataclass(frozen=True)
class BenchRecovery(Bench):
    """Train every architecture on planted activations and match its decoder rows to the planted directions."""

    example = "monosem bench recovery --architectures topk --rows 50000"

    architectures: str = ",".join(trainable())
    """Which, comma-separated."""
    n_latents: int = 512
    """Latents of the dictionaries."""
    k: int = 4
    """Active latents a row, as many as are planted."""
    rows: int = 1_000_000
    """Rows each is trained on."""
    batch: int = 1024
    """Rows a step."""
    planted: PlantedConfig = field(default_factory=PlantedConfig)
    """The world: by default 256 directions in 64 dimensions, firing at Zipf rates, four a row."""

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, int) and value < 1:
                raise InputError(f"{one.name} must be at least 1, got {value}")

    def race(self) -> dict[str, Any]:
        """One line for each way of training: scores beside those of an untrained dictionary, L0 and seconds."""
        names = named(self.architectures, trainable(), "architecture", "--architectures")
        ways = [(name, options) for name in names for options in VARIANTS.get(name, ({},))]
        return {"lines": [self._line(name, options) for name, options in ways]}

    def _line(self, name: str, options: dict[str, Any]) -> dict[str, Any]:
        world, start = Planted(self.planted), time.perf_counter()
        shape = {"d_in": self.planted.d_in, "n_latents": self.n_latents, "k": self.k}
        trainer = Trainer(build_trainable(name, **shape, **options), SITE, TrainConfig(rows=self.rows))
        steps = -(-self.rows // self.batch)
        # a bare loop: rows come from a planted world, not from a stream
        for batch in tqdm(world.batches(SITE, self.rows, self.batch), name, steps, unit="step"):
            trainer.step(batch)
        seconds, dictionary = time.perf_counter() - start, trainer.folded()
        found = recovery(dictionary, world)
        l0 = float(dictionary.encode(world.sample(4096, part=1 << 39).x).l0.float().mean())
        log.info("%s %s: L0 %.2f, %s", name, options or "", l0, found["mcc"])
        scores = {score: one.to_json() for score, one in found.items()}
        return {"architecture": name, "options": options, "l0": l0, "seconds": seconds, "scores": scores}
