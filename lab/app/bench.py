"""`monosem bench`: this library beside its peers, in one process, on the same data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from .bench_buffer import BenchBuffer
from .bench_harvest import BenchHarvest
from .bench_kernels import BenchKernels
from .bench_step import BenchStep
from .bench_train import BenchTrain
from .timing import machine


@dataclass(frozen=True)
class Bench:
    """Measure kernels, the training step, training, harvesting or the shuffle buffer, side by side with peers."""

    what: (
        Annotated[BenchKernels, tyro.conf.subcommand("kernels")]
        | Annotated[BenchStep, tyro.conf.subcommand("step")]
        | Annotated[BenchTrain, tyro.conf.subcommand("train")]
        | Annotated[BenchHarvest, tyro.conf.subcommand("harvest")]
        | Annotated[BenchBuffer, tyro.conf.subcommand("buffer")]
    )

    def run(self) -> dict[str, Any]:
        """Measure; the machine and the versions are part of the result."""
        return {**self.what.run(), "machine": machine()}
