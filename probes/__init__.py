"""Supervised read-outs trained on the same stream as dictionaries.

Names are imported on first use, so that `import monosem.probes` stays quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lab.lazy import lazily

if TYPE_CHECKING:
    from .files import load as load
    from .fitting.fits import FitConfig as FitConfig
    from .fitting.fits import fit as fit
    from .fitting.fits import fit_all as fit_all
    from .labels import Bags as Bags
    from .labels import Labels as Labels
    from .labels import PooledRows as PooledRows
    from .layer_sweep import ProbeSweep as ProbeSweep
    from .layer_sweep import ReadConfig as ReadConfig
    from .layer_sweep import probe_sweep as probe_sweep
    from .measure import MeasureConfig as MeasureConfig
    from .outliers.measure import ood_scores as ood_scores
    from .probe import Probe as Probe

__getattr__, __dir__ = lazily(__name__, __file__)
