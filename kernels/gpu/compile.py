"""Compile every GPU kernel for Hopper without a GPU, and read its registers and spills from the compiled code.

    python -m monosem.kernels.gpu.compile [--json]

A module of this folder takes part by defining `specs(shape)`, the kernels it would launch at that shape. What is
compiled is what a launch would compile: pointers aligned to 16 bytes, the block sizes and warps of that shape.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

log = logging.getLogger(__name__)


class Shape(NamedTuple):
    """Width of the rows, latents, codes a row, rows a batch."""

    d: int
    n: int
    k: int
    batch: int


class Spec(NamedTuple):
    """One kernel as it is launched at one shape.

    Args:
        label: what the kernel does, for the table.
        kernel: the `triton.jit` function.
        signature: the type of every parameter in order: "*fp32", "*i32", "i64", "fp32", "constexpr" ...
        constants: the value of every "constexpr" parameter.
    """

    label: str
    kernel: Any
    signature: dict[str, str]
    constants: dict[str, object]
    warps: int = 4
    stages: int = 2


class Resources(NamedTuple):
    """Resources of one compiled kernel on the GPU.

    Registers a thread, bytes a thread of the stack that holds spilled registers, bytes of shared memory a block, and
    instructions that multiply matrices on tensor cores.
    """

    label: str
    kernel: str
    registers: int
    spilled_bytes: int
    shared_bytes: int
    matrix_instructions: int


SHAPES = (
    Shape(768, 24576, 32, 8192),
    Shape(2304, 65536, 64, 8192),
    Shape(4096, 131072, 64, 8192),
    Shape(4096, 1048576, 64, 4096),
)
"""The shapes at which every kernel must compile without spilling a register."""

CAPABILITY = 90
"""Compute capability times ten: Hopper."""

INTERPRETED = "kernels cannot be compiled while TRITON_INTERPRET is set: unset it"


def modules() -> list[ModuleType]:
    """The modules of this folder that define `specs`, in alphabetical order."""
    stems = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in ("__init__", "compile"))
    imported = [importlib.import_module(f"{__package__}.{stem}") for stem in stems]
    return [module for module in imported if hasattr(module, "specs")]


def inspect(spec: Spec) -> Resources:
    """Compile one kernel for Hopper and read its registers and stack from the machine code.

    Raises:
        RuntimeError: the interpreter is on, so that there is nothing to compile.
    """
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        raise RuntimeError(INTERPRETED)
    signature, constants = tuple(spec.signature.items()), tuple(spec.constants.items())
    return _compiled(spec.kernel, signature, constants, spec.warps, spec.stages)._replace(label=spec.label)


@cache
def _compiled(kernel: Any, signature: Any, constants: Any, warps: int, stages: int) -> Resources:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    pointers = [place for place, (_, kind) in enumerate(signature) if kind.startswith("*")]
    attributes = {(place,): [["tt.divisibility", 16]] for place in pointers}
    built = triton.compile(
        ASTSource(kernel, dict(signature), dict(constants), attributes),
        target=GPUTarget("cuda", CAPABILITY, 32),
        options={"num_warps": warps, "num_stages": stages},
    )
    usage = _usage(built.asm["cubin"])
    registers, stack, local = (int(re.findall(rf"{name}:(\d+)", usage)[0]) for name in ("REG", "STACK", "LOCAL"))
    return Resources(
        label="",
        kernel=kernel.__name__,
        registers=registers,
        spilled_bytes=stack + local,
        shared_bytes=built.metadata.shared,
        matrix_instructions=len(
            re.findall(r"^\s*(?:@%p\d+ )?(?:wgmma\.mma_async|mma)\.", built.asm["ptx"], re.MULTILINE)
        ),
    )


def _usage(cubin: bytes) -> str:
    """Resource usage of a compiled kernel, by the tool that Triton carries."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", str(path)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout + done.stderr


def report(shapes: tuple[Shape, ...] = SHAPES) -> list[dict[str, Any]]:
    """Every kernel of every module at every shape: its `Resources`, with the module and the shape."""
    rows = []
    for module in modules():
        for shape in shapes:
            for spec in module.specs(shape):
                start, name = time.monotonic(), module.__name__.rpartition(".")[2]
                rows.append({"module": name, "shape": shape._asdict(), **inspect(spec)._asdict()})
                log.info("%s: %s at %s, %.1f s", name, spec.label, tuple(shape), time.monotonic() - start)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The report as a markdown table."""
    names = ("registers", "spilled_bytes", "shared_bytes", "matrix_instructions")
    lines = [f"| kernel | d, n, k, batch | {' | '.join(name.replace('_', ' ') for name in names)} |"]
    lines.append("| --- | --- |" + " ---: |" * len(names))
    for row in rows:
        shape = ", ".join(map(str, row["shape"].values()))
        lines.append(f"| {row['module']}: {row['label']} | {shape} | {' | '.join(str(row[name]) for name in names)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        rows = report()
    except RuntimeError as error:
        if str(error) != INTERPRETED:
            raise
        sys.exit(f"compile: {error}")
    sys.stdout.write((json.dumps(rows) if "--json" in sys.argv[1:] else table(rows)) + "\n")
