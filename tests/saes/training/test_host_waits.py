"""What a training step on a GPU makes the host wait for: nothing, or as little as the architecture allows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from host_waits import host_waits
from monosem.kernels.dispatch import using
from monosem.lab.models.sites import Site
from monosem.lab.streams.activation_stream import Batch
from monosem.saes.registry import build_trainable
from monosem.saes.training.config import TrainConfig
from monosem.saes.training.trainer import Trainer

SITE = Site.parse("resid_post.0")
STEPS = 2
"""Steps between two looks for idle latents: one of them is counted."""


def waits(architecture: str, **config: Any) -> dict[str, int]:
    """Waits in `STEPS` steps after the first, with latents that need the aid."""
    g = torch.Generator().manual_seed(0)
    rows = torch.randn((STEPS + 2) * 4, 16, generator=g)
    with using("triton"):
        dictionary = build_trainable(architecture, d_in=16, n_latents=24, k=2)
        trainer = Trainer(dictionary, SITE, TrainConfig(rows=10_000, precision="fp32", aid_after=6, **config))
        batches = [Batch({SITE: part}, torch.zeros(4, 2, dtype=torch.int64)) for part in rows.split(4)]
        for batch in batches[:2]:
            trainer.step(batch)
        assert (trainer.dead.since_fired >= 6).any()
        with host_waits() as found:
            for batch in batches[2:]:
                trainer.step(batch)
    return dict(found)


MOST = {"topk": 0, "abstopk": 0, "groupmax": 0, "matryoshka": 13, "batchtopk": 3, "jumprelu": 3}
"""Waits a step, one look for idle latents in it."""


@pytest.mark.parametrize("architecture", MOST)
def test_a_step_on_a_gpu_makes_the_host_wait_no_more_than_this(architecture: str) -> None:
    found = waits(architecture)
    found.pop("copy of numbers from Python", None)  # Adam's scalars, which a GPU gets from pinned memory
    assert sum(found.values()) / STEPS <= MOST[architecture], found
