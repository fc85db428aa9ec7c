"""How each family of released dictionaries is read: files, format, and what its files do not say."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ...lab.errors import InputError
from ...lab.storage import read_tensors
from ..dictionary import Dictionary
from . import circuit_tracer, dictionary_learning, gemma_scope, hub, llama_scope, sae_lens, state_dicts
from .format import Format
from .losses import Losses
from .portable import Portable, file_place
from .reading import converted
from .released import Released, resolve
from .table import Raw

EXPECTED = ("expected_average_only_in", True)
"""How SAELens says that activations were multiplied by a factor of the whole data set; True is of old versions."""


class Reader(NamedTuple):
    """One family."""

    files: tuple[str, ...]
    """In a folder of it; empty where the registry names a file."""
    load: Callable[[Path, Released], Raw]
    parse: Callable[[Raw, Losses, Released], Portable]


def _of(form: Format) -> Reader:
    """A format that says it all."""
    return Reader(form.files, lambda path, _: form.load(path), lambda raw, losses, _: form.parse(raw, losses))


def _scaled(portable: Portable, factor: float) -> Portable:
    """For activations as they are, where those of training were multiplied by `factor`; codes stay."""
    factors = {"W_enc": factor, "W_dec": 1 / factor, "b_dec": 1 / factor}
    tensors = {name: (tensor.double() * factors.get(name, 1.0)).float() for name, tensor in portable.tensors.items()}
    return replace(portable, tensors=tensors)


def _sae_lens(raw: Raw, losses: Losses, released: Released) -> Portable:
    """With the registry's normalisation, and its factor folded in."""
    name = "normalize_activations"
    config = raw.config | {key: value for key, value in released.overrides.items() if key == name}
    if released.factor is None or config.get(name) not in EXPECTED:
        return sae_lens.parse(raw._replace(config=config), losses)
    return _scaled(sae_lens.parse(raw._replace(config=config | {name: "none"}), losses), released.factor)


def _gemma_2(raw: Raw, losses: Losses, released: Released) -> Portable:
    """Dictionaries of embeddings were trained on them times sqrt(d); the repository's name tells the site."""
    portable = gemma_scope.parse(raw, losses)
    if "embedding" in released.path:
        return _scaled(portable, portable.d_in**-0.5)
    kind = {"res": "resid_post", "mlp": "mlp_add", "att": "z"}[released.repo.rsplit("-", 1)[1]]
    return _at(portable, f"{kind}.{_layer(released)}")


def _gemma_2_transcoder(raw: Raw, losses: Losses, released: Released) -> Portable:
    portable = gemma_scope.parse(raw, losses).as_transcoder()
    return _at(portable, None, f"mlp_add.{_layer(released)}")


def _load_gemma_3(path: Path, released: Released) -> Raw:
    """Some folders have no config; their path says what it would."""
    if (path / gemma_scope.CONFIG).is_file():
        return gemma_scope.load_second(path)
    layer = f"model.layers.{_layer(released)}"
    config = {"architecture": "jump_relu", "model_name": released.model}
    if "transcoder" in released.path:
        config |= {"hf_hook_point_in": f"{layer}.pre_feedforward_layernorm.output",
                   "hf_hook_point_out": f"{layer}.post_feedforward_layernorm.output"}  # fmt: skip
    weights = path / gemma_scope.WEIGHTS
    return Raw(weights, read_tensors(weights, "Gemma Scope 2 weight file"), config)


def _distilled(raw: Raw, losses: Losses, released: Released) -> Portable:
    """The registry's factor is sqrt(d) over the mean norm, which the files may lack."""
    if released.factor is not None and not raw.config.get(llama_scope.NORM):
        norm = math.sqrt(raw.config["d_model"]) / released.factor
        raw = raw._replace(config=raw.config | {llama_scope.NORM: {"in": norm}})
    return llama_scope.parse(raw, losses)


def _state_dict(kind: state_dicts.StateDict, site: str | None) -> Reader:
    """A lone torch file."""

    def load(path: Path, released: Released) -> Raw:
        k = re.search(r"-L0_(\d+)$", released.repo)
        return kind.load(path, {"k": int(k[1])} if k else {})

    def parse(raw: Raw, losses: Losses, released: Released) -> Portable:
        return _at(kind.parse(raw, losses), site and f"{site}.{_layer(released)}")

    return Reader((), load, parse)


def _layer(released: Released) -> int:
    match = re.search(r"(?:layer_?|[_-][lL])(\d+)", released.path) or re.search(r"layer_?(\d+)", released.name)
    if match is None:
        raise InputError(f"{released}: neither its name nor its path tells a layer")
    return int(match[1])


def _at(portable: Portable, site: str | None, target: str | None = None) -> Portable:
    return replace(portable, place=file_place(site, target))


_LENS, _GEMMA, _SECOND = _of(sae_lens.FORMAT), _of(gemma_scope.FORMAT), _of(gemma_scope.SECOND)

READERS: dict[str, Reader] = {
    "sae_lens": _LENS._replace(parse=_sae_lens),
    "gemma_2": _GEMMA._replace(parse=_gemma_2),
    "gemma_2_transcoder": _GEMMA._replace(parse=_gemma_2_transcoder),
    "gemma_3": _SECOND._replace(load=_load_gemma_3),
    "dictionary_learning_1": _of(dictionary_learning.FORMAT),
    "llama_scope": _of(llama_scope.FORMAT),
    "llama_scope_r1_distill": _of(llama_scope.FORMAT)._replace(parse=_distilled),
    "mwhanna_transcoder": _of(circuit_tracer.FORMAT),
    "qwen_scope": _state_dict(state_dicts.QWEN, "resid_post"),
    "goodfire": _state_dict(state_dicts.GOODFIRE, "resid_post"),
    "deepseek_r1": _state_dict(state_dicts.DEEPSEEK, "resid_post"),
    "connor_rob_hook_z": _state_dict(state_dicts.ATTENTION, "z"),
}
"""By SAELens' name for the way to read."""

CROSS_LAYER = "a layer of a cross-layer transcoder"
UNREAD = {"temporal": "a temporal SAE, which attends to earlier tokens", "mntss_clt_layer_transcoder": CROSS_LAYER}


def reader(released: Released) -> Reader:
    """How to read it.

    Raises:
        InputError: nothing here does.
    """
    if released.reader not in READERS or "/clt" in f"/{released.path}":
        raise InputError(
            f"{released} is {UNREAD.get(released.reader, CROSS_LAYER)}: such dictionaries are not read here"
        )
    return READERS[released.reader]


def read(name: str, losses: Losses) -> Dictionary:
    """Fetch and read `sae-lens:RELEASE/ID`.

    Raises:
        InputError: as `resolve`, `reader` and `hub.fetch`; wrong or damaged files; a loss that was not asked for.
    """
    released = resolve(name)
    how = reader(released)
    return from_files(hub.fetch(hub.Reference(released.repo, released.path), how.files), released, losses)


def from_files(path: Path, released: Released, losses: Losses) -> Dictionary:
    """The dictionary in a release's files at `path`."""
    how = reader(released)
    raw = how.load(path, released)
    dictionary = converted(raw, lambda raw, losses: how.parse(raw, losses, released), losses)
    dictionary.provenance.model = dictionary.provenance.model or {"name": released.model}
    return dictionary
