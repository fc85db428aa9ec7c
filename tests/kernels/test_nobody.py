"""Gradient rows of nobody: their number is fixed on a device, and ids from n_latents on change nothing."""

from __future__ import annotations

import pytest
import torch
from monosem.kernels.auxk import auxk_gradients
from monosem.kernels.dispatch import using
from monosem.kernels.tuples import Adam, Residual, RowGradients, Weights
from monosem.kernels.update import latent_step, new_moments
from monosem.saes.registry import build_trainable
from monosem.saes.training.config import TrainConfig
from monosem.saes.training.dead_latents import DeadLatents
from monosem.saes.training.optimizers import make_optimizer

N, D = 12, 8


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weights() -> Weights:
    W = random(N, D, seed=0)
    return Weights(random(N, D, seed=1), W / W.norm(dim=1, keepdim=True), random(N, seed=2))


def test_the_aid_of_padded_latents_is_that_of_the_latents() -> None:
    x, residual, idle = random(20, D, seed=3), random(20, D, seed=4), torch.tensor([1, 4, 9])
    padded = torch.tensor([1, 4, 9, N, N])
    for k in (2, 8):
        plain, loss = auxk_gradients(x, residual, weights(), idle, k, 0.5)
        fixed, same = auxk_gradients(x, residual, weights(), padded, k, 0.5)
        assert plain is not None and fixed is not None
        torch.testing.assert_close(same, loss)
        for mine, theirs in zip(fixed[1:], plain[1:], strict=True):
            torch.testing.assert_close(mine[:3], theirs)
            assert not mine[3:].any()
    nobody, nothing = auxk_gradients(x, residual, weights(), torch.full((4,), N), 2, 0.5)
    assert nobody is not None and nothing == 0 and not any(part.any() for part in nobody[1:])


@pytest.mark.parametrize("active_rows", [False, True])
@pytest.mark.parametrize("backend", ["compiled", "triton", "reference"])
def test_rows_of_nobody_change_no_weight_and_touch_no_latent(backend: str, active_rows: bool) -> None:
    codes = (torch.tensor([0, 2, 3]), torch.tensor([0, 5, 5], dtype=torch.int32), torch.tensor([1.0, 0.5, 2.0]))
    out = Residual(random(2, D, seed=5), torch.ones(2), random(3, seed=6))
    extra = RowGradients(torch.tensor([3, 5]), random(2, D, seed=7), random(2, D, seed=8), random(2, 1, seed=9))
    noise = RowGradients(torch.tensor([N, N]), *(part + 1 for part in extra[1:]))
    padded = RowGradients(*(torch.cat(parts) for parts in zip(extra, noise, strict=True)))
    after = []
    for given in (extra, padded):
        w = weights()
        moments = new_moments(w, 0.9, active_rows)
        with using(backend):  # type: ignore[arg-type]
            updated = latent_step(codes, out, random(2, D, seed=10), 0.1, w, moments, Adam(1e-2, 1), extra=given)
        after.append((*w, *updated, moments.touched if active_rows else w.b_enc))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*after, strict=True))
    assert int(after[0][4][5]) == 2


def dead(**options: int) -> DeadLatents:
    dictionary = build_trainable("topk", d_in=D, n_latents=N, k=2)
    config = TrainConfig(**options)
    return DeadLatents(dictionary.objective(), make_optimizer(dictionary.objective(), config), config, 2)


def test_the_longest_idle_are_aided_and_a_checkpoint_of_a_gpu_goes_on_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monosem.saes.training.dead_latents.AIDED", 4)
    latents = dead(aid_after=100, aux_k=2)
    since = torch.tensor([500, 0, 90, 100, 700, 0, 0, 0, 0, 600, 650, 0])
    latents.since_fired.copy_(since)
    with using("triton"):
        latents.refresh_idle(0)
        assert latents.idle.tolist() == [0, 4, 9, 10]
        latents.since_fired[:9] = 0
        latents.refresh_idle(16)
        assert latents.idle.tolist() == [9, 10, N, N]
    saved = latents.state_dict()
    latents.load_state_dict(saved)
    assert latents.idle.tolist() == [9, 10]


def test_idle_is_later_where_latents_fire_rarely() -> None:
    assert TrainConfig().idle_after(16_384, 32) == 25_000
    assert TrainConfig().idle_after(2**20, 64) == 8 * 2**20 // 64
    assert TrainConfig(aid_after=7).idle_after(2**20, 64) == 7
