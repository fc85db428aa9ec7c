"""Evaluation: scores of dictionaries beside their nulls."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...lab.lazy import lazily

if TYPE_CHECKING:
    from .clt.replacement import replace_outputs as replace_outputs
    from .clt.scores import CrossLayerReconstruction as CrossLayerReconstruction
    from .evaluate import EvaluationConfig as EvaluationConfig
    from .evaluate import evaluate_many as evaluate_many
    from .matched_l0 import Curve as Curve
    from .matched_l0 import pareto as pareto
    from .matched_l0 import seed_gap as seed_gap
    from .nulls import fit_nulls as fit_nulls
    from .planted import Planted as Planted
    from .planted import PlantedConfig as PlantedConfig
    from .reconstruction import Reconstruction as Reconstruction
    from .results import Evaluation as Evaluation
    from .special_tokens import SpecialTokens as SpecialTokens
    from .splicing import splice as splice

__getattr__, __dir__ = lazily(__name__, __file__)
