"""Weights of a checkpoint, whole or not at all: a tensor that is not in the files would be random.

Files are looked at first, so that a pointer or a download that was cut is named. Then transformers loads them, and its
report decides: a parameter that the files lack is an error, unless a known prefix hides it.
"""

from __future__ import annotations

import json
import logging
import re
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError

log = logging.getLogger(__name__)

PREFIXES = ("_orig_mod.", "module.")
"""Prefixes that `torch.compile` and data parallelism leave before the names of parameters."""
READ = ("model*.safetensors", "pytorch_model*.bin", "config.json", "tokenizer.json", "tokenizer.model")
"""Files that are read of a model folder."""
POINTER = b"version https://git-lfs"
SHOWN = 3
"""Names that an error lists."""


def check_files(folder: Path) -> None:
    """Refuse a folder whose weights or tokenizer are pointers, empty or cut.

    Raises:
        InputError: names the file and the reason.
    """
    for path in sorted(path for pattern in READ for path in folder.glob(pattern)):
        if reason := _damage(path):
            raise InputError(f"{path} {reason}")
    for index in folder.glob("*.index.json"):
        named = set(json.loads(index.read_text()).get("weight_map", {}).values())
        if missing := sorted(name for name in named if not (folder / name).is_file()):
            raise InputError(f"{folder} lacks {', '.join(missing)}, which {index.name} names: download the whole model")


def _damage(path: Path) -> str | None:
    """The reason for which a file cannot be read, or None."""
    size = path.stat().st_size
    if not size:
        return "is empty: download it again"
    with open(path, "rb") as file:
        head = file.read(64)
        if head.startswith(POINTER):
            return "is a git-lfs pointer, not the file itself: run git lfs pull in its folder"
        if path.suffix == ".safetensors":
            return _cut_safetensors(head, size, file)
    if path.suffix == ".json":
        try:
            json.loads(path.read_text())
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            return f"is not valid JSON ({error}): it is cut or damaged, download it again"
    if path.suffix == ".bin" and not zipfile.is_zipfile(path):
        if head.startswith(b"PK"):
            return f"is cut after {size:,} bytes: download it again"
        if not head.startswith(b"\x80"):  # neither a zip archive nor a pickle, which older files are
            return "is no file that torch.save wrote: download it again"
    return None


def _cut_safetensors(head: bytes, size: int, file: Any) -> str | None:
    length = int.from_bytes(head[:8], "little")
    if size < 8 or length > size - 8:
        return f"is no whole safetensors file: its {size:,} bytes end within the header; download it again"
    file.seek(8)
    try:
        tensors = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for name, entry in tensors.items() if name != "__metadata__"]
    except (ValueError, TypeError, KeyError, AttributeError):
        return "is no safetensors file: its header cannot be read; download it again"
    if size - 8 - length < max(ends, default=0):
        return f"is cut: it has {size:,} bytes of {8 + length + max(ends):,}; download it again"
    return None


def read_weights(model_class: Any, place: str, **options: Any) -> Any:
    """The model with every weight from its files.

    Raises:
        InputError: parameters that the files lack, layers that the config has not, or another shape.
    """
    module, report = _load(model_class, place, options)
    prefix = _prefix(report)
    if prefix is not None:
        module, report = _load(model_class, place, {**options, "key_mapping": {f"^{re.escape(prefix)}": ""}})
        log.warning("the weights of %s are named with the prefix %s, which is left out", place, prefix)
    _require_whole(module, report, place)
    return module


def _load(model_class: Any, place: str, options: Mapping[str, Any]) -> tuple[Any, Mapping[str, Collection[Any]]]:
    return model_class.from_pretrained(place, output_loading_info=True, ignore_mismatched_sizes=True, **options)


def _prefix(report: Mapping[str, Collection[str]]) -> str | None:
    """The known prefix with which all missing parameters are there."""
    missing, unexpected = set(report["missing_keys"]), set(report["unexpected_keys"])
    for prefix in PREFIXES:
        if missing and {prefix + name for name in missing} <= unexpected:
            return prefix
    return None


def _require_whole(module: torch.nn.Module, report: Mapping[str, Collection[Any]], place: str) -> None:
    missing, unexpected = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    if report["mismatched_keys"]:
        name, has, wants = min(report["mismatched_keys"])
        raise InputError(
            f"{place} has {name} of shape {list(has)} where its config.json asks for {list(wants)}: give the config "
            "and the weights of one model"
        )
    if missing:
        beside = f", and has unexpected {_some(unexpected)}" if unexpected else ""
        raise InputError(
            f"{place} lacks the weights {_some(missing)}{beside}: they would be random; give the whole checkpoint, "
            "with the names that transformers saves"
        )
    own = {_pattern(name) for name in module.state_dict()}
    if further := [name for name in unexpected if _pattern(name) in own]:
        raise InputError(
            f"{place} holds weights that its config.json has no place for, {_some(further)}: give the config of the "
            "same model (number of layers)"
        )
    if unexpected:
        log.warning("%s holds weights that the model does not have: %s", place, _some(unexpected))


def _pattern(name: str) -> str:
    return re.sub(r"\d+", "*", name)


def _some(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"
