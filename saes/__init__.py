"""Dictionaries: architectures, training, metrics and files.

Names are imported on first use, so that `import monosem.saes` stays quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lab.lazy import lazily

if TYPE_CHECKING:
    from .abstopk import AbsTopK
    from .autointerp.detection import Detection, measure_detection
    from .autointerp.trials import DetectionConfig
    from .baselines import PCA, Neurons, fit_nulls
    from .batchtopk import BatchTopK
    from .clt.cross_layer import CrossLayer
    from .clt.replacement import replace_outputs
    from .clt.scores import measure_cross_layer
    from .clt.training import CrossLayerTrainer
    from .compare import Curve, pareto, seed_gap
    from .dictionary import Dictionary, Provenance
    from .diffing import diff, latent_scaling
    from .end_to_end import EndToEnd, EndToEndConfig
    from .evaluation import EvaluationConfig, evaluate, evaluate_many
    from .features.collect import collect
    from .features.feature_set import Features
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
    from .sweeps.grid import Member, grid
    from .sweeps.results import SweepResult
    from .sweeps.sweep import sweep
    from .synthetic import Planted, PlantedConfig
    from .topk import TopK
    from .training import TrainConfig, Trainer

_HOMES = {
    "AbsTopK": "abstopk",
    "BatchTopK": "batchtopk",
    "CrossLayer": "clt.cross_layer",
    "CrossLayerTrainer": "clt.training",
    "Curve": "compare",
    "Detection": "autointerp.detection",
    "DetectionConfig": "autointerp.trials",
    "Dictionary": "dictionary",
    "EndToEnd": "end_to_end",
    "EndToEndConfig": "end_to_end",
    "Evaluation": "scores",
    "EvaluationConfig": "evaluation",
    "Features": "features.feature_set",
    "Gated": "gated",
    "GroupMax": "groupmax",
    "JumpReLU": "jumprelu",
    "MatchingPursuit": "matching_pursuit",
    "Matryoshka": "matryoshka",
    "Member": "sweeps.grid",
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
    "SweepResult": "sweeps.results",
    "TopK": "topk",
    "TrainConfig": "training",
    "Trainer": "training",
    "build": "files",
    "build_trainable": "files",
    "collect": "features.collect",
    "diff": "diffing",
    "evaluate": "evaluation",
    "evaluate_many": "evaluation",
    "fit_nulls": "baselines",
    "grid": "sweeps.grid",
    "latent_scaling": "diffing",
    "load": "files",
    "measure_cross_layer": "clt.scores",
    "measure_detection": "autointerp.detection",
    "measure_meta": "meta",
    "pareto": "compare",
    "push": "formats.hub",
    "replace_outputs": "clt.replacement",
    "seed_gap": "compare",
    "splice": "splicing",
    "splice_edit": "splicing",
    "sweep": "sweeps.sweep",
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
