"""Dictionaries: architectures, training, metrics and files.

Names are imported on first use, so that `import monosem.saes` stays quick. The names used most stand here, the others
in their rooms: `architectures`, `training`, `evaluation`, `analysis`, `sweeps`, `autointerp` and `formats`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lab.lazy import lazily
from .hints import HINTS

if TYPE_CHECKING:
    from .architectures.batchtopk import BatchTopK as BatchTopK
    from .architectures.itda.dictionary import ITDA as ITDA
    from .architectures.jumprelu import JumpReLU as JumpReLU
    from .architectures.sae import SAEConfig as SAEConfig
    from .architectures.topk import TopK as TopK
    from .dictionary import Dictionary as Dictionary
    from .dictionary import Provenance as Provenance
    from .edit import Edit as Edit
    from .evaluation.evaluate import evaluate as evaluate
    from .evaluation.splicing import splice as splice
    from .features.collect import collect as collect
    from .features.feature_set import Features as Features
    from .files import load as load
    from .place import Place as Place
    from .registry import build as build
    from .registry import build_trainable as build_trainable
    from .sparse_code import SparseCode as SparseCode
    from .sweeps.grid import grid as grid
    from .sweeps.sweep import sweep as sweep
    from .training.trainer import TrainConfig as TrainConfig
    from .training.trainer import Trainer as Trainer

__getattr__, __dir__ = lazily(__name__, __file__, HINTS)
