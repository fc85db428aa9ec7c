"""Rows with a planted direction, for tests of probes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from monosem.probes.labels import Labels, PooledRows, Source
from torch import Tensor


class Planted(NamedTuple):
    rows: PooledRows
    direction: Tensor
    """Unit vector [d] along which positives are shifted."""


def planted(n: int = 400, d: int = 16, shift: float = 3.0, seed: int = 0, positive: float = 0.5) -> Planted:
    """Unit normal rows around 2; those of class 1 are moved by `shift` along a random direction."""
    rng = torch.Generator().manual_seed(seed)
    y = (torch.arange(n) < positive * n).long()[torch.randperm(n, generator=rng)]
    direction = torch.nn.functional.normalize(torch.randn(d, generator=rng), dim=0)
    x = torch.randn(n, d, generator=rng) + 2 + shift * y[:, None] * direction
    labels = Labels.of(["yes" if one else "no" for one in y.tolist()], tokens=torch.full((n,), 7))
    return Planted(PooledRows(x, labels, Source("resid_post.1")), direction)
