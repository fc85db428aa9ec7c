"""Architectures: one file for each dictionary, with its config and its objective."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...lab.lazy import lazily

if TYPE_CHECKING:
    from .abstopk import AbsTopK as AbsTopK
    from .basis import PCA as PCA
    from .basis import Neurons as Neurons
    from .batchtopk import BatchTopK as BatchTopK
    from .clt.cross_layer import CrossLayer as CrossLayer
    from .clt.cross_layer import CrossLayerConfig as CrossLayerConfig
    from .gated import Gated as Gated
    from .groupmax import GroupMax as GroupMax
    from .itda.dictionary import ITDA as ITDA
    from .itda.dictionary import ITDAConfig as ITDAConfig
    from .jumprelu import JumpReLU as JumpReLU
    from .jumprelu import JumpReLUConfig as JumpReLUConfig
    from .linear import Linear as Linear
    from .matching_pursuit import MatchingPursuit as MatchingPursuit
    from .matryoshka import Matryoshka as Matryoshka
    from .relu import ReLU as ReLU
    from .relu import ReLUConfig as ReLUConfig
    from .sae import PenaltyConfig as PenaltyConfig
    from .sae import SAEConfig as SAEConfig
    from .sae import SparseAutoencoder as SparseAutoencoder
    from .topk import TopK as TopK

__getattr__, __dir__ = lazily(__name__, __file__)
