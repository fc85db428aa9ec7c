"""SVCCA: mean canonical correlation of the leading principal subspaces (Raghu et al. 2017, arXiv 1706.05806).

Each representation is centred and cut to the principal directions that hold a share of its variance; canonical
directions are found on the fitted rows, and their correlations are measured on the held-out ones. In-sample
correlations of r directions over n rows are about sqrt(r / n) for representations with nothing in common.

Canonical correlations do not change under any invertible linear map; the truncation does, unless the map keeps the
order of the variances. A rotation or a scaling changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ....lab.errors import InputError
from .rows import Factors


class Whitened(NamedTuple):
    """A representation's leading principal components in units of their own spread over the fitted rows."""

    fit: Float[Tensor, "fit r"]
    """Orthonormal columns."""
    test: Float[Tensor, "test r"]
    """The held-out rows in the same coordinates."""


def whiten(x: Factors, variance: float) -> Whitened:
    """Keep the fewest principal components with at least that share of the variance of the fitted rows.

    Raises:
        InputError: `variance` is not above 0 and at most 1.
    """
    if not 0 < variance <= 1:
        raise InputError(f"variance={variance} is no share of variance: give a number above 0, at most 1")
    energy = x.scales.double().square().cumsum(0)
    # the slack keeps the last directions out where rounding alone says that a whole is not yet reached
    kept = int((energy < min(variance, 1 - 1e-12) * energy[-1]).sum()) + 1
    return Whitened(x.left[:, :kept].contiguous(), x.test @ (x.right[:kept].T / x.scales[:kept]))


def correlated(a: Whitened, b: Whitened) -> dict[str, Float[Tensor, "test r"]]:
    """Products of canonical variates on each held-out row, whose means give the correlations."""
    ours, _, theirs = torch.linalg.svd(a.fit.T @ b.fit, full_matrices=False)
    u, v = a.test @ ours, b.test @ theirs.T
    return {"u": u, "v": v, "uu": u.square(), "vv": v.square(), "uv": u * v, "n": torch.ones(len(u))}


def mean_correlation(sums: Mapping[str, np.ndarray]) -> float:
    """The mean over canonical pairs of their correlation, from summed columns; a pair that does not vary counts 0."""
    n, u, v = sums["n"], sums["u"], sums["v"]
    together = sums["uv"] - u * v / n
    spread = np.sqrt(np.maximum(sums["uu"] - u * u / n, 0) * np.maximum(sums["vv"] - v * v / n, 0))
    return float(np.divide(together, spread, out=np.zeros_like(together), where=spread > 0).mean())
