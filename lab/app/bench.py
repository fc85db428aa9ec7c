"""`monosem bench`: this library beside its peers, in one process, on the same data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from .bench_architectures import BenchArchitectures
from .bench_buffer import BenchBuffer
from .bench_eval import BenchEval
from .bench_harvest import BenchHarvest
from .bench_itda import BenchItda
from .bench_kernels import BenchKernels
from .bench_layer_sweep import BenchLayerSweep
from .bench_probing import BenchProbing
from .bench_recovery import BenchRecovery
from .bench_step import BenchStep
from .bench_train import BenchTrain
from .timing import machine


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
