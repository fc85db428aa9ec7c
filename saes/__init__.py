"""Dictionaries: architectures, training, metrics and files.

Names are imported on first use, so that `import monosem.saes` stays quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .batchtopk import BatchTopK as BatchTopK
    from .dictionary import Dictionary as Dictionary
    from .files import build as build
    from .files import load as load
    from .files import save as save
    from .sae import SAEConfig as SAEConfig
    from .sparse_code import SparseCode as SparseCode
    from .topk import TopK as TopK
    from .training import TrainConfig as TrainConfig
    from .training import Trainer as Trainer

_HOME = {
    "BatchTopK": "batchtopk",
    "Dictionary": "dictionary",
    "SAEConfig": "sae",
    "SparseCode": "sparse_code",
    "TopK": "topk",
    "TrainConfig": "training",
    "Trainer": "training",
    "build": "files",
    "load": "files",
    "save": "files",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
