"""Latents that fall silent: they are woken, helped, or started anew; and all of that ends in the same bytes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monosem.lab.models.sites import Site
from monosem.lab.streams.activation_stream import Batch
from monosem.saes.architectures.objective import TrainingRows
from monosem.saes.registry import build_trainable
from monosem.saes.training.trainer import TrainConfig, Trainer

SITE, D, N, K = Site.parse("resid_post.3"), 24, 64, 3


def planted(rows: int, seed: int = 0) -> torch.Tensor:
    """Sums of K of N unit directions with positive weights, off centre."""
    directions = torch.nn.functional.normalize(torch.randn(N, D, generator=torch.Generator().manual_seed(99)), dim=1)
    g = torch.Generator().manual_seed(seed)
    chosen = torch.rand(rows, N, generator=g).topk(K, dim=1).indices
    return 5 * (torch.zeros(rows, N).scatter_(1, chosen, 1 + torch.rand(rows, K, generator=g)) @ directions) + 2.0


def trainer_of(architecture: str, **config: Any) -> Trainer:
    dictionary = build_trainable(architecture, d_in=D, n_latents=N, k=K)
    return Trainer(dictionary, SITE, TrainConfig(**{"rows": 20_000, "lr": 5e-3, "precision": "fp32", **config}))


def feed(trainer: Trainer, x: torch.Tensor) -> Trainer:
    for part in x.split(256):
        trainer.step(Batch({SITE: part}, torch.zeros(len(part), 2, dtype=torch.int64)))
    return trainer


def silence(trainer: Trainer, latents: torch.Tensor, by: float = 50.0) -> None:
    """Put these latents where no row reaches them, whatever the architecture."""
    bounds = trainer.objective.extra_parameters.get("theta")
    if bounds is None:
        trainer.weights.b_enc[latents] -= by
    else:
        bounds[latents] += by
    trainer.objective.adopt() if trainer.dictionary.architecture == "gated" else trainer.objective.settle()
    trainer.refresh_copies()


def read(trainer: Trainer, x: torch.Tensor) -> torch.Tensor:
    return trainer.training_rows(x)[0].input


@pytest.mark.parametrize("architecture", ["relu", "gated"])
def test_a_bias_that_silences_a_latent_is_raised_until_it_fires(architecture: str) -> None:
    trainer, x = feed(trainer_of(architecture, aux_k=0), planted(2560)), planted(4096, seed=1)
    some, others = torch.arange(10), torch.arange(10, N)
    silence(trainer, some)
    before = {name: tensor.clone() for name, tensor in trainer.dictionary.tensors().items()}
    rows = trainer.training_rows(x)[0]
    assert not (trainer.dictionary.training_code(rows.input, trainer.low_precision).to_dense()[:, some] != 0).any()
    trainer.objective.wake(rows, some)
    trainer.objective.settle()
    after = trainer.dictionary.tensors()
    firing = (rows.input @ after["W_enc"].T + after["b_enc"] > 0).sum(0)
    assert ((firing[some] >= 2) & (firing[some] <= 3)).all()  # 2 of 4096 rows; the next may be a rounding above zero
    assert torch.equal(after["b_enc"][others], before["b_enc"][others])
    if architecture == "gated":  # what a gate lets through is what it was
        assert torch.allclose(after["b_mag"], before["b_mag"], atol=1e-4)
    woken = after["b_enc"].clone()
    trainer.objective.wake(rows, some)
    assert torch.equal(trainer.dictionary.b_enc, woken)  # those that fire are left where they are
    trainer.objective.wake(rows, some[:0])


@pytest.mark.parametrize("optimizer", ["adam", "muon", "signum"])
@pytest.mark.parametrize("architecture", ["relu", "gated"])
def test_silent_gates_stay_silent_without_being_woken(architecture: str, optimizer: str) -> None:
    x = planted(10_240)

    def dead(aux_k: int | None) -> float:
        trainer = trainer_of(architecture, aid_after=1000, dead_after=4000, aux_k=aux_k, optimizer=optimizer, decay=0.0)
        feed(trainer, x[:256])
        silence(trainer, torch.arange(N // 2), by=10.0)
        trainer.optimizer.forget_biases(torch.arange(N // 2))
        return feed(trainer, x[256:]).metrics()["dead"]

    assert dead(0) > 0.4
    assert dead(None) < 0.05


def test_the_aid_is_sized_by_how_codes_are_chosen() -> None:
    by_row, by_bound = (build_trainable(name, d_in=D, n_latents=N, k=K) for name in ("topk", "batchtopk"))
    nested = build_trainable("matryoshka", d_in=D, n_latents=N, k=K, base="topk")
    for one in (by_row, nested):
        assert TrainConfig().aid(one, K) == (D // 2, 1 / 32)
    assert TrainConfig().aid(by_bound, K) == (K, 1 / 2)
    given = TrainConfig(aux_k=7, aux_coefficient=0.25)
    assert given.aid(by_row, K) == given.aid(by_bound, K) == (7, 0.25)
    assert TrainConfig(aux_k=0).aid(by_bound, K) == (0, 1 / 2)


def test_dead_latents_start_anew_on_rows_with_large_errors() -> None:
    x = planted(256)
    trainer = trainer_of("topk", aux_k=0, dead_after=500, resample_every=3)
    for _ in range(2):
        feed(trainer, x)
    dead = torch.arange(N) < 5
    trainer.dead.since_fired[dead] = 10_000
    trainer.weights.W_enc[dead] = 0
    trainer.refresh_copies()
    errors, resample = [], trainer.dead.resample
    trainer.dead.resample = lambda rows, squares, g: (errors.append(squares.clone()), resample(rows, squares, g))[1]
    feed(trainer, x)
    assert trainer.units is not None and len(errors) == 1
    target = x * trainer.units.input - trainer.dictionary.b_dec
    cosines = torch.nn.functional.normalize(target, dim=1) @ trainer.weights.W_dec.T
    assert torch.allclose(cosines[:, dead].max(0).values, torch.ones(5), atol=1e-5)
    drawn = cosines[:, dead].argmax(0)
    assert len(set(drawn.tolist())) == 5  # no row twice
    assert errors[0][drawn].mean() > errors[0].mean()
    assert not torch.allclose(cosines[:, ~dead].max(0).values, torch.ones(N - 5), atol=1e-3)
    norms = trainer.weights.W_enc.norm(dim=1)
    assert torch.allclose(norms[dead], 0.2 * norms[~dead].mean().expand(5), rtol=1e-4)
    second = trainer.optimizer.moments.second
    assert second.W_enc[dead].abs().sum() == 0 < second.W_enc[~dead].abs().sum()
    assert int(trainer.dead.since_fired[dead].max()) == 0


def test_rows_are_drawn_by_the_square_of_their_squared_error() -> None:
    """Squared errors of 1 and 2 and a dead latent: the second row is drawn four times as often."""
    trainer = trainer_of("topk", aux_k=0, dead_after=500)
    rows = TrainingRows.of(torch.eye(D), torch.eye(D))
    squares, g = torch.zeros(D), torch.Generator().manual_seed(0)
    squares[3], squares[5] = 1.0, 2.0
    drawn = torch.zeros(D)
    for _ in range(500):
        trainer.dead.since_fired[7] = 1000
        assert trainer.dead.resample(rows, squares, g) == 1
        drawn += trainer.weights.W_dec[7]
    assert drawn[3] + drawn[5] == 500 and float(drawn[5]) / 500 == pytest.approx(0.8, abs=0.06)


@pytest.mark.parametrize("architecture", ["relu", "gated", "jumprelu"])
def test_a_latent_that_starts_anew_is_above_the_bound_on_few_rows(architecture: str) -> None:
    trainer, x = feed(trainer_of(architecture, aux_k=0), planted(5120)), planted(2048, seed=1)
    dead = torch.arange(N) < 5
    silence(trainer, dead.nonzero()[:, 0])
    trainer.dead.since_fired[dead] = 10**6
    alive = ~dead
    trainer.resample(x)
    codes = trainer.dictionary.training_code(read(trainer, x), trainer.low_precision).to_dense()
    share = (codes != 0).float().mean(0)
    assert (share[dead] > 0).all() and share[dead].max() < 0.5, share[dead]
    assert codes[:, dead].amax() < 2 * codes[:, alive].amax()
    for moments in trainer.objective.moments.values():
        assert not moments[:, dead].any()
    assert not trainer.dead.since_fired[dead].any()


def test_of_more_dead_latents_than_rows_the_longest_dead_come_first() -> None:
    trainer, x = feed(trainer_of("topk", aux_k=0, dead_after=500), planted(512)), planted(16, seed=1)
    trainer.dead.since_fired[:] = torch.arange(N) * 100 + 400
    before = trainer.weights.W_dec.clone()
    trainer.resample(x)
    changed = (trainer.weights.W_dec != before).any(1)
    assert changed.nonzero()[:, 0].tolist() == list(range(N - 16, N))
    assert not trainer.dead.since_fired[changed].any() and (trainer.dead.since_fired[~changed] > 0).all()
