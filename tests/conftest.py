"""Shared fixtures. No test reaches the network."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
# the workers share the cores: more threads than one each would spin while they wait for one another
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
sys.path.insert(0, str(Path(__file__).parent / "support"))

import pytest
import torch

if not torch.cuda.is_available():  # said before Triton is imported, which reads it then
    os.environ["TRITON_INTERPRET"] = "1"  # kernels run on CPU tensors
torch.set_num_threads(1)


def pytest_report_header() -> str:
    """Say where the kernels run."""
    return "Triton kernels: " + ("on the GPU" if torch.cuda.is_available() else "interpreted, torch has no GPU here")


@pytest.fixture(scope="session")
def smollm2():
    """The embedded model, in fp32, loaded once."""
    from monosem.lab.models.loading import load_model

    return load_model("smollm2-135m", dtype="fp32", device="cpu")


@pytest.fixture(scope="module")
def loaded_once():
    """`monosem.lab.load_model` returns one embedded model, in its default dtype, to every notebook and example."""
    import monosem.lab

    load_model = monosem.lab.load_model
    model = load_model("smollm2-135m")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "monosem.lab.load_model",
            lambda source, **options: model if source == "smollm2-135m" else load_model(source, **options),
        )
        yield


LONGEST = ("test_notebooks.py", "test_examples.py", "test_resume.py", "test_sweep.py", "test_bench.py")
"""Files that take longest: they start first, so that no worker waits for one of them at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))
