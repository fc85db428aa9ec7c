"""Dictionaries: architectures, training, metrics and files.

Names are imported on first use, so that `import monosem.saes` stays quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lab.lazy import lazily

if TYPE_CHECKING:
    from .baselines import PCA, Neurons, fit_nulls
    from .batchtopk import BatchTopK
    from .dictionary import Dictionary, Provenance
    from .evaluation import EvaluationConfig, evaluate
    from .feature_set import Features
    from .features import collect
    from .files import build, build_trainable, load, save
    from .metrics import Reconstruction
    from .sae import SAEConfig
    from .scores import Evaluation
    from .sparse_code import SparseCode
    from .splicing import splice, splice_edit
    from .topk import TopK
    from .training import TrainConfig, Trainer

_HOMES = {
    "BatchTopK": "batchtopk",
    "Dictionary": "dictionary",
    "Evaluation": "scores",
    "EvaluationConfig": "evaluation",
    "Features": "feature_set",
    "Neurons": "baselines",
    "PCA": "baselines",
    "Provenance": "dictionary",
    "Reconstruction": "metrics",
    "SAEConfig": "sae",
    "SparseCode": "sparse_code",
    "TopK": "topk",
    "TrainConfig": "training",
    "Trainer": "training",
    "build": "files",
    "build_trainable": "files",
    "collect": "features",
    "evaluate": "evaluation",
    "fit_nulls": "baselines",
    "load": "files",
    "save": "files",
    "splice": "splicing",
    "splice_edit": "splicing",
}

__all__ = [
    "PCA",
    "BatchTopK",
    "Dictionary",
    "Evaluation",
    "EvaluationConfig",
    "Features",
    "Neurons",
    "Provenance",
    "Reconstruction",
    "SAEConfig",
    "SparseCode",
    "TopK",
    "TrainConfig",
    "Trainer",
    "build",
    "build_trainable",
    "collect",
    "evaluate",
    "fit_nulls",
    "load",
    "save",
    "splice",
    "splice_edit",
]

__getattr__ = lazily(__name__, _HOMES)
