"""Rows with a few planted directions each, as the batches of a stream."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from monosem.lab.models.sites import Site
from monosem.lab.streams.activation_stream import Batch
from monosem.saes.training.itda.trainer import GrowthConfig, ITDATrainer
from torch import Tensor

SITE = Site.parse("resid_post.0")


def mixtures(n: int, d: int, directions: int = 120, active: int = 5, seed: int = 0) -> Tensor:
    """Rows [n, d] of `active` out of `directions` random directions, around a common mean."""
    g = torch.Generator().manual_seed(seed)
    planted, mean = torch.randn(directions, d, generator=g), 3 * torch.randn(d, generator=g)
    chosen = torch.stack([torch.randperm(directions, generator=g)[:active] for _ in range(n)])
    return mean + (planted[chosen] * torch.rand(n, active, 1, generator=g)).sum(1)


def batches(x: Tensor, size: int) -> Iterator[Batch]:
    """Row i is token i of document 0."""
    places = torch.stack([torch.zeros(len(x), dtype=torch.int64), torch.arange(len(x))], 1)
    for rows, origin in zip(x.split(size), places.split(size), strict=True):
        yield Batch({SITE: rows}, origin)


def grown(x: Tensor, config: GrowthConfig, size: int = 256) -> ITDATrainer:
    """A trainer that has seen these rows, or as many as it wanted."""
    trainer = ITDATrainer(x.shape[1], SITE, config)
    for batch in batches(x, size):
        if trainer.done:
            break
        trainer.step(batch)
    return trainer
