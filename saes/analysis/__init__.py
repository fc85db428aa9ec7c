"""Analysis: dictionaries compared with atoms, with models and with one another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...lab.lazy import lazily

if TYPE_CHECKING:
    from .atoms.report import measure_atoms as measure_atoms
    from .diffing import diff as diff
    from .diffing import latent_scaling as latent_scaling
    from .meta_sae import MetaConfig as MetaConfig
    from .meta_sae import measure_meta as measure_meta
    from .similarity.atoms import jaccard as jaccard
    from .similarity.decoders import compare_decoders as compare_decoders
    from .similarity.measures import compare_rows as compare_rows

__getattr__, __dir__ = lazily(__name__, __file__)
