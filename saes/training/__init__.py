"""Training: the trainers, their steps and their optimizers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...lab.lazy import lazily

if TYPE_CHECKING:
    from .clt.trainer import CrossLayerTrainer as CrossLayerTrainer
    from .end_to_end import EndToEnd as EndToEnd
    from .end_to_end import EndToEndConfig as EndToEndConfig
    from .itda.growth_config import GrowthConfig as GrowthConfig
    from .itda.trainer import ITDATrainer as ITDATrainer
    from .itda.trainer import build_itda as build_itda
    from .trainer import TrainConfig as TrainConfig
    from .trainer import Trainer as Trainer

__getattr__, __dir__ = lazily(__name__, __file__)
