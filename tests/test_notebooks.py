"""Every notebook runs from top to bottom in IPython, in this process and with one model."""

from pathlib import Path

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.fixture
def shell(loaded_once, tmp_path, monkeypatch):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    yield InteractiveShell.instance()
    InteractiveShell.clear_instance()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, shell):
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit notebooks without outputs"
    shown = []
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        done = shell.run_cell(cell.source)
        done.raise_error()
        if done.result is not None:
            shown.append(shell.display_formatter.format(done.result)[0])
    assert shown and all("text/plain" in bundle for bundle in shown if bundle)
