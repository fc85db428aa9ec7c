"""Dictionaries: architectures, training, metrics and files.

Names are imported on first use, so that `import monosem.saes` stays quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lab.lazy import lazily

if TYPE_CHECKING:
    from .abstopk import AbsTopK
    from .autointerp import Detection, measure_detection
    from .autointerp_trials import DetectionConfig
    from .baselines import PCA, Neurons, fit_nulls
    from .batchtopk import BatchTopK
    from .clt import CrossLayer
    from .clt_replacement import replace_outputs
    from .clt_scores import measure_cross_layer
    from .clt_training import CrossLayerTrainer
    from .compare import Curve, pareto, seed_gap
    from .dictionary import Dictionary, Provenance
    from .diffing import diff, latent_scaling
    from .end_to_end import EndToEnd, EndToEndConfig
    from .evaluation import EvaluationConfig, evaluate, evaluate_many
    from .feature_set import Features
    from .features import collect
    from .files import build, build_trainable, load
    from .formats.hub import push
    from .gated import Gated
    from .groupmax import GroupMax
    from .jumprelu import JumpReLU
    from .matching_pursuit import MatchingPursuit
    from .matryoshka import Matryoshka
    from .meta import MetaConfig, measure_meta
    from .metrics import Reconstruction
    from .relu import ReLU
    from .sae import SAEConfig
    from .scores import Evaluation
    from .sparse_code import SparseCode
    from .special_tokens import SpecialTokens
    from .splicing import splice, splice_edit
    from .sweep_grid import Member, grid
    from .sweep_results import SweepResult
    from .sweeps import sweep
    from .synthetic import Planted, PlantedConfig
    from .topk import TopK
    from .training import TrainConfig, Trainer

_HOMES = {
    "AbsTopK": "abstopk",
    "BatchTopK": "batchtopk",
    "CrossLayer": "clt",
    "CrossLayerTrainer": "clt_training",
    "Curve": "compare",
    "Detection": "autointerp",
    "DetectionConfig": "autointerp_trials",
    "Dictionary": "dictionary",
    "EndToEnd": "end_to_end",
    "EndToEndConfig": "end_to_end",
    "Evaluation": "scores",
    "EvaluationConfig": "evaluation",
    "Features": "feature_set",
    "Gated": "gated",
    "GroupMax": "groupmax",
    "JumpReLU": "jumprelu",
    "MatchingPursuit": "matching_pursuit",
    "Matryoshka": "matryoshka",
    "Member": "sweep_grid",
    "MetaConfig": "meta",
    "Neurons": "baselines",
    "PCA": "baselines",
    "Planted": "synthetic",
    "PlantedConfig": "synthetic",
    "Provenance": "dictionary",
    "ReLU": "relu",
    "Reconstruction": "metrics",
    "SAEConfig": "sae",
    "SparseCode": "sparse_code",
    "SpecialTokens": "special_tokens",
    "SweepResult": "sweep_results",
    "TopK": "topk",
    "TrainConfig": "training",
    "Trainer": "training",
    "build": "files",
    "build_trainable": "files",
    "collect": "features",
    "diff": "diffing",
    "evaluate": "evaluation",
    "evaluate_many": "evaluation",
    "fit_nulls": "baselines",
    "grid": "sweep_grid",
    "latent_scaling": "diffing",
    "load": "files",
    "measure_cross_layer": "clt_scores",
    "measure_detection": "autointerp",
    "measure_meta": "meta",
    "pareto": "compare",
    "push": "formats.hub",
    "replace_outputs": "clt_replacement",
    "seed_gap": "compare",
    "splice": "splicing",
    "splice_edit": "splicing",
    "sweep": "sweeps",
}

__all__ = [
    "PCA",
    "AbsTopK",
    "BatchTopK",
    "CrossLayer",
    "CrossLayerTrainer",
    "Curve",
    "Detection",
    "DetectionConfig",
    "Dictionary",
    "EndToEnd",
    "EndToEndConfig",
    "Evaluation",
    "EvaluationConfig",
    "Features",
    "Gated",
    "GroupMax",
    "JumpReLU",
    "MatchingPursuit",
    "Matryoshka",
    "Member",
    "MetaConfig",
    "Neurons",
    "Planted",
    "PlantedConfig",
    "Provenance",
    "ReLU",
    "Reconstruction",
    "SAEConfig",
    "SparseCode",
    "SpecialTokens",
    "SweepResult",
    "TopK",
    "TrainConfig",
    "Trainer",
    "build",
    "build_trainable",
    "collect",
    "diff",
    "evaluate",
    "evaluate_many",
    "fit_nulls",
    "grid",
    "latent_scaling",
    "load",
    "measure_cross_layer",
    "measure_detection",
    "measure_meta",
    "pareto",
    "push",
    "replace_outputs",
    "seed_gap",
    "splice",
    "splice_edit",
    "sweep",
]

__getattr__ = lazily(__name__, _HOMES)
