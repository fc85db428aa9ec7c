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

PREFIX = re.compile(r"^(?:(?:_orig_mod|module)\.)+")
"""Prefixes that `torch.compile` and data parallelism leave before the names of parameters, one or both."""
CHECKPOINTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Files that hold the weights or name the files that do; the first that a folder has is read."""
TOKENIZER = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
"""Files that are read beside a tokenizer of any kind."""
VOCABULARY = ("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
"""Files that are read where there is no `tokenizer.json`."""
POINTER = b"version https://git-lfs"
SHOWN = 3
"""Names that an error lists."""


def check_files(folder: Path, tokenizer: bool = True) -> None:
    """Refuse a folder whose weights or tokenizer are pointers, empty or cut; files that are not read may be anything.

    `tokenizer.json` is not parsed here, which would take longer than all else: see `check_tokenizer_json`.

    Args:
        tokenizer: the folder's tokenizer is read too.

    Raises:
        InputError: names the file and the reason.
    """
    weights = next((name for name in CHECKPOINTS if (folder / name).is_file()), None)
    names = ["config.json", *([weights] if weights else [])]
    if tokenizer:
        vocabulary = ("tokenizer.json",) if (folder / "tokenizer.json").is_file() else VOCABULARY
        names += [name for name in (*TOKENIZER, *vocabulary) if (folder / name).is_file()]
    _require_undamaged(folder, names)
    if weights and weights.endswith(".index.json"):
        _require_undamaged(folder, _shards(folder / weights))


def check_tokenizer_json(folder: Path) -> None:
    """Refuse a folder whose `tokenizer.json` is cut, for a tokenizer that could not be read.

    Raises:
        InputError: names the file and the reason.
    """
    path = folder / "tokenizer.json"
    if path.is_file() and (reason := _no_json(path)):
        raise InputError(f"{path} {reason}")


def _require_undamaged(folder: Path, names: Collection[str]) -> None:
    for path in (folder / name for name in names):
        if reason := _damage(path):
            raise InputError(f"{path} {reason}")


def _shards(index: Path) -> list[str]:
    """The files that an index names, all of them there."""
    content = json.loads(index.read_text())
    named = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
        raise InputError(f"{index} has no weight_map from tensors to files: download it again")
    shards = sorted(set(named.values()))
    if missing := [name for name in shards if not (index.parent / name).is_file()]:
        raise InputError(
            f"{index.parent} lacks {', '.join(missing)}, which {index.name} names: download the whole model"
        )
    return shards


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
    if path.suffix == ".json" and path.name != "tokenizer.json":
        return _no_json(path)
    if path.suffix == ".bin" and not zipfile.is_zipfile(path):
        if head.startswith(b"PK"):
            return f"is cut after {size:,} bytes: download it again"
        if not head.startswith(b"\x80"):  # neither a zip archive nor a pickle, which older files are
            return "is no file that torch.save wrote: download it again"
    return None


def _no_json(path: Path) -> str | None:
    try:
        json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        return f"is not valid JSON ({error}): it is cut or damaged, download it again"
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
    prefix = next((found[0] for name in sorted(report["unexpected_keys"]) if (found := PREFIX.match(name))), None)
    if report["missing_keys"] and prefix is not None:
        module, report = _load(model_class, place, {**options, "key_mapping": {PREFIX.pattern: ""}})
        log.warning("the weights of %s are named with the prefix %s, which is left out", place, prefix)
    _require_whole(module, report, place)
    return module


def _load(model_class: Any, place: str, options: Mapping[str, Any]) -> tuple[Any, Mapping[str, Collection[Any]]]:
    return model_class.from_pretrained(place, output_loading_info=True, ignore_mismatched_sizes=True, **options)


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
