"""Every GPU kernel compiles for Hopper, without a GPU, and keeps its values in registers."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

GPU = Path(__file__).parents[2] / "kernels" / "gpu"


def compiled(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_DEFAULT_FP_FUSION"] = "1"
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    done = compiled("-m", "monosem.kernels.gpu.compile", "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def launched(path: Path) -> set[str]:
    """Names of the kernels that a file defines and launches: those in `name[grid](...)`."""
    tree = ast.parse(path.read_text())
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.decorator_list}
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    subscripted = [call.value for call in calls if isinstance(call, ast.Subscript)]
    return defined & {name.id for name in subscripted if isinstance(name, ast.Name)}


def test_no_kernel_spills_at_any_shape(rows: list[dict[str, Any]]) -> None:
    spilling = [
        (row["module"], row["label"], row["shape"], row["spilled_bytes"]) for row in rows if row["spilled_bytes"]
    ]
    assert not spilling
    assert all(0 < row["registers"] <= 255 and row["shared_bytes"] <= 227 * 1024 for row in rows)


def test_every_kernel_that_is_launched_is_compiled(rows: list[dict[str, Any]]) -> None:
    assert len({tuple(row["shape"].values()) for row in rows}) == 4
    assert {row["kernel"] for row in rows} >= set().union(*map(launched, GPU.glob("*.py")))


PROBE = """
import triton, triton.language as tl
from monosem.kernels.gpu.compile import Spec, inspect

@triton.jit
def turn(x, y, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(y + at, tl.flip(tl.load(x + at)) * tl.load(x + at))

def spec(n):
    return Spec("turn", turn, {"x": "*fp32", "y": "*fp32", "N": "constexpr"}, {"N": n}, warps=1)
print(inspect(spec(64)).spilled_bytes, inspect(spec(16384)).spilled_bytes, inspect(spec(64)).registers)
"""


def test_a_kernel_that_spills_is_caught(tmp_path: Path) -> None:
    script = tmp_path / "probe.py"
    script.write_text(PROBE)
    done = compiled(str(script))
    assert done.returncode == 0, done.stderr[-3000:]
    small, large, registers = map(int, done.stdout.split())
    assert small == 0 and large > 0 and 0 < registers <= 255


def test_the_interpreter_is_refused() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "monosem.kernels.gpu.compile"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "TRITON_INTERPRET is set: unset it" in done.stderr
