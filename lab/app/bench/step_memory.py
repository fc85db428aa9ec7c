"""Peak memory of a training step beyond weights and optimizer state, in a process where nothing else runs.

python -m monosem.lab.app.bench.step_memory 576,9216,32,2048
"""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import torch

from ....kernels.chunks import chunk_rows
from ...errors import InputError
from .contestant import Asked, Ours
from .shapes import Planted, Shape, device, shapes_of

WARM_ROWS = 64
"""Rows of the first step: all weights and moments are touched, all code is compiled, and little else is allocated."""


def extra_memory(shape: Shape) -> dict[str, float]:
    """Bytes of the peak, and in multiples of one row chunk of pre-activations, measured in a fresh process.

    Raises:
        InputError: the process failed; the message holds the last line it wrote.
    """
    command = [sys.executable, "-m", __name__, str(shape)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"the memory of a step at {shape} could not be measured: {last}")
    extra = float(done.stdout.split()[-1])
    return {"bytes": extra, "row_chunks": extra / (4 * shape.n * chunk_rows(shape.n, device().type))}


def measure(shape: Shape) -> int:
    """Peak bytes of two steps at `shape` over what is held before them; the rows themselves are held before."""
    supply = Planted(shape)
    warm, batches = supply.rows(min(WARM_ROWS, shape.batch)), [supply.rows() for _ in range(2)]
    racer = Ours(warm, Asked(shape.n, shape.k, steps=10))
    racer.step(warm)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        for x in batches:
            racer.step(x)
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    for x in batches:
        racer.step(x)
    return _status("VmHWM") - before


def _status(name: str) -> int:
    """Bytes of one line of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise InputError(f"/proc/self/status has no line {name}: memory is measured on Linux only")


if __name__ == "__main__":
    sys.stdout.write(f"{measure(shapes_of(sys.argv[1])[0])}\n")
