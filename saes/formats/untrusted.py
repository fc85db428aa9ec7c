"""Reading files that come from elsewhere: damage is an `InputError` naming the file, and nothing is ever unpickled."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...lab.errors import InputError
from ...lab.models.sites import Site
from ...lab.storage import read_json


def read_config(path: Path, kind: str) -> dict[str, Any]:
    """A JSON file that holds an object; numbers that are not finite become text.

    Raises:
        InputError: it is missing, damaged, or holds something else.
    """
    config = read_json(path, kind, finite=True)
    if not isinstance(config, dict):
        raise InputError(f"{path} is not a {kind}: it holds a {type(config).__name__}, expected an object")
    return config


def read_pt(path: Path) -> dict[str, Any]:
    """A torch file of tensors and plain values, read with `weights_only=True`.

    Raises:
        InputError: it is missing, damaged, holds objects that only unpickling could make, or is no dict.
    """
    if not path.is_file():
        raise InputError(f"no such torch file: {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the reader of a damaged file fails in whatever way the damage leads it
        if isinstance(error, pickle.UnpicklingError) and "Unsupported" in str(error):
            raise InputError(
                f"{path} needs unpickling, which can run code: save its state dict (tensors only) and give that"
            ) from None
        raise InputError(f"{path} is not a torch file of tensors: {_first_sentence(error)}") from None
    if not isinstance(state, dict):
        raise InputError(f"{path} holds a {type(state).__name__}, expected a state dict")
    return state


def read_npz(path: Path) -> dict[str, Tensor]:
    """A numpy archive of numbers.

    Raises:
        InputError: it is missing, damaged, or holds Python objects.
    """
    if not path.is_file():
        raise InputError(f"no such npz file: {path}")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: torch.from_numpy(np.ascontiguousarray(archive[name])) for name in archive.files}
    except Exception as error:  # as above
        raise InputError(f"{path} is not an npz file of numbers: {_first_sentence(error)}") from None


def _first_sentence(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].partition(". ")[0]


def number(path: Path, config: dict[str, Any], key: str) -> float:
    """A number of a config.

    Raises:
        InputError: the key is missing or is no number.
    """
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{path}: {key} is {value!r}, expected a number")
    return value


def known_site(name: object) -> str | None:
    """The text form of a site, None where the name is none that we know."""
    try:
        return str(Site.parse(name)) if isinstance(name, str) else None
    except InputError:
        return None
