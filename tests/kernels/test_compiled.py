"""A compiled CPU loop gives the same bytes in the process that compiles it and in one that loads it from the cache."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import monosem.kernels.cpu.compiled as compiled_loops
import pytest

FOLDER = Path(compiled_loops.__file__).parent

LOOP = """
import hashlib
import numpy as np
from monosem.kernels.cpu.compiled import compiled
from monosem.kernels.cpu.update import AdamStep, adam_row

@compiled
def rows(start, stop, p, g, m, v, step):
    for r in range(start, stop):
        adam_row(p[r], g[r], m[r], v[r], step.beta1, step.beta2, step)

def result():
    random = np.random.default_rng(0)
    p, g, m, v = random.random((4, 40, 50), np.float32)
    step = AdamStep(*map(np.float32, (1e-3, 0.9, 0.999, 0.1, 0.001, 1e-8)), 1)
    rows(0, 40, p, g, m, v, step)
    return hashlib.sha256(b"".join((p, m, v))).hexdigest(), sum(rows.stats.cache_hits.values())
"""


def load(path: Path) -> Any:
    """The module of a file, executed anew."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def loop(tmp_path: Path) -> Path:
    """A file whose loop numba caches beside it, in an empty folder."""
    path = tmp_path / "adam_loop.py"
    path.write_text(LOOP)
    return path


def test_the_process_that_compiles_and_the_one_that_loads_agree(loop: Path) -> None:
    compiling, hits = load(loop).result()
    assert hits == 0
    script = "from adam_loop import result; print(*result())"
    loading = subprocess.run(
        [sys.executable, "-c", script], cwd=loop.parent, check=True, capture_output=True, text=True
    )
    assert loading.stdout.split() == [compiling, "1"]


def test_a_loop_is_compiled_again_where_a_helper_in_another_file_has_changed(
    loop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [load(loop).result()[1] for _ in range(2)] == [0, 1]
    monkeypatch.setattr(compiled_loops, "_source_digest", lambda: "of other sources")
    assert load(loop).result()[1] == 0


def test_every_loop_is_compiled_by_the_two_decorators_and_calls_inlined_helpers_only() -> None:
    kinds, calls = {}, {}
    for path in FOLDER.glob("*.py"):
        if path.name != "compiled.py":
            assert "njit" not in path.read_text(), path
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.decorator_list:
                kind = ast.unparse(node.decorator_list[0]).split("(")[0]
                if kind in ("compiled", "inlined"):
                    names = {
                        part.func.id
                        for part in ast.walk(node)
                        if isinstance(part, ast.Call) and isinstance(part.func, ast.Name)
                    }
                    kinds[path.stem, node.name], calls[path.stem, node.name] = kind, names
    entries = {name for (_, name), kind in kinds.items() if kind == "compiled"}
    helpers = {name for (_, name), kind in kinds.items() if kind == "inlined"}
    assert len(entries) > 15 and len(helpers) > 25
    assert {place: names & entries - helpers for place, names in calls.items() if names & entries - helpers} == {}
