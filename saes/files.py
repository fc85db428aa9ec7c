"""Saving and loading: a directory with `dictionary.safetensors` and `dictionary.json` (schema 1), JSON last.

dictionary.json: {schema, architecture, config, provenance, sha256 of the tensor file, monosem version}.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from ..lab.errors import InputError, unknown
from ..lab.storage import read_json, read_tensors, write_json, write_tensors
from .baselines import PCA, Neurons
from .batchtopk import BatchTopK
from .dictionary import Dictionary, DictionaryConfig, Provenance
from .sae import SAEConfig
from .topk import TopK

SCHEMA = 1
WEIGHTS, DESCRIPTION = "dictionary.safetensors", "dictionary.json"

ARCHITECTURES: dict[str, tuple[type[Dictionary], type[DictionaryConfig]]] = {
    "topk": (TopK, SAEConfig),
    "batchtopk": (BatchTopK, SAEConfig),
    "pca": (PCA, SAEConfig),
    "neurons": (Neurons, SAEConfig),
}
"""Every architecture that can be built by name: its class and its config."""


def build(architecture: str, **config: Any) -> Dictionary:
    """A dictionary with zero weights, by architecture name and config fields."""
    if architecture not in ARCHITECTURES:
        raise unknown("architecture", architecture, ARCHITECTURES)
    kind, config_type = ARCHITECTURES[architecture]
    allowed = [field.name for field in fields(config_type)]
    for name in config:
        if name not in allowed:
            raise unknown(f"{architecture} config field", name, allowed)
    return kind(config_type(**config))


def save(dictionary: Dictionary, folder: Path | str) -> Path:
    """Write `dictionary` into `folder`, which is created. The description is written last."""
    folder = Path(folder)
    write_tensors(folder / WEIGHTS, dictionary.tensors())
    description = {
        "schema": SCHEMA,
        "architecture": dictionary.architecture,
        "config": asdict(dictionary.config),
        "provenance": asdict(dictionary.provenance),
        "sha256": _sha256(folder / WEIGHTS),
    }
    write_json(folder / DESCRIPTION, description)
    return folder


def load(folder: Path | str) -> Dictionary:
    """Read a dictionary directory.

    Raises:
        InputError: not a dictionary directory, another schema, an unknown architecture, weights that are not the
            ones described, or shapes that disagree with the config; the sentence names the file.
    """
    folder = Path(folder)
    if not (folder / DESCRIPTION).is_file():
        raise InputError(f"{folder} holds no dictionary: {DESCRIPTION} is missing; give the directory that was saved")
    description = read_json(folder / DESCRIPTION, "dictionary description")
    if not isinstance(description, dict) or description.get("schema") != SCHEMA:
        schema = description.get("schema") if isinstance(description, dict) else None
        raise InputError(f"{folder / DESCRIPTION} has schema {schema!r}, this version reads {SCHEMA}")
    dictionary = build(description["architecture"], **description["config"])
    tensors = read_tensors(folder / WEIGHTS, "dictionary weight file")
    if _sha256(folder / WEIGHTS) != description["sha256"]:
        raise InputError(
            f"{folder / WEIGHTS} is not the file its description was written for: restore both from one save"
        )
    _check_shapes(folder / WEIGHTS, tensors, dictionary.tensors())
    dictionary.load_state_dict(tensors)
    dictionary.provenance = Provenance(**description["provenance"])
    return dictionary


def _check_shapes(path: Path, found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    if found.keys() != expected.keys():
        raise InputError(f"{path} holds tensors {sorted(found)}, expected {sorted(expected)}")
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape:
            raise InputError(f"{path}: {name} has shape {tuple(found[name].shape)}, expected {tuple(tensor.shape)}")
        if not torch.isfinite(found[name]).all():
            raise InputError(f"{path}: {name} holds values that are not finite")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
