"""Coherence of atoms: |cosine| of every pair under an inner product, streamed in blocks; n^2 numbers are never held."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ....lab.errors import InputError
from .inner_product import AtomicInnerProduct
from .steps import Steps

BINS = 1 << 20
"""Of the histogram over [0, 1]: fine enough for the limit of a layer of 10,000 neurons, 1 / (2 n - 1)."""
CELLS = 1 << 23
"""Cosines held at once."""


class GramStats(NamedTuple):
    """Coherence over all pairs of distinct atoms."""

    steps: Steps
    """The distribution; a value is the upper edge of its bin."""
    maximum: float
    """Exact, at the precision of the atoms' dtype."""
    rms: float
    pairs: int
    atoms: int
    """Atoms compared; those of length zero have no direction and are left out."""


@torch.no_grad()
def gram_stats(
    atoms: Float[Tensor, "n d"], product: AtomicInnerProduct | None = None, *, block: int | None = None
) -> GramStats:
    """Coherence quantiles, maximum and root mean square.

    Args:
        product: the inner product; None is Euclidean.
        block: atoms whose cosines with all others are held at once; by default as many as `CELLS` allows.

    Raises:
        InputError: fewer than two atoms have a direction, or one is not finite.
    """
    if not torch.isfinite(atoms).all():
        raise InputError("some atoms hold values that are not finite: train or load the dictionary again")
    rows = atoms if product is None else product.whiten(atoms.double()).to(atoms.dtype)
    rows = rows[torch.linalg.vector_norm(rows, dim=1) > 0]
    n = len(rows)
    if n < 2:
        raise InputError(f"coherence is of pairs, and {n} of {len(atoms)} atoms have a direction: give at least 2")
    unit = F.normalize(rows, dim=1)
    counts = torch.zeros(BINS, dtype=torch.int64, device=unit.device)
    squares = maximum = unit.new_zeros((), dtype=torch.float64)
    block = block or max(1, CELLS // n)
    for begin in range(0, n - 1, block):
        part = unit[begin : begin + block]
        cosines = (part @ unit[begin:].T).abs_()
        above = torch.ones_like(cosines, dtype=torch.bool).triu_(1)
        distinct = cosines[above]
        squares = squares + distinct.double().square().sum()
        maximum = torch.maximum(maximum, distinct.max().double())
        counts += torch.bincount((distinct * BINS).long().clamp_(max=BINS - 1), minlength=BINS)
    pairs = n * (n - 1) // 2
    edges = np.arange(1, BINS + 1) / BINS
    return GramStats(Steps.of(edges, counts.cpu().numpy()), float(maximum), math.sqrt(float(squares) / pairs), pairs, n)


def random_rms(n: int, d: int) -> float:
    """Root mean square coherence of n random atoms in d dimensions under (D^T D)^-1: sqrt((1 - l) / (l (n - 1))).

    l = d / n; exactly 0 at n = d. That is how small the metric makes any atoms.
    """
    share = min(1.0, d / n)
    return math.sqrt((1 - share) / (share * (n - 1)))
