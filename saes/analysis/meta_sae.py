"""Meta-SAE: are latents made of one another? A small SAE is trained on the decoder rows of a dictionary.

    meta_explained_variance   share of the variance of unit decoder rows that a BatchTopK SAE with a quarter as many
                              latents and 4 codes a row explains (Leask et al. 2025, 2502.04878; the recipe is
                              SAEBench's, 2503.09532). Lower is more atomic

The score is taken on the rows the meta-SAE was trained on, as published: the fewer rows a latent has to explain, the
more it can memorise. How much that is tell two nulls trained alike: `random_rows`, unit rows in random directions,
which is about the least that can be had, and `shuffled`, in which every coordinate of the decoder keeps its values but
deals them to other latents.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from ...lab.errors import InputError
from ...lab.evidence import Evidence
from ...lab.models.sites import Site
from ...lab.rng import generator
from ...lab.streams.activation_stream import Batch
from ..dictionary import Dictionary
from ..evaluation.reconstruction import Reconstruction
from ..registry import build_trainable
from ..training.trainer import TrainConfig, Trainer

SITE = Site.parse("path:decoder")
"""What stands for a site where the rows come from a decoder."""


@dataclass(frozen=True)
class MetaConfig:
    """How a meta-SAE is trained; the defaults are SAEBench's."""

    width: float = 0.25
    """Its latents, as a share of the dictionary's."""
    k: int = 4
    """Meta-latents a decoder row, on average."""
    steps: int = 1500
    """Training steps."""
    batch: int = 1024
    """Decoder rows a step, all of them if there are fewer."""
    lr: float = 5e-4
    """Peak learning rate."""
    seed: int = 0
    """Of the starting weights, the order of rows, the nulls and the bootstrap."""

    def __post_init__(self) -> None:
        if not 0 < self.width <= 1:
            raise InputError(f"width is a share of the latents, above 0 and at most 1, got {self.width}")
        for name in ("k", "steps", "batch"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.lr < 1:
            raise InputError(f"lr must lie between 0 and 1, got {self.lr}")


def measure_meta(
    dictionary: Dictionary, config: MetaConfig | None = None, *, progress: bool = False
) -> dict[str, Evidence]:
    """`meta_explained_variance`, with an interval over latents and both nulls.

    Raises:
        InputError: fewer than k / width latents have a decoder row that is not zero.
    """
    config = config or MetaConfig()
    rows = unit_rows(dictionary)
    if len(rows) < (least := math.ceil(config.k / config.width)):
        raise InputError(
            f"a meta-SAE with width {config.width:g} and k={config.k} needs at least {least} decoder rows that are not"
            f" zero, the dictionary has {len(rows)}: give a larger dictionary or width, or a smaller k"
        )
    rng = generator(config.seed, "meta nulls")
    nulls = {"random_rows": random_rows(rows, rng), "shuffled": shuffled_coordinates(rows, rng)}
    evidence = explained(rows, config, progress).evidence(
        {name: explained(null, config, progress) for name, null in nulls.items()},
        held_out="nothing: the meta-SAE was trained on the rows it explains",
        seed=config.seed,
    )["explained_variance"]
    name = "meta_explained_variance"
    return {name: replace(evidence, name=name, n=len(rows), unit="latents", better="lower")}


def unit_rows(dictionary: Dictionary) -> Float[Tensor, "rows d"]:
    """Decoder rows that are not zero, scaled to norm 1; on the CPU."""
    rows = dictionary.W_dec.detach().float().flatten(1).cpu()
    return F.normalize(rows[rows.norm(dim=1) > 0], dim=1)


def random_rows(like: Float[Tensor, "rows d"], rng: torch.Generator) -> Float[Tensor, "rows d"]:
    """Unit rows in independent, uniform directions, in the shape of `like`."""
    return F.normalize(torch.randn(like.shape, generator=rng), dim=1)


def shuffled_coordinates(rows: Float[Tensor, "rows d"], rng: torch.Generator) -> Float[Tensor, "rows d"]:
    """Every coordinate's values dealt to the rows anew, independently of the other coordinates."""
    order = torch.rand(rows.shape, generator=rng).argsort(0)
    return rows.gather(0, order)


def explained(rows: Float[Tensor, "rows d"], config: MetaConfig, progress: bool = False) -> Reconstruction:
    """A meta-SAE trained on the rows, measured on the same rows; each row is a document of its own."""
    width = max(config.k, int(len(rows) * config.width))
    batch = min(config.batch, len(rows))
    trainer = Trainer(
        build_trainable("batchtopk", d_in=rows.shape[1], n_latents=width, k=config.k),
        SITE,
        TrainConfig(rows=config.steps * batch, lr=config.lr, seed=config.seed),
    )
    rng, waiting = generator(config.seed, "meta order"), torch.empty(0, dtype=torch.int64)
    for _ in tqdm(range(config.steps), desc="meta-SAE", unit="step", disable=not progress):
        if len(waiting) < batch:
            waiting = torch.cat([waiting, torch.randperm(len(rows), generator=rng)])
        chosen, waiting = waiting.split([batch, len(waiting) - batch])
        trainer.step(Batch({SITE: rows[chosen]}, torch.stack([chosen, torch.zeros_like(chosen)], 1)))
    measured = Reconstruction(trainer.folded(), SITE)
    measured.add(rows, torch.arange(len(rows)))
    return measured
