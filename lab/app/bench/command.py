"""`monosem bench`: this library beside its peers, in one process, on the same data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from .architectures import BenchArchitectures
from .buffer import BenchBuffer
from .eval import BenchEval
from .harvest import BenchHarvest
from .itda import BenchItda
from .kernels import BenchKernels
from .layer_sweep import BenchLayerSweep
from .probing import BenchProbing
from .recovery import BenchRecovery
from .step import BenchStep
from .timing import machine
from .train import BenchTrain


@dataclass(frozen=True)
class Bench:
    """Measure speed and quality beside peers, or against what was planted."""

    what: (
        Annotated[BenchKernels, tyro.conf.subcommand("kernels")]
        | Annotated[BenchStep, tyro.conf.subcommand("step")]
        | Annotated[BenchTrain, tyro.conf.subcommand("train")]
        | Annotated[BenchArchitectures, tyro.conf.subcommand("architectures")]
        | Annotated[BenchRecovery, tyro.conf.subcommand("recovery")]
        | Annotated[BenchHarvest, tyro.conf.subcommand("harvest")]
        | Annotated[BenchBuffer, tyro.conf.subcommand("buffer")]
        | Annotated[BenchEval, tyro.conf.subcommand("eval")]
        | Annotated[BenchItda, tyro.conf.subcommand("itda")]
        | Annotated[BenchProbing, tyro.conf.subcommand("probing")]
        | Annotated[BenchLayerSweep, tyro.conf.subcommand("layer-sweep")]
    )

    def run(self) -> dict[str, Any]:
        """Measure; the machine and the versions are part of the result."""
        return {**self.what.run(), "machine": machine()}
