"""Loading: directories of ours, of other libraries, on the hub, and by released names.

A directory of ours holds `dictionary.safetensors` and `dictionary.json` (see `Dictionary.save`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..lab.errors import InputError
from ..lab.storage import file_sha256, read_json, read_tensors
from .dictionary import DESCRIPTION, WEIGHTS, Dictionary, Provenance
from .formats import RELEASED, located, read, recognise
from .place_files import SCHEMA, read_origin
from .registry import build


def load(folder: Path | str) -> Dictionary:
    """Read a dictionary: a folder of ours, of a run with one, or a folder or file of another library (see `formats`).

    `hf:ORG/REPO[/FOLDER][@REVISION]` is one on the Hugging Face hub, `sae-lens:RELEASE/ID` one of SAELens' registry.

    Raises:
        InputError: no dictionary, a run with several (names them), another schema, an unknown architecture, weights
            that are not the ones described, or shapes that disagree with the config; the sentence names the file. From
            another library also what this one could not hold; `formats.read(..., lossy=True)` goes on.
    """
    if str(folder).startswith(RELEASED):
        return read(folder)
    folder = of_run(located(folder))
    if not (folder / DESCRIPTION).is_file():
        return read(folder)
    description = read_json(folder / DESCRIPTION, "dictionary description")
    if not isinstance(description, dict) or description.get("schema") not in (1, SCHEMA):
        schema = description.get("schema") if isinstance(description, dict) else None
        raise InputError(f"{folder / DESCRIPTION} has schema {schema!r}, this version reads 1 and {SCHEMA}")
    dictionary, sha256 = _described(folder / DESCRIPTION, description)
    tensors = read_tensors(folder / WEIGHTS, "dictionary weight file")
    if file_sha256(folder / WEIGHTS) != sha256:
        raise InputError(
            f"{folder / WEIGHTS} is not the file its description was written for: restore both from one save"
        )
    _check_shapes(folder / WEIGHTS, tensors, dictionary.tensors())
    dictionary.load_state_dict(tensors)
    return dictionary


def _described(path: Path, description: dict[str, Any]) -> tuple[Dictionary, str]:
    """The dictionary of a description, with zero weights, and the SHA-256 of its weight file."""
    try:
        dictionary = build(description["architecture"], **description["config"])
        dictionary.place, provenance = read_origin(description, dictionary.place)
        dictionary.provenance = Provenance(**provenance)
        return dictionary, description["sha256"]
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise InputError(f"{path}: an entry is missing or of the wrong type ({error})") from error


def _check_shapes(path: Path, tensors: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    if tensors.keys() != expected.keys():
        raise InputError(f"{path} holds tensors {sorted(tensors)}, expected {sorted(expected)}")
    for name, tensor in expected.items():
        if tensors[name].shape != tensor.shape:
            raise InputError(f"{path}: {name} has shape {tuple(tensors[name].shape)}, expected {tuple(tensor.shape)}")
        if not torch.isfinite(tensors[name]).all():
            raise InputError(f"{path}: {name} holds values that are not finite")


def of_run(path: Path) -> Path:
    """The folder of the one dictionary that a run holds; `path` itself where it is no run with dictionaries.

    Raises:
        InputError: the run holds several; names them.
    """
    if (path / DESCRIPTION).is_file():
        return path
    inside = sorted(entry.parent for entry in path.glob(f"dictionaries/*/{DESCRIPTION}"))
    if len(inside) > 1:
        names = ", ".join(map(str, inside))
        raise InputError(f"{path} is not the folder of one dictionary: {names}; give the folder with {DESCRIPTION}")
    return inside[0] if inside else path


def find_dictionary(path: Path) -> tuple[Path, Dictionary]:
    """A dictionary as `load` reads it, with its own folder; a released name (`sae-lens:`) comes back as it is.

    Raises:
        InputError: there is none, or more than one; names them.
    """
    if str(path).startswith(RELEASED):
        return path, load(path)
    folder = of_run(located(path))
    if not (folder / DESCRIPTION).is_file() and recognise(folder) is None:
        if (path / "config.json").is_file() and (path / "timing.jsonl").is_file():
            raise InputError(f"{path} is a run that has written no dictionary yet: continue it with --resume")
        nothing = "none inside" if path.is_dir() else "it is a file" if path.exists() else "there is nothing"
        raise InputError(f"{path} is not the folder of one dictionary: {nothing}; give the folder with {DESCRIPTION}")
    return folder, load(folder)
