"""ITDA on data whose answer is known: orthonormal atoms, axes and mixtures, errors in closed form, rotated models."""

from __future__ import annotations

import pytest
import torch
from itda_data import grown, mixtures
from monosem.saes.architectures.itda.dictionary import ITDA
from monosem.saes.training.itda.criteria import paper_error
from monosem.saes.training.itda.trainer import GrowthConfig
from torch import Tensor


def orthonormal(n: int, d: int) -> Tensor:
    return torch.linalg.qr(torch.randn(d, n, generator=torch.Generator().manual_seed(0)).double())[0].T.float()


@pytest.mark.parametrize("k", (3, 5))
@pytest.mark.parametrize("encoder", ("mp", "omp"))
def test_orthonormal_atoms_give_the_codes_back(k: int, encoder: str) -> None:
    atoms, g = orthonormal(8, 16), torch.Generator().manual_seed(1)
    codes = torch.zeros(50, 8).scatter_(1, torch.rand(50, 8, generator=g).argsort(1)[:, :3], 1.0)
    codes *= torch.randn(50, 8, generator=g)
    found = ITDA.of(atoms, k=k, encoder=encoder).encode(codes @ atoms).to_dense()
    torch.testing.assert_close(found, codes, atol=2e-6, rtol=0)


@pytest.mark.parametrize("size", (12 + 40, 5))
def test_axes_enter_once_and_mixtures_never(size: int) -> None:
    axes, g = torch.eye(12)[:6], torch.Generator().manual_seed(2)
    pairs = torch.stack([torch.randperm(6, generator=g)[:2] for _ in range(40)])
    mixed = (axes[pairs] * torch.randn(40, 2, 1, generator=g)).sum(1)
    x = torch.cat([torch.stack([axes, 3 * axes], 1).flatten(0, 1), mixed])
    trainer = grown(x, GrowthConfig(k=2, tau=1e-4, warmup=0), size)
    assert sorted(trainer.identities[:, 1].tolist()) == [0, 2, 4, 6, 8, 10]
    assert trainer.folded().W_dec.abs().sum(1).tolist() == [1] * 6


def test_the_released_error_is_a_cosine_over_the_width() -> None:
    g = torch.Generator().manual_seed(3)
    x, x_hat = torch.randn(100, 24, generator=g), torch.randn(100, 24, generator=g)
    cosine = torch.cosine_similarity(x, x_hat)
    torch.testing.assert_close(paper_error(x, x_hat), (2 - 2 * cosine) / 24)
    torch.testing.assert_close(paper_error(x, torch.zeros_like(x)), torch.full((100,), 1 / 24))
    torch.testing.assert_close(paper_error(x, -3 * x), torch.full((100,), 4 / 24))
    assert float(paper_error(x, x_hat).max()) < 4 / 24


def test_the_residual_never_grows_and_is_orthogonal_to_the_last_atom() -> None:
    g = torch.Generator().manual_seed(4)
    x, atoms = torch.randn(200, 20, generator=g), torch.randn(60, 20, generator=g)
    before = {}
    for k in range(1, 9):
        for encoder in ("mp", "omp", "nonnegative"):
            itda = ITDA.of(atoms, k=k, encoder=encoder)
            steps = itda.steps(x)
            left = x - itda.reconstruct(x)
            torch.testing.assert_close(steps.residual_squares, left.square().sum(1), atol=1e-4, rtol=1e-4)
            last = itda.W_dec[steps.columns[:, -1].long()]
            # a non-negative row is done when nothing correlates positively any more
            active = steps.values[:, -1] != 0
            assert float((left * last).sum(1)[active].abs().max()) < 1e-5
            assert encoder not in before or bool((steps.residual_squares <= before[encoder] + 1e-5).all())
            before[encoder] = steps.residual_squares
        better = before["omp"] <= before["mp"] + 1e-5
        assert bool(better.all()) if k <= 2 else float(better.float().mean()) > 0.9


def test_a_rotated_model_has_the_same_atoms() -> None:
    x, rotation = mixtures(2000, 32), orthonormal(32, 32)
    config = GrowthConfig(max_atoms=400, k=6, tau=0.04, warmup=0)
    one, other = (grown(rows, config, 256) for rows in (x, x @ rotation))
    assert 60 < one.atoms.n < 400
    assert one.identities.equal(other.identities) and one.order_hash == other.order_hash
    torch.testing.assert_close(one.folded().W_dec @ rotation, other.folded().W_dec, atol=1e-5, rtol=0)
