"""The coherence of atoms under three inner products, beside atoms that mean nothing.

    euclidean    angles in activation units, where a common shift makes everything look alike
    data         S = C^-1 of activations: the atomic inner product as it is measured
    own          S = (D^T D)^-1 of the atoms themselves: the same recipe if codes were isotropic

Nulls under `data`, from the kindest on: `rotation` turns the atoms at random, so that the data's covariance hits them
anywhere; `random` draws as many directions with the covariance of the data; `random_own` draws them anywhere and gives
them their own inner product, as the recipe would had they made the data. The last is the one the metric flatters most.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ....lab.rng import generator
from .coordinates import random_rotation
from .gram import GramStats, gram_stats
from .inner_product import AtomicInnerProduct

QUANTILES = {"coherence_50": 0.5, "coherence_99": 0.99, "coherence_99_8": 0.998}
NULLS = ("rotation", "random", "random_own")


class Coherence(NamedTuple):
    """Coherence of one set of atoms and of its nulls."""

    data: GramStats
    euclidean: GramStats
    own: GramStats | None
    """None where the atoms do not span the space."""
    nulls: dict[str, GramStats]
    """By the names in `NULLS`, under `data`; `random_own` only where there are as many atoms as dimensions."""

    def scores(self) -> dict[str, tuple[float, dict[str, float]]]:
        """Quantiles, maximum and root mean square under `data`, each with that of every null."""
        own, others = summary(self.data), {name: summary(stats) for name, stats in self.nulls.items()}
        return {score: (value, {name: other[score] for name, other in others.items()}) for score, value in own.items()}

    def to_json(self) -> dict[str, Any]:
        """Summaries under every inner product."""
        own = {} if self.own is None else {"own": summary(self.own)}
        nulls = {name: summary(stats) for name, stats in self.nulls.items()}
        return {"data": summary(self.data), "euclidean": summary(self.euclidean), **own, "nulls": nulls}


def summary(stats: GramStats) -> dict[str, float]:
    """The quantiles of `QUANTILES`, the maximum and the root mean square."""
    quantiles = {name: stats.steps.quantile(q) for name, q in QUANTILES.items()}
    return quantiles | {"coherence_max": stats.maximum, "coherence_rms": stats.rms}


def measure_coherence(atoms: Float[Tensor, "n d"], product: AtomicInnerProduct, seed: int = 0) -> Coherence:
    """All of the module for one set of atoms.

    Raises:
        InputError: fewer than two atoms have a direction, or one is not finite.
    """
    atoms = atoms.detach().float()
    data, nulls = beside_nulls(atoms, product, seed)
    own, (n, d) = None, atoms.shape
    if n >= d:
        drawn = _drawn(n, d, seed)
        nulls["random_own"] = gram_stats(drawn.float(), AtomicInnerProduct.of_atoms(drawn))
        if torch.linalg.matrix_rank(atoms.double()) == d:
            own = gram_stats(atoms, AtomicInnerProduct.of_atoms(atoms))
    return Coherence(data, gram_stats(atoms), own, nulls)


def beside_nulls(
    atoms: Float[Tensor, "n d"], product: AtomicInnerProduct, seed: int = 0
) -> tuple[GramStats, dict[str, GramStats]]:
    """Coherence under one inner product, and that of the nulls `rotation` and `random`."""
    atoms = atoms.detach().float()
    rotation = random_rotation(atoms.shape[1], generator(seed, "rotation null")).to(atoms)
    n, d = atoms.shape
    drawn = _drawn(n, d, seed) @ product.unwhitening
    nulls = {"rotation": gram_stats(atoms @ rotation, product), "random": gram_stats(drawn.to(atoms), product)}
    return gram_stats(atoms, product), nulls


def _drawn(n: int, d: int, seed: int) -> Float[Tensor, "n d"]:
    return torch.randn(n, d, dtype=torch.float64, generator=generator(seed, "random atoms"))
