"""One trainer in a race, what it is asked for, and this library's own trainer as one."""

from __future__ import annotations

import contextlib
import importlib
import sys
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float32
from torch import Tensor

from ....saes.architectures.units import Units, geometric_median
from ....saes.dictionary import Dictionary
from ....saes.registry import build_trainable
from ....saes.training.config import default_lr
from ....saes.training.trainer import TrainConfig, Trainer
from ...errors import InputError
from ...models.sites import Site
from ...streams.activation_stream import Batch

SITE = Site.parse("resid_post.0")
"""Rows of a bench come from one site, whose name no contestant reads."""


@dataclass(frozen=True)
class Asked:
    """The shape, rows and seed that a contestant trains."""

    n_latents: int
    """Number of latents."""
    k: int
    """Active latents a row."""
    steps: int
    """Steps of the whole training, over which its learning rate is scheduled."""
    architecture: str = "topk"
    """Our name of the architecture."""
    matched: bool = False
    """True if a peer takes over our schedule, scale and first b_dec; False for what its documentation says."""
    lr: float | None = None
    """Peak learning rate; by default the library's own, or our rule where it is matched."""
    seed: int = 0
    """Seed of the starting weights."""
    coefficient: float = 1.0
    """Factor of a peer's own penalty coefficient, for architectures whose L0 a penalty decides."""

    def peak(self, batch: int) -> float:
        """Peak learning rate of a matched peer: the asked one, or our rule."""
        return self.lr or default_lr(self.n_latents, batch, self.steps * batch)

    def rate(self, step: int, batch: int) -> float:
        """Learning rate of a matched peer after so many steps of `batch` rows: the schedule of `TrainConfig`."""
        config = TrainConfig(rows=self.steps * batch, lr=self.lr)
        return config.lr_after(step * batch, self.n_latents, batch)

    @property
    def prefixes(self) -> tuple[int, ...]:
        """Prefixes of a Matryoshka dictionary: ours, for every library."""
        ours: Any = build_trainable("matryoshka", d_in=1, n_latents=self.n_latents, k=self.k)
        return ours.config.prefixes


class Contestant(Protocol):
    """One trainer in the race."""

    def step(self, x: Tensor) -> None:
        """Train on rows [batch, d_in] in activation units."""
        ...

    def reconstruct(self, x: Tensor) -> Tensor:
        """x_hat of rows in activation units."""
        ...


class Trained(Contestant, Protocol):
    """A contestant that leaves a dictionary."""

    def dictionary(self) -> Dictionary:
        """The trained dictionary in activation units; the last call."""
        ...


class Ours:
    """This library's trainer as a contestant, on batches like `sample`.

    Args:
        changes: fields of `TrainConfig` that are not at their defaults.
    """

    def __init__(self, sample: Tensor, asked: Asked, site: Site = SITE, **changes: Any) -> None:
        shape = {"d_in": sample.shape[1], "n_latents": asked.n_latents, "k": asked.k}
        dictionary = build_trainable(asked.architecture, **shape).to(sample.device)
        own = {"rows": asked.steps * len(sample), "lr": asked.lr, "seed": asked.seed}
        config = TrainConfig(**{**own, **changes})
        self.trainer = Trainer(dictionary, site, config)

    def step(self, x: Tensor) -> None:
        """One step of `Trainer`."""
        origins = torch.zeros(len(x), 2, dtype=torch.int64)
        self.trainer.step(Batch({self.trainer.sites[0]: x}, origins))

    def reconstruct(self, x: Tensor) -> Tensor:
        """The folded dictionary's reconstruction."""
        return self.trainer.folded()(x)

    def dictionary(self) -> Dictionary:
        """The trained dictionary in activation units."""
        return self.trainer.folded()


class Start(NamedTuple):
    """How our trainer would start on a first batch."""

    scale: float
    """Factor of activations: entries then have unit mean square around their mean."""
    b_dec: Float32[Tensor, " d_in"]
    """Geometric median of the scaled batch."""

    @classmethod
    def of(cls, sample: Tensor) -> Start:
        """From the first batch [rows, d_in]."""
        config = build_trainable("topk", d_in=sample.shape[1], n_latents=1, k=1).config
        scale = Units.measure(config, sample, None, [SITE]).scale
        return cls(scale, geometric_median(sample * scale))


def matched_rates(n_latents: int, batch: int, rows: int) -> tuple[float, ...]:
    """Learning rates that a matched peer begins with: half of our rule for this shape and run, the rule, and twice."""
    rule = default_lr(n_latents, batch, rows)
    return (rule / 2, rule, rule * 2)


def imported(name: str, install: str) -> Any:
    """A module of a peer.

    Raises:
        InputError: it cannot be imported; says how to install it.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):  # one of them prints when imported; stdout is for results
            return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"this comparison needs {name}, and it cannot be imported ({error}): {install}") from None
