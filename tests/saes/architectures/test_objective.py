"""The small parts of objectives: Adam on extra parameters, and the controller of a penalty's weight."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from monosem.kernels.tuples import Adam
from monosem.saes.architectures.objective import adam_step
from monosem.saes.architectures.schedules import L0Control
from monosem.saes.registry import build_trainable


@pytest.mark.parametrize("on_device", [False, True])
def test_small_parameters_step_as_torchs_adam(on_device: bool) -> None:
    g = torch.Generator().manual_seed(0)
    mine, moments = torch.randn(3, 5, generator=g), torch.zeros(2, 3, 5)
    theirs = torch.nn.Parameter(mine.clone())
    optimizer = torch.optim.Adam([theirs], lr=0.01, betas=(0.9, 0.99), eps=Adam(0.01, 1, 0.9, 0.99).eps)
    for t in range(1, 7):
        gradient = torch.randn(3, 5, generator=g) * 10.0 ** (t - 4)
        adam = Adam(0.01, t, 0.9, 0.99)
        adam_step(mine, gradient, moments, replace(adam, device=adam.scalars()) if on_device else adam)
        theirs.grad = gradient
        optimizer.step()
        torch.testing.assert_close(mine, theirs.detach(), rtol=1e-5, atol=1e-6)


def test_extra_parameters_have_their_own_second_decay() -> None:
    """Thresholds of a JumpReLU step with beta2 = 0.99 whatever that of the weights is."""
    objective = build_trainable("jumprelu", d_in=4, n_latents=6, k=2).objective()
    objective.dictionary.theta.fill_(1.0)
    gradients = [torch.full((6,), 3.0), torch.full((6,), -1.0)]
    expected = torch.nn.Parameter(torch.ones(6))
    optimizer = torch.optim.Adam([expected], lr=0.01, betas=(0.9, 0.99))
    for t, gradient in enumerate(gradients, 1):
        objective.update({"theta": gradient}, Adam(0.01, t, 0.9, 0.5))
        expected.grad = gradient
        optimizer.step()
    torch.testing.assert_close(objective.dictionary.theta.data, expected.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("start", "slope"), [(1.0, -0.7), (1e-3, -0.7), (20.0, -0.3)])
def test_the_controller_comes_to_the_weight_of_the_asked_l0(start: float, slope: float) -> None:
    """Where the L0 is a power of the weight, as it nearly is, it ends at the asked one from either side."""
    control, weight = L0Control(32, None, 0.1), start
    control.begin(start)
    for _ in range(400):
        l0 = 300 * weight**slope
        weight = control.measure(l0, 0.5)
    assert l0 == pytest.approx(32, rel=0.01)
    given = L0Control(32, 2.0, 0.1)
    assert [given.measure(500.0, progress) for progress in (0.05, 0.1, 1.0)] == pytest.approx([1, 2, 2])
