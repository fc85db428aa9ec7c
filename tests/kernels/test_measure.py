"""The GPU script runs from start to end in a bare checkout: no installation, no jaxtyping, no numba."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
ABSENT = ("monosem", "__editable__", "jaxtyping", "numba", "tyro", "pytest")


@pytest.fixture(scope="module")
def bare_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Installed packages without this one and without those the script must do without."""
    folder = tmp_path_factory.mktemp("site")
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not entry.name.startswith(ABSENT) and entry.suffix != ".pth":
            (folder / entry.name).symlink_to(entry)
    return folder


def test_the_plan_runs_dry(bare_site: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan.md"
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(bare_site)}
    command = [sys.executable, "-S", "kernels/measure", "--dry", "--tests", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    text = out.read_text()
    assert done.returncode == 0, done.stderr[-2000:] + text
    assert done.stdout == text
    assert "failed" not in text and "DIFFER" not in text and "tests not run: there is no pytest" in text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line[:1] == "|"]
    told = {row[0].split(",")[0] for row in rows[2:]}
    assert told >= {"copy", "product", "topk float32", "decode_residual", "latent_step", "step", "dense eager step"}
    assert {len(row) for row in rows} == {9}
    errors = [float(found) for found in re.findall(r"error (\d\.\de[+-]\d+)", text)]
    assert errors and max(errors) < 1e-5


def broken_checkout(tmp_path: Path, body: str) -> Path:
    """The kernels alone, with a copy section that runs `body`."""
    root = tmp_path / "checkout"
    shutil.copytree(ROOT / "kernels", root / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    path = root / "kernels" / "measure" / "operations.py"
    text = path.read_text()
    line = '    """Bytes/s of a copy of 4 GiB, read and written bytes both counted."""\n'
    assert line in text
    text = text.replace(line, line + f"    {body}\n")
    start = text.index('    return [\n        ("ceilings"')
    path.write_text(text[:start] + '    return [("ceilings", 45, [("copy", partial(copy_rate, session))])]\n\n\n' +
                    text[text.index("def copy_rate"):])  # fmt: skip
    steps = root / "kernels" / "measure" / "steps.py"
    steps.write_text(steps.read_text().replace('    """Title, budget in seconds and parts of each section."""\n',
                                               "    return []\n", 1))  # fmt: skip
    return root


@pytest.mark.parametrize("body", ['raise RuntimeError("broken on purpose")', "import os; os._exit(139)"])
def test_a_section_that_fails_or_dies_stands_in_the_table(tmp_path: Path, body: str) -> None:
    root, out = broken_checkout(tmp_path, body), tmp_path / "plan.md"
    command = [sys.executable, "kernels/measure", "--dry", "--out", str(out)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr[-2000:]
    assert "| failed |" in out.read_text() and "- failed: ceilings" in out.read_text() == done.stdout


def test_without_a_gpu_it_says_how_to_try_it(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    command = [sys.executable, "kernels/measure", "--out", str(tmp_path / "plan.md")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "give --dry" in done.stderr and not (tmp_path / "plan.md").exists()
