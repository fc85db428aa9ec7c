"""Interventions: what features decide.

Names are imported on first use, so that `import monosem.interventions` stays quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lab.lazy import lazily

if TYPE_CHECKING:
    from .decision import Decision as Decision
    from .decision import Effect as Effect
    from .decision import decisions as decisions
    from .decision import fingerprints as fingerprints
    from .pruning.activation_sparsity.cores import measure_cores as measure_cores
    from .pruning.activation_sparsity.curves import measure_curves as measure_curves
    from .pruning.activation_sparsity.decision import SparsityDecision as SparsityDecision

__getattr__, __dir__ = lazily(__name__, __file__)
