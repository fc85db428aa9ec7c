"""Dictionaries: architectures, training, metrics and files.

Names are imported on first use, so that `import monosem.saes` stays quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lab.lazy import lazily

if TYPE_CHECKING:
    from .analysis.atoms.report import measure_atoms as measure_atoms
    from .analysis.diffing import diff as diff
    from .analysis.diffing import latent_scaling as latent_scaling
    from .analysis.meta_sae import MetaConfig as MetaConfig
    from .analysis.meta_sae import measure_meta as measure_meta
    from .analysis.similarity.atoms import jaccard as jaccard
    from .analysis.similarity.decoders import compare_decoders as compare_decoders
    from .analysis.similarity.measures import compare_rows as compare_rows
    from .architectures.abstopk import AbsTopK as AbsTopK
    from .architectures.basis import PCA as PCA
    from .architectures.basis import Neurons as Neurons
    from .architectures.batchtopk import BatchTopK as BatchTopK
    from .architectures.clt.cross_layer import CrossLayer as CrossLayer
    from .architectures.gated import Gated as Gated
    from .architectures.groupmax import GroupMax as GroupMax
    from .architectures.itda.dictionary import ITDA as ITDA
    from .architectures.jumprelu import JumpReLU as JumpReLU
    from .architectures.matching_pursuit import MatchingPursuit as MatchingPursuit
    from .architectures.matryoshka import Matryoshka as Matryoshka
    from .architectures.relu import ReLU as ReLU
    from .architectures.sae import SAEConfig as SAEConfig
    from .architectures.topk import TopK as TopK
    from .autointerp.detection import Detection as Detection
    from .autointerp.detection import measure_detection as measure_detection
    from .autointerp.trials import DetectionConfig as DetectionConfig
    from .dictionary import Dictionary as Dictionary
    from .dictionary import Provenance as Provenance
    from .edit import Edit as Edit
    from .evaluation.clt.replacement import replace_outputs as replace_outputs
    from .evaluation.clt.scores import CrossLayerReconstruction as CrossLayerReconstruction
    from .evaluation.evaluate import EvaluationConfig as EvaluationConfig
    from .evaluation.evaluate import evaluate as evaluate
    from .evaluation.evaluate import evaluate_many as evaluate_many
    from .evaluation.matched_l0 import Curve as Curve
    from .evaluation.matched_l0 import pareto as pareto
    from .evaluation.matched_l0 import seed_gap as seed_gap
    from .evaluation.nulls import fit_nulls as fit_nulls
    from .evaluation.planted import Planted as Planted
    from .evaluation.planted import PlantedConfig as PlantedConfig
    from .evaluation.reconstruction import Reconstruction as Reconstruction
    from .evaluation.results import Evaluation as Evaluation
    from .evaluation.special_tokens import SpecialTokens as SpecialTokens
    from .evaluation.splicing import splice as splice
    from .features.collect import collect as collect
    from .features.feature_set import Features as Features
    from .files import load as load
    from .formats.push import push as push
    from .place import Place as Place
    from .place import Port as Port
    from .registry import build as build
    from .registry import build_trainable as build_trainable
    from .sparse_code import SparseCode as SparseCode
    from .sweeps.grid import Member as Member
    from .sweeps.grid import grid as grid
    from .sweeps.results import SweepResult as SweepResult
    from .sweeps.sweep import sweep as sweep
    from .training.clt.trainer import CrossLayerTrainer as CrossLayerTrainer
    from .training.end_to_end import EndToEnd as EndToEnd
    from .training.end_to_end import EndToEndConfig as EndToEndConfig
    from .training.itda.growth_config import GrowthConfig as GrowthConfig
    from .training.itda.trainer import ITDATrainer as ITDATrainer
    from .training.itda.trainer import build_itda as build_itda
    from .training.trainer import TrainConfig as TrainConfig
    from .training.trainer import Trainer as Trainer

__getattr__, __dir__ = lazily(__name__, __file__)
