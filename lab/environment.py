"""The record of versions and hardware that a result was computed on: libraries and hardware."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

import torch

PACKAGES = ("monosem", "torch", "transformers", "safetensors", "numpy")


def versions() -> dict[str, str]:
    """Of Python and the libraries that decide the numbers."""
    by_package = {"python": platform.python_version()}
    for package in PACKAGES:
        by_package[package] = importlib.metadata.version(package)
    return by_package


def hardware() -> dict[str, Any]:
    """Describe the hardware that runs."""
    return {
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerators": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }
