"""`monosem bench buffer`: what a large shuffle buffer costs and how well it mixes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ....saes.registry import build_trainable
from ....saes.training.trainer import TrainConfig, Trainer
from ...models.sites import Site
from ...streams.activation_stream import Batch
from ...streams.buffer import ShuffleBuffer
from .command import Bench
from .timing import interleaved

SITE = Site.parse("resid_post.0")


@dataclass(frozen=True)
class BenchBuffer(Bench):
    """Serve batches from shuffle buffers of several sizes, beside one training step on such a batch."""

    example = "monosem bench buffer --rounds 10"

    rows: tuple[int, ...] = (16_384, 1_048_576)
    """Buffer sizes; ratios are to the first."""
    d_in: int = 576
    """Width of a row."""
    n_latents: int = 9216
    """Latents of the dictionary that is stepped."""
    batch: int = 2048
    """Rows a batch."""
    rounds: int = 60
    """Batches served from each."""

    def race(self) -> dict[str, Any]:
        """JSON keys seconds_per_batch and mixing by size, step_seconds, and extra_share of the largest."""
        g = torch.Generator().manual_seed(0)
        chunk = torch.randn(2 * self.batch, self.d_in, generator=g)
        buffers = {str(size): _full(size, self.d_in, self.batch, chunk) for size in self.rows}
        trainer = Trainer(build_trainable("topk", d_in=self.d_in, n_latents=self.n_latents, k=32), SITE, TrainConfig())
        turns: dict[str, Callable[[int], object]] = {
            name: partial(_serve, buffer, chunk) for name, buffer in buffers.items()
        }
        rows = Batch({SITE: chunk[: self.batch]}, torch.zeros(self.batch, 2, dtype=torch.int64))
        turns["step"] = lambda number: trainer.step(rows)
        seconds = interleaved(turns, self.rounds, 3)
        small, large = str(self.rows[0]), str(self.rows[-1])
        return {
            "seconds_per_batch": {name: seconds[name] for name in buffers},
            "step_seconds": seconds["step"],
            "extra_share": (seconds[large] - seconds[small]) / seconds["step"],
            "mixing": {name: buffer.mixing()._asdict() for name, buffer in buffers.items()},
        }


def _origins(first: int, rows: int) -> torch.Tensor:
    """Documents of 500 consecutive rows."""
    positions = torch.arange(first, first + rows)
    return torch.stack([positions // 500, positions % 500], dim=1)


def _full(size: int, d_in: int, batch: int, chunk: torch.Tensor) -> ShuffleBuffer:
    buffer = ShuffleBuffer(size, {SITE: d_in}, batch, seed=0)
    filled = 0
    while buffer.room:
        filled += buffer.put({SITE: chunk}, _origins(filled, len(chunk)), 0)
    return buffer


def _serve(buffer: ShuffleBuffer, chunk: torch.Tensor, number: int) -> None:
    first = buffer.rows + number * len(chunk)
    start = 0
    while buffer.room and start < len(chunk):
        start += buffer.put({SITE: chunk}, _origins(first, len(chunk)), start)
    buffer.take()
