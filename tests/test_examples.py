"""The README's code and the examples run as they are printed, at smaller sizes, in one process with one model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))

SMALL = {
    "document_tokens=128": "document_tokens=128, heldout=0.2, batch_rows=4",
    "100_000": "4_096",
    "50_000": "4_096",
    "20_000": "4_096",
    "n_latents=4096": "n_latents=512",
    "LATENTS = 100_000, 4096": "LATENTS = 4_096, 512",
    "ROWS, LATENTS, TOKENS = 100_000, 4096, 8_192": "ROWS, LATENTS, TOKENS = 4_096, 512, 512",
    "2048\n": "512\n",
    "buffer=16_384": "buffer=2_048, batch=512",
    "tokens=4_096, ce_tokens=512": "tokens=512, ce_tokens=64, fit_tokens=256",
    "tokens=4_096": "tokens=512",
    "16_384": "1_024",
}
"""Sizes of the examples and those they run with here."""


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


def small(source: str) -> str:
    for size in sorted(SMALL, key=len, reverse=True):
        source = source.replace(size, SMALL[size])
    return source


@pytest.fixture(scope="module")
def workplace(loaded_once, tmp_path_factory):
    """An empty working folder, shared by the examples."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("examples"))
        yield


def run(source: str, path: Path) -> None:
    exec(compile(small(source), str(path), "exec"), {"__name__": "__main__", "__file__": str(path)})


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(path, workplace, capsys):
    if path == EXAMPLES[2]:
        assert Path("runs/first").is_dir(), "the third example reads what the first one trained"
    run(path.read_text(), path)
    assert capsys.readouterr().out.strip(), "an example shows something"


def test_the_code_of_the_readme_runs(workplace, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = python_blocks(README)
    assert blocks
    for block in blocks:
        run(block, README)
    assert "fvu" in capsys.readouterr().out
