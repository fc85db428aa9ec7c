"""Saving and loading: a directory with `dictionary.safetensors` and `dictionary.json` (schema 1), JSON last.

dictionary.json: {schema, architecture, config, provenance, sha256 of the tensor file}.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..lab.errors import InputError, unknown
from ..lab.storage import file_sha256, read_json, read_tensors, write_json, write_tensors
from .abstopk import AbsTopK
from .baselines import PCA, Neurons
from .batchtopk import BatchTopK
from .clt.cross_layer import CrossLayer, CrossLayerConfig
from .dictionary import Dictionary, DictionaryConfig, Provenance
from .gated import Gated
from .groupmax import GroupMax, GroupMaxConfig
from .itda.dictionary import ITDA, ITDAConfig
from .jumprelu import JumpReLU, JumpReLUConfig
from .linear import Linear
from .matching_pursuit import MatchingPursuit, MatchingPursuitConfig
from .matryoshka import Matryoshka, MatryoshkaConfig
from .relu import ReLU, ReLUConfig
from .sae import PenaltyConfig, SAEConfig, SparseAutoencoder
from .topk import TopK

SCHEMA = 1
WEIGHTS, DESCRIPTION = "dictionary.safetensors", "dictionary.json"

Kind = TypeVar("Kind", bound=Dictionary)

TRAINABLE: dict[str, tuple[type[SparseAutoencoder], type[DictionaryConfig]]] = {
    "topk": (TopK, SAEConfig),
    "batchtopk": (BatchTopK, SAEConfig),
    "abstopk": (AbsTopK, SAEConfig),
    "groupmax": (GroupMax, GroupMaxConfig),
    "matryoshka": (Matryoshka, MatryoshkaConfig),
    "mp": (MatchingPursuit, MatchingPursuitConfig),
    "relu": (ReLU, ReLUConfig),
    "gated": (Gated, PenaltyConfig),
    "jumprelu": (JumpReLU, JumpReLUConfig),
}
"""Every architecture that a `Trainer` trains, by name: its class and its config."""

ARCHITECTURES: dict[str, tuple[type[Dictionary], type[DictionaryConfig]]] = {
    **TRAINABLE,
    "pca": (PCA, SAEConfig),
    "neurons": (Neurons, SAEConfig),
    "linear": (Linear, SAEConfig),
    "clt": (CrossLayer, CrossLayerConfig),
    "itda": (ITDA, ITDAConfig),
}
"""Every architecture that can be built by name: its class and its config."""


def build(architecture: str, **config: Any) -> Dictionary:
    """A dictionary with zero weights, by architecture name and config fields.

    Raises:
        InputError: an unknown architecture, a field its config has not, or a value the config refuses.
    """
    if architecture not in ARCHITECTURES:
        raise unknown("architecture", architecture, ARCHITECTURES)
    return _built(architecture, *ARCHITECTURES[architecture], config)


def build_trainable(architecture: str, **config: Any) -> SparseAutoencoder:
    """As `build`, for what a `Trainer` takes.

    Raises:
        InputError: as `build`, or an architecture that is fitted in closed form and not trained.
    """
    if architecture in ARCHITECTURES and architecture not in TRAINABLE:
        raise InputError(f"architecture {architecture!r} cannot be trained: give {' or '.join(TRAINABLE)}")
    if architecture not in TRAINABLE:
        raise unknown("architecture", architecture, TRAINABLE)
    if not config.get("centre_input", True) and config.get("d_out") is None:
        raise InputError("centre_input=False is for dictionaries of other libraries: training subtracts b_dec")
    return _built(architecture, *TRAINABLE[architecture], config)


def _built(architecture: str, kind: type[Kind], config_type: type[DictionaryConfig], config: dict[str, Any]) -> Kind:
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
        "sha256": file_sha256(folder / WEIGHTS),
    }
    write_json(folder / DESCRIPTION, description)
    return folder


def load(folder: Path | str) -> Dictionary:
    """Read a dictionary: a directory of ours, or a folder or file of another library, told by its files (`formats`).

    `hf:ORG/REPO[/FOLDER][@REVISION]` is one on the Hugging Face hub, `sae-lens:RELEASE/ID` one of SAELens' registry.

    Raises:
        InputError: no dictionary, another schema, an unknown architecture, weights that are not the ones described,
            or shapes that disagree with the config; the sentence names the file. From another library also what this
            one could not hold; `formats.read(..., lossy=True)` goes on.
    """
    from .formats import located, read

    if str(folder).startswith("sae-lens:"):
        return read(folder)
    folder = located(folder)
    if not (folder / DESCRIPTION).is_file():
        return read(folder)
    description = read_json(folder / DESCRIPTION, "dictionary description")
    if not isinstance(description, dict) or description.get("schema") != SCHEMA:
        schema = description.get("schema") if isinstance(description, dict) else None
        raise InputError(f"{folder / DESCRIPTION} has schema {schema!r}, this version reads {SCHEMA}")
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
        dictionary.provenance = Provenance(**description["provenance"])
        return dictionary, description["sha256"]
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise InputError(f"{path}: an entry is missing or of the wrong type ({error})") from error


def _check_shapes(path: Path, found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    if found.keys() != expected.keys():
        raise InputError(f"{path} holds tensors {sorted(found)}, expected {sorted(expected)}")
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape:
            raise InputError(f"{path}: {name} has shape {tuple(found[name].shape)}, expected {tuple(tensor.shape)}")
        if not torch.isfinite(found[name]).all():
            raise InputError(f"{path}: {name} holds values that are not finite")
