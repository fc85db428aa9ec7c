"""Shared fixtures. No test reaches the network."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
if not os.path.exists("/dev/nvidia0"):
    os.environ["TRITON_INTERPRET"] = "1"  # kernels run on CPU tensors
sys.path.insert(0, str(Path(__file__).parent / "support"))

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def smollm2():
    """The embedded model, in fp32, loaded once."""
    from monosem.lab.models.loading import load_model

    return load_model("smollm2-135m", dtype="fp32", device="cpu")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The notebooks first: they take longest, and another worker does the rest meanwhile."""
    items.sort(key=lambda item: item.path.name != "test_notebooks.py")
