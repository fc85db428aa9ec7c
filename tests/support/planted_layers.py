"""Latents planted in what layers read and write, and cross-layer transcoders trained on them."""

from __future__ import annotations

from functools import cache

import torch
from monosem.lab.models.sites import Site
from monosem.lab.streams.activation_stream import Batch
from monosem.saes.architectures.clt.cross_layer import CrossLayer, CrossLayerConfig
from monosem.saes.training.clt.trainer import CrossLayerTrainer
from monosem.saes.training.trainer import TrainConfig

torch.set_num_threads(1)

LAYERS, D, OUT, TRUE, K = 3, 24, 20, 32, 3
READ = [Site.parse(f"resid_mid.{layer}") for layer in range(LAYERS)]
WRITTEN = [Site.parse(f"mlp_out.{layer}") for layer in range(LAYERS)]


def unit(n: int, d: int, seed: int) -> torch.Tensor:
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    return rows / rows.norm(dim=1, keepdim=True)


READS = [unit(TRUE, D, layer) for layer in range(LAYERS)]
WRITES = [unit(TRUE, (LAYERS - layer) * OUT, 10 + layer) for layer in range(LAYERS)]
"""Causes that appear at a layer write to it and to all later ones."""


def planted(rows: int, seed: int = 0) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """What layers read and write, every site at a scale and place of its own."""
    g = torch.Generator().manual_seed(seed)
    read, written = [], torch.zeros(rows, LAYERS * OUT)
    for layer in range(LAYERS):
        causes = (torch.rand(rows, TRUE, generator=g) < K / TRUE) * (1 + torch.rand(rows, TRUE, generator=g))
        read.append((3 + layer) * (causes @ READS[layer] + 0.01 * torch.randn(rows, D, generator=g)) + 1)
        written[:, layer * OUT :] += causes @ WRITES[layer]
    return read, [(1 + 2 * layer) * part - layer for layer, part in enumerate(written.chunk(LAYERS, 1))]


def trainer_of(rows: int, *, n: int = 2 * TRUE, base: str = "batchtopk", joint: bool = False, skip=False, **options):
    config = CrossLayerConfig.over(LAYERS, D, n, d_out=OUT, k=K, base=base, joint=joint, skip=skip)
    return CrossLayerTrainer(CrossLayer(config), READ, WRITTEN, TrainConfig(**{"rows": rows, "lr": 3e-2, **options}))


def feed(trainer: CrossLayerTrainer, read: list[torch.Tensor], written: list[torch.Tensor], batch: int = 256):
    for parts in zip(*(part.split(batch) for part in (*read, *written)), strict=True):
        acts = dict(zip((*READ, *WRITTEN), parts, strict=True))
        trainer.step(Batch(acts, torch.zeros(len(parts[0]), 2, dtype=torch.int64)))
    return trainer


@cache
def trained(base: str = "batchtopk", joint: bool = False) -> CrossLayerTrainer:
    return feed(trainer_of(12_800, base=base, joint=joint), *planted(12_800))


def fvu(y_hat: torch.Tensor, y: torch.Tensor) -> float:
    return float((y_hat - y).square().sum() / (y - y.mean(0)).square().sum())
