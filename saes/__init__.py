"""Dictionaries: architectures, training, metrics and files.

Names are imported on first use, so that `import monosem.saes` stays quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lab.lazy import lazily

if TYPE_CHECKING:
    from .abstopk import AbsTopK
    from .baselines import PCA, Neurons, fit_nulls
    from .batchtopk import BatchTopK
    from .compare import Curve, pareto, seed_gap
    from .dictionary import Dictionary, Provenance
    from .evaluation import EvaluationConfig, evaluate
    from .feature_set import Features
    from .features import collect
    from .files import build, build_trainable, load, save
    from .gated import Gated
    from .groupmax import GroupMax
    from .jumprelu import JumpReLU
    from .matryoshka import Matryoshka
    from .metrics import Reconstruction
    from .relu import ReLU
    from .sae import SAEConfig
    from .scores import Evaluation
    from .sparse_code import SparseCode
    from .splicing import splice, splice_edit
    from .synthetic import Planted, PlantedConfig
    from .topk import TopK
    from .training import TrainConfig, Trainer

_HOMES = {
    "AbsTopK": "abstopk",
    "BatchTopK": "batchtopk",
    "Curve": "compare",
    "Dictionary": "dictionary",
    "Evaluation": "scores",
    "EvaluationConfig": "evaluation",
    "Features": "feature_set",
    "Gated": "gated",
    "GroupMax": "groupmax",
    "JumpReLU": "jumprelu",
    "Matryoshka": "matryoshka",
    "Neurons": "baselines",
    "PCA": "baselines",
    "Planted": "synthetic",
    "PlantedConfig": "synthetic",
    "Provenance": "dictionary",
    "ReLU": "relu",
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
    "pareto": "compare",
    "save": "files",
    "seed_gap": "compare",
    "splice": "splicing",
    "splice_edit": "splicing",
}

__all__ = [
    "PCA",
    "AbsTopK",
    "BatchTopK",
    "Curve",
    "Dictionary",
    "Evaluation",
    "EvaluationConfig",
    "Features",
    "Gated",
    "GroupMax",
    "JumpReLU",
    "Matryoshka",
    "Neurons",
    "Planted",
    "PlantedConfig",
    "Provenance",
    "ReLU",
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
    "pareto",
    "save",
    "seed_gap",
    "splice",
    "splice_edit",
]

__getattr__ = lazily(__name__, _HOMES)
