"""Landing on the asked L0: the bounds' steps, how far they are trusted, and short runs of every steered rule."""

from __future__ import annotations

import pytest
import torch
from monosem.lab.models.sites import Site
from monosem.saes.architectures.objective import PenalisedObjective, TrainingRows
from monosem.saes.architectures.schedules import TRUST, L0Control
from monosem.saes.evaluation.planted import Planted, PlantedConfig
from monosem.saes.registry import build_trainable
from monosem.saes.training.trainer import TrainConfig, Trainer

torch.set_num_threads(1)

SITE = Site.parse("resid_post.0")
WORLD = Planted(PlantedConfig(noise=0.05, bias=3.0))
STEERED = [("relu", {}), ("gated", {}), *(("jumprelu", {"penalty": name}) for name in ("quadratic", "step", "tanh"))]
K, ROWS = 8, 30_000


def started(architecture: str, options: dict, k: int = K) -> tuple[Trainer, torch.Tensor]:
    """A trainer after one step, and rows as its encoder sees them."""
    sae = build_trainable(architecture, d_in=64, n_latents=256, k=k, **options)
    trainer = Trainer(sae, SITE, TrainConfig(rows=ROWS, precision="fp32"))
    trainer.step(next(WORLD.batches(SITE, 512, 512)))
    x = WORLD.sample(1024, part=7).x * trainer.scale - sae.b_dec
    return trainer, x


def steered(trainer: Trainer) -> PenalisedObjective:
    assert isinstance(trainer.objective, PenalisedObjective)
    return trainer.objective


@pytest.mark.parametrize(("architecture", "options"), STEERED)
def test_a_trusted_step_leaves_k_codes_a_row(architecture, options):
    trainer, x = started(architecture, options)
    objective, sae = steered(trainer), trainer.dictionary
    before = sae.training_code(x, None)
    while float(before.l0.float().mean()) < 1.2 * K:
        objective.raise_bounds(-0.05)
        before = sae.training_code(x, None)
    objective.control.trust = objective.control.error = 1.0
    objective.gradients(TrainingRows.of(x, x), sae.W_dec, None)
    objective.raise_bounds(objective.rise)
    objective.settle()
    after = sae.training_code(x, None)
    assert int(after.l0.sum()) == pytest.approx(K * len(x), abs=2)
    if architecture != "relu":  # whose bias is also its bound
        kept = after.to_dense()
        assert torch.allclose(kept, before.to_dense() * (kept != 0), atol=1e-5), "a code that stays keeps its value"


def test_where_codes_are_missing_bounds_fall():
    trainer, x = started("jumprelu", {})
    objective = steered(trainer)
    objective.raise_bounds(0.2)
    objective.gradients(TrainingRows.of(x, x), trainer.dictionary.W_dec, None)
    assert float(objective.rise) < 0


def test_a_given_coefficient_moves_no_bounds():
    trainer, x = started("jumprelu", {"coefficient": 0.1})
    objective = steered(trainer)
    objective.gradients(TrainingRows.of(x, x), trainer.dictionary.W_dec, None)
    assert objective.rise == 0.0


def test_errors_of_one_sign_are_trusted_and_alternating_ones_are_not():
    drift, noise = L0Control(32, None, 0.1), L0Control(32, None, 0.1)
    for step in range(40):
        drift.measure(33, 0.5)
        noise.measure(33 if step % 2 else 31, 0.5)
    assert (noise.trust, drift.trust) == TRUST


@pytest.mark.parametrize(("architecture", "options"), [*STEERED, ("batchtopk", {}), ("matryoshka", {})])
def test_a_run_of_thirty_steps_lands_within_five_percent(architecture, options):
    sae = build_trainable(architecture, d_in=64, n_latents=512, k=K, **options)
    trainer = Trainer(sae, SITE, TrainConfig(rows=ROWS, precision="fp32"))
    for batch in WORLD.batches(SITE, ROWS, 1024):
        trainer.step(batch)
    assert trainer.done and trainer.steps == 30
    l0 = trainer.folded().encode(WORLD.sample(8000, part=999).x).l0.float().mean()
    assert float(l0) == pytest.approx(K, rel=0.05)
