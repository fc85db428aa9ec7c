"""Supervised read-outs trained on the same stream as dictionaries.

Names are imported on first use, so that `import monosem.probes` stays quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lab.lazy import lazily

if TYPE_CHECKING:
    from .files import load
    from .fits import FitConfig, fit, fit_all
    from .labels import Bags, Labels, PooledRows
    from .layer_sweep import ProbeSweep, ReadConfig, probe_sweep
    from .measure import MeasureConfig
    from .outliers import ood_scores
    from .probe import Probe

_HOMES = {
    "Bags": "labels",
    "FitConfig": "fits",
    "Labels": "labels",
    "MeasureConfig": "measure",
    "PooledRows": "labels",
    "Probe": "probe",
    "ProbeSweep": "layer_sweep",
    "ReadConfig": "layer_sweep",
    "fit": "fits",
    "fit_all": "fits",
    "load": "files",
    "ood_scores": "outliers",
    "probe_sweep": "layer_sweep",
}

__all__ = [
    "Bags",
    "FitConfig",
    "Labels",
    "MeasureConfig",
    "PooledRows",
    "Probe",
    "ProbeSweep",
    "ReadConfig",
    "fit",
    "fit_all",
    "load",
    "ood_scores",
    "probe_sweep",
]

__getattr__ = lazily(__name__, _HOMES)
