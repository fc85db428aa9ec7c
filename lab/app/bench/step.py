"""`monosem bench step`: the whole training step beside peers' on the same rows, and its peak memory."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import InputError
from ...runs.first_rows import FirstRows
from ...runs.read import read
from ...streams.activation_stream import ActivationStream, StreamConfig
from ...streams.store import ActivationStore
from ...table import markdown
from .command import Bench
from .contestant import Asked, Contestant, Ours
from .peers import PEERS
from .shapes import Planted, Shape, device, shapes_of
from .step_memory import extra_memory
from .tables import append, rounded
from .timing import interleaved, named

log = logging.getLogger(__name__)

COPIES = 6
"""Parameter-sized tensors that a contestant may hold: values, gradients, two moments, and what a step makes."""


@dataclass(frozen=True)
class BenchStep(Bench):
    """Time the training step of each library on the same batches, in turn, without a model in the way.

    A turn is two steps, of which the second is timed: in training, a step follows another of the same library.
    """

    example = "monosem bench step --shape first --against sae-lens --steps 2"

    shape: str = "first"
    """Shapes d,n,k,batch, parted by spaces; or `first`, or `all` of those this kind of machine is measured at."""
    against: str = ",".join(PEERS)
    """Peers, comma-separated."""
    steps: int = 5
    """Timed steps of every library."""
    warmup: int = 2
    """Steps before them."""
    store: Path | None = None
    """Rows from this store (written by `monosem harvest`) in place of planted features with noise."""
    write: bool = False
    """Append the table to kernels/BENCHMARKS.md."""

    def race(self) -> dict[str, Any]:
        """JSON key `shapes`: by shape, tokens_per_second, ratio (ours to theirs), step_seconds, extra_memory."""
        if self.steps < 1 or self.warmup < 0:
            raise InputError(f"at least one timed step is needed, got steps={self.steps} and warmup={self.warmup}")
        peers = named(self.against, PEERS)
        found = {str(shape): self._race(shape, peers) for shape in shapes_of(self.shape)}
        if self.write:
            command = f"monosem bench step --shape '{self.shape}' --against {','.join(peers)} --steps {self.steps}"
            append("Training step", command, table(found))
        return {"shapes": found}

    def _race(self, shape: Shape, peers: list[str]) -> dict[str, Any]:
        batches = self._batches(shape)
        total = 2 * (self.steps + self.warmup)
        asked = Asked(shape.n, shape.k, steps=total)
        makers: dict[str, Callable[[], Contestant]] = {
            "monosem": partial(Ours, batches[0], asked),
            **{name: partial(PEERS[name], batches[0], asked) for name in peers},
        }
        together = len(makers) * COPIES * 8 * shape.n * shape.d < free_bytes()
        log.info("%s: racing %s, %s", shape, ", ".join(makers), "step by step" if together else "one after another")
        groups = [makers] if together else [{name: maker} for name, maker in makers.items()]
        seconds: dict[str, float] = {}
        for group in groups:
            seconds |= self._timed(group, batches)
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        rates = {name: shape.batch / value for name, value in seconds.items()}
        return {
            "tokens_per_second": rates,
            "ratio": {name: rates["monosem"] / rates[name] for name in peers},
            "step_seconds": seconds,
            "extra_memory": extra_memory(shape),
            "side_by_side": together,
        }

    def _timed(self, makers: dict[str, Callable[[], Contestant]], batches: list[Tensor]) -> dict[str, float]:
        racers = {name: maker() for name, maker in makers.items()}
        leads, turns = (
            {
                name: lambda number, racer=racer, last=last: racer.step(batches[2 * number + last])
                for name, racer in racers.items()
            }
            for last in (0, 1)
        )
        return interleaved(turns, self.steps, self.warmup, lead_in=leads)

    def _batches(self, shape: Shape) -> list[Tensor]:
        """A batch for every step, none used twice by one contestant."""
        count = 2 * (self.steps + self.warmup)
        if self.store is None:
            supply = Planted(shape)
            return [supply.rows() for _ in range(count)]
        store = ActivationStore.open(self.store)
        stream = ActivationStream.from_store(store, config=StreamConfig(batch=shape.batch, buffer=4 * shape.batch))
        first = FirstRows(stream.sites[0], count * shape.batch)
        read(stream, first, description="rows", progress=False)
        parts = [batch.acts[stream.sites[0]].float().to(device()) for batch in first.batches]
        if len(parts) < count or parts[-1].shape != (shape.batch, shape.d):
            raise InputError(f"{count} batches of {shape.batch} rows of width {shape.d} are needed, and {self.store} "
                             f"gives {len(parts)}: other --shape, fewer --steps, or a larger store")  # fmt: skip
        return parts


def free_bytes() -> int:
    """Memory that can still be taken where the step runs."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def table(found: dict[str, Any]) -> str:
    """One row for each library at each shape."""
    rows = []
    for shape, result in found.items():
        for name, seconds in result["step_seconds"].items():
            memory = result["extra_memory"]
            told = f"{memory['bytes'] / 2**20:.1f} ({memory['row_chunks']:.2f})" if name == "monosem" else ""
            ratio = f"{result['ratio'][name]:.2f}" if name in result["ratio"] else ""
            rate = rounded(result["tokens_per_second"][name])
            rows.append([shape, name, f"{1e3 * seconds:.1f}", rate, ratio, told])
    names = ("d,n,k,batch", "library", "ms a step", "tokens/s", "monosem is faster by", "extra MiB (row chunks)")
    return markdown(names, rows)
