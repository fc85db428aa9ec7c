"""The registry of architectures: a dictionary class registers itself under its name, and is built and loaded by it.

A new architecture is one file in `architectures/` whose class is decorated:

    @register
    class TopK(SparseAutoencoder):
        architecture = "topk"
        config_type = SAEConfig

A class outside this library registers in the same way, before it is asked for by name.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ..lab.errors import InputError, unknown
from .dictionary import Dictionary

if TYPE_CHECKING:
    from .architectures.sae import SparseAutoencoder

Kind = TypeVar("Kind", bound=type[Dictionary])

_REGISTERED: dict[str, type[Dictionary]] = {}


def register(kind: Kind) -> Kind:
    """Make a dictionary class known under its `architecture`; for use as a decorator."""
    _REGISTERED[kind.architecture] = kind
    return kind


def architectures() -> Mapping[str, type[Dictionary]]:
    """Every architecture that can be built by name, in alphabetical order."""
    _import_all()
    return dict(sorted(_REGISTERED.items()))


def trainable() -> Mapping[str, type[SparseAutoencoder]]:
    """Every architecture that a `Trainer` trains by gradients."""
    known = {name: kind for name, kind in architectures().items() if kind.trainable}
    return cast("dict[str, type[SparseAutoencoder]]", known)


def build(architecture: str, **config: Any) -> Dictionary:
    """A dictionary with zero weights, by architecture name and config fields.

    Raises:
        InputError: an unknown architecture, a field its config has not, or a value the config refuses.
    """
    if architecture not in (known := architectures()):
        raise unknown("architecture", architecture, known)
    return _built(known[architecture], config)


def build_trainable(architecture: str, **config: Any) -> SparseAutoencoder:
    """A dictionary with zero weights, of an architecture that a `Trainer` trains by gradients.

    Raises:
        InputError: as `build`, or an architecture that is fitted in closed form and not trained.
    """
    if architecture not in (allowed := trainable()):
        if architecture in architectures():
            raise InputError(f"architecture {architecture!r} cannot be trained: give {' or '.join(allowed)}")
        raise unknown("architecture", architecture, allowed)
    if not config.get("centre_input", True) and config.get("d_out") is None:
        raise InputError("centre_input=False is for dictionaries of other libraries: training subtracts b_dec")
    return cast("SparseAutoencoder", _built(allowed[architecture], config))


def _built(kind: type[Dictionary], config: Mapping[str, Any]) -> Dictionary:
    allowed = [field.name for field in fields(kind.config_type)]
    for name in config:
        if name not in allowed:
            raise unknown(f"{kind.architecture} config field", name, allowed)
    return kind(kind.config_type(**config))


@cache
def _import_all() -> None:
    """Import every file of `architectures/`, so that each registers what it holds."""
    folder = import_module(".architectures", __package__)
    for module in pkgutil.walk_packages(folder.__path__, f"{folder.__name__}."):
        import_module(module.name)
