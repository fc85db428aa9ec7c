"""The check of a GPU's kernels before it is first trained on: once for a GPU, driver, torch, triton and source.

The result is kept in the cache folder, so that later runs read it. An operation that fails is refused on that device:
plain PyTorch runs for it, one warning says so, and the manifest of the run records it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
from pathlib import Path
from typing import Any

import torch

from ... import kernels
from ...kernels.dispatch import backend, refusals, refuse
from ...kernels.first_check import failures
from ..errors import InputError
from ..models.gguf import cache_dir
from ..storage import read_json, write_json

log = logging.getLogger(__name__)

_checked: dict[str, torch.device] = {}


def check_first(device: torch.device, again: bool = False) -> dict[str, str]:
    """Check the Triton kernels of `device` unless that was done before; refuse those that fail.

    Args:
        again: check even if the cache holds a result.

    Returns:
        What is wrong with each operation that fails; empty too where no Triton kernel runs.

    Raises:
        RuntimeError: an operation fails and the environment has MONOSEM_GPU_STRICT=1.
    """
    if backend(device) != "triton" or (str(device) in _checked and not again):
        return refusals(device)
    path = cache_dir() / "kernels" / f"{_key(device)}.json"
    found = None if again else _read(path)
    if found is None:
        log.info("checking the kernels on %s, once for this GPU and these versions", device)
        found = failures(device, "triton")
        try:
            write_json(path, {"device": _name(device), "failures": found})
        except (OSError, InputError) as error:  # a cache that cannot be written costs the check of the next run
            log.warning("the result of the kernel check is not kept: %s", error)
    _checked[str(device)] = device
    for operation, reason in found.items():
        refuse(device, operation, reason)
    return found


def kernel_record() -> dict[str, Any]:
    """Facts of a manifest: for every device that was checked, the operations that plain PyTorch runs, and why."""
    if not _checked:
        return {}
    return {"kernels": {name: {"reference": refusals(device)} for name, device in _checked.items()}}


def _read(path: Path) -> dict[str, str] | None:
    if not path.is_file():
        return None
    try:
        return dict(read_json(path, "kernel check")["failures"])
    except (InputError, KeyError, TypeError, ValueError):
        return None  # half a file or another program's: checked anew


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _key(device: torch.device) -> str:
    """Hash of everything that the result depends on."""
    source = hashlib.sha256()
    folder = Path(kernels.__path__[0])
    for path in sorted([*folder.glob("*.py"), *folder.glob("gpu/*.py")]):
        source.update(path.read_bytes())
    driver = Path("/proc/driver/nvidia/version")
    parts = [
        _name(device),
        driver.read_text().splitlines()[0] if driver.is_file() else "",
        torch.__version__,
        importlib.metadata.version("triton"),
        source.hexdigest(),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]
