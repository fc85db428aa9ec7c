"""One trainer in a race, and this library's own."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ....saes.registry import build_trainable
from ....saes.training.trainer import TrainConfig, Trainer
from ...models.sites import Site
from ...streams.activation_stream import Batch


class Contestant(Protocol):
    """One trainer in the race."""

    def step(self, x: Tensor) -> None:
        """Train on rows [batch, d_in] in activation units."""
        ...

    def reconstruct(self, x: Tensor) -> Tensor:
        """x_hat of rows in activation units."""
        ...


class Ours:
    """This library's trainer as a contestant, for `steps` steps of batches like `sample`."""

    def __init__(self, sample: Tensor, n_latents: int, k: int, steps: int, site: Site | None = None) -> None:
        dictionary = build_trainable("topk", d_in=sample.shape[1], n_latents=n_latents, k=k).to(sample.device)
        config = TrainConfig(rows=steps * len(sample))
        self.trainer = Trainer(dictionary, site or Site.parse("resid_post.0"), config)

    def step(self, x: Tensor) -> None:
        """One step of `Trainer`."""
        origins = torch.zeros(len(x), 2, dtype=torch.int64)
        self.trainer.step(Batch({self.trainer.sites[0]: x}, origins))

    def reconstruct(self, x: Tensor) -> Tensor:
        """The folded dictionary's reconstruction."""
        return self.trainer.folded()(x)
