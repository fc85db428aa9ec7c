"""Compile every GPU kernel for Hopper without a GPU, and read its registers and spills from the machine code.

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
    """What one compiled kernel takes of the GPU: registers a thread, spill loads and stores in its code, bytes of
    shared memory a block, instructions in all, and how many of them multiply matrices on tensor cores."""

    label: str
    kernel: str
    registers: int
    spills: int
    shared_bytes: int
    instructions: int
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


def modules() -> list[ModuleType]:
    """The modules of this folder that define `specs`, in alphabetical order."""
    stems = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in ("__init__", "compile"))
    found = [importlib.import_module(f"{__package__}.{stem}") for stem in stems]
    return [module for module in found if hasattr(module, "specs")]


def inspect(spec: Spec) -> Resources:
    """Compile one kernel for Hopper and count registers and spills in its machine code.

    Raises:
        RuntimeError: the interpreter is on, so that there is nothing to compile.
    """
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        raise RuntimeError("kernels cannot be compiled while TRITON_INTERPRET is set: unset it")
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
    usage, code = _disassembled(built.asm["cubin"])
    opcodes = re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", code, flags=re.MULTILINE)
    return Resources(
        label="",
        kernel=kernel.__name__,
        registers=int(re.findall(r"REG:(\d+)", usage)[0]),
        spills=sum(opcode.split(".")[0] in ("LDL", "STL") for opcode in opcodes),
        shared_bytes=built.metadata.shared,
        instructions=len(opcodes),
        matrix_instructions=sum("MMA" in opcode for opcode in opcodes),
    )


def _disassembled(cubin: bytes) -> tuple[str, str]:
    """Resource usage and machine code of a compiled kernel, from the disassembler that Triton carries."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        commands = [[knobs.nvidia.cuobjdump.path, option, str(path)] for option in ("-res-usage", "-sass")]
        done = [subprocess.run(command, check=True, capture_output=True, text=True) for command in commands]
    return done[0].stdout + done[0].stderr, done[1].stdout


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
    names = ("registers", "spills", "shared_bytes", "instructions", "matrix_instructions")
    lines = [f"| kernel | d, n, k, batch | {' | '.join(name.replace('_', ' ') for name in names)} |"]
    lines.append("| --- | --- |" + " ---: |" * len(names))
    for row in rows:
        shape = ", ".join(map(str, row["shape"].values()))
        lines.append(f"| {row['module']}: {row['label']} | {shape} | {' | '.join(str(row[name]) for name in names)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    rows = report()
    sys.stdout.write((json.dumps(rows) if "--json" in sys.argv[1:] else table(rows)) + "\n")
