"""Dictionaries: architectures, training, metrics and files.

Names are imported on first use, so that `import monosem.saes` stays quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lab.lazy import lazily

if TYPE_CHECKING:
    from .abstopk import AbsTopK
    from .activation_sparsity.cores import measure_cores
    from .activation_sparsity.curves import measure_curves
    from .activation_sparsity.decision import SparsityDecision
    from .atoms.report import measure_atoms
    from .autointerp.detection import Detection, measure_detection
    from .autointerp.trials import DetectionConfig
    from .baselines import PCA, Neurons, fit_nulls
    from .batchtopk import BatchTopK
    from .clt.cross_layer import CrossLayer
    from .clt.replacement import replace_outputs
    from .clt.scores import CrossLayerReconstruction
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
    from .itda.dictionary import ITDA
    from .itda.growth_config import GrowthConfig
    from .itda.training import ITDATrainer, build_itda
    from .jumprelu import JumpReLU
    from .matching_pursuit import MatchingPursuit
    from .matryoshka import Matryoshka
    from .meta import MetaConfig, measure_meta
    from .metrics import Reconstruction
    from .relu import ReLU
    from .sae import SAEConfig
    from .scores import Evaluation
    from .similarity.atoms import jaccard
    from .similarity.decoders import compare_decoders
    from .similarity.measures import compare_rows
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
    "CrossLayerReconstruction": "clt.scores",
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
    "GrowthConfig": "itda.growth_config",
    "ITDA": "itda.dictionary",
    "ITDATrainer": "itda.training",
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
    "SparsityDecision": "activation_sparsity.decision",
    "SpecialTokens": "special_tokens",
    "SweepResult": "sweeps.results",
    "TopK": "topk",
    "TrainConfig": "training",
    "Trainer": "training",
    "build": "files",
    "build_itda": "itda.training",
    "build_trainable": "files",
    "collect": "features.collect",
    "compare_decoders": "similarity.decoders",
    "compare_rows": "similarity.measures",
    "diff": "diffing",
    "evaluate": "evaluation",
    "evaluate_many": "evaluation",
    "fit_nulls": "baselines",
    "grid": "sweeps.grid",
    "jaccard": "similarity.atoms",
    "latent_scaling": "diffing",
    "load": "files",
    "measure_atoms": "atoms.report",
    "measure_cores": "activation_sparsity.cores",
    "measure_curves": "activation_sparsity.curves",
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
    "ITDA",
    "PCA",
    "AbsTopK",
    "BatchTopK",
    "CrossLayer",
    "CrossLayerReconstruction",
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
    "GrowthConfig",
    "ITDATrainer",
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
    "SparsityDecision",
    "SpecialTokens",
    "SweepResult",
    "TopK",
    "TrainConfig",
    "Trainer",
    "build",
    "build_itda",
    "build_trainable",
    "collect",
    "compare_decoders",
    "compare_rows",
    "diff",
    "evaluate",
    "evaluate_many",
    "fit_nulls",
    "grid",
    "jaccard",
    "latent_scaling",
    "load",
    "measure_atoms",
    "measure_cores",
    "measure_curves",
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
