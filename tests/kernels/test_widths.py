"""Encoder rows of one width and decoder rows of another: every implementation of the update against its reference."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from monosem.kernels import update
from monosem.kernels.auxk import auxk_gradients
from monosem.kernels.cpu import update as cpu_update
from monosem.kernels.decode import decode_residual, residual_reference
from monosem.kernels.dense import latent_gradients as dense_gradients
from monosem.kernels.encode import quantise
from monosem.kernels.first_check import moved
from monosem.kernels.tuples import Residual

torch.set_num_threads(1)
N, BATCH = 9, 8
WIDTHS = [(40, 24), (5, 130)]


def problem(d: int, d_out: int) -> tuple:
    """Ragged codes, some at zero, rows to encode, targets, and weights."""
    g = torch.Generator().manual_seed(d)
    counts = torch.randint(0, 4, (BATCH,), generator=g)
    indptr = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    indices = torch.cat([torch.randperm(N, generator=g)[:count].sort().values for count in counts.tolist()]).int()
    values = (torch.randn(len(indices), generator=g) + 0.5).clamp_min(0)
    W_enc, W_dec = torch.randn(N, d, generator=g), torch.randn(N, d_out, generator=g)
    weights = update.Weights(W_enc, W_dec / W_dec.norm(dim=1, keepdim=True), torch.zeros(N))
    return (
        (indptr, indices, values),
        torch.randn(BATCH, d, generator=g),
        torch.randn(BATCH, d_out, generator=g),
        weights,
    )


def close(got: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-4) -> None:
    assert got.shape == expected.shape
    assert (got - expected).norm() <= tolerance * expected.norm().clamp_min(1e-6), (got - expected).abs().max()


def triton() -> tuple[Callable, Callable]:
    pytest.importorskip("triton")
    from monosem.kernels.gpu import update as gpu_update

    return on_the_gpu(gpu_update.latent_step), on_the_gpu(gpu_update.latent_gradients)


def on_the_gpu(function: Callable) -> Callable:
    """The function on a GPU, if there is one: arguments are carried there, and with the results back again."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def run(*arguments):
        there = moved(arguments, device)
        returned = function(*there)
        copy_back(arguments, there)
        return moved(returned, torch.device("cpu"))

    return run


def copy_back(here: object, there: object) -> None:
    if isinstance(here, torch.Tensor):
        here.copy_(there)
    elif isinstance(here, tuple):
        for one, other in zip(here, there, strict=True):
            copy_back(one, other)


IMPLEMENTATIONS = {
    "compiled": lambda: (cpu_update.latent_step, cpu_update.latent_gradients),
    "triton": triton,
    "dispatched": lambda: (update.latent_step, update.latent_gradients),
}


@pytest.mark.parametrize(("d", "d_out"), WIDTHS)
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("active_rows", [False, True])
def test_the_update_equals_its_reference(d: int, d_out: int, name: str, active_rows: bool) -> None:
    step, gradients = IMPLEMENTATIONS[name]()
    codes, x, target, weights = problem(d, d_out)
    g = torch.Generator().manual_seed(7)
    extra = update.RowGradients(torch.tensor([1, N - 1]), *(torch.randn(2, w, generator=g) for w in (d, d_out, 1)))
    states = [(fresh, update.new_moments(fresh, 0.9, active_rows)) for fresh in
              (update.Weights(*(part.clone() for part in weights)) for _ in range(2))]  # fmt: skip
    for t in (1, 2):
        out = decode_residual(*codes, states[0][0].W_dec, torch.zeros(d_out), target)
        for mine, expected in zip(out, residual_reference(*codes, states[0][0].W_dec, torch.zeros(d_out), target),
                                  strict=True):  # fmt: skip
            close(mine, expected)
        adam = update.Adam(1e-2, t)
        got = step(codes, out, x, 0.1, *states[0], adam, None, extra)
        expected = update.reference(codes, out, x, 0.1, *states[1], adam, None, extra)
        assert torch.equal(got.fired, expected.fired) and got.to_input.shape == (d,)
        close(got.to_input, expected.to_input)
        for (mine, moments), (theirs, expected_moments) in [states]:
            for kinds in (
                (mine, theirs),
                (moments.first, expected_moments.first),
                (moments.second, expected_moments.second),
            ):
                for one, other in zip(*kinds, strict=True):
                    close(one, other)
    rows, expected = gradients(codes, out, x, 0.5, N), update.gradients_reference(codes, out, x, 0.5, N)
    assert torch.equal(rows.latents, expected.latents)
    for mine, theirs in zip(rows[1:], expected[1:], strict=True):
        close(mine, theirs)


@pytest.mark.parametrize(("d", "d_out"), WIDTHS)
def test_dense_products_and_rows_applied_alone(d: int, d_out: int) -> None:
    codes, x, target, weights = problem(d, d_out)
    out = decode_residual(*codes, weights.W_dec, torch.zeros(d_out), target)
    dense, _ = dense_gradients(codes, out, x, 0.5, N)
    rows = update.gradients_reference(codes, out, x, 0.5, N)
    for all_rows, fired in zip(dense[1:], rows[1:], strict=True):
        close(all_rows[rows.latents], fired)
    whole, alone = (update.Weights(*(part.clone() for part in weights)) for _ in range(2))
    low_precision = quantise(whole.W_enc)
    update.latent_step(
        codes, out, x, 0.5, whole, update.new_moments(whole, 0.9, False), update.Adam(1e-2, 1), low_precision
    )
    update.apply_gradients(rows, alone, update.new_moments(alone, 0.9, False), update.Adam(1e-2, 1))
    for one, other in zip(whole, alone, strict=True):
        close(one, other)
    assert torch.equal(low_precision.W_enc, quantise(whole.W_enc).W_enc)


def test_heavy_latents_of_two_widths_are_summed_in_pieces() -> None:
    _, gradients = triton()
    g = torch.Generator().manual_seed(0)
    batch, d, d_out = 600, 6, 10
    codes = torch.arange(batch + 1), torch.zeros(batch, dtype=torch.int32), torch.rand(batch, generator=g)
    x, residual = torch.randn(batch, d, generator=g), torch.randn(batch, d_out, generator=g)
    out = Residual(residual, residual.square().sum(1), torch.randn(batch, generator=g))
    found, expected = (f(codes, out, x, 1.0, 2) for f in (gradients, update.gradients_reference))
    for mine, theirs in zip(found[1:], expected[1:], strict=True):
        close(mine, theirs)


@pytest.mark.parametrize(("d", "d_out"), WIDTHS)
def test_the_dead_latent_aid_equals_autograd(d: int, d_out: int) -> None:
    _, x, residual, weights = problem(d, d_out)
    latents = torch.tensor([0, 2, 3, 5, 8])
    rows, loss = auxk_gradients(x, residual, weights, latents, 3, 1 / 32)
    leaves = [part[latents].clone().requires_grad_() for part in weights]
    top = (x @ leaves[0].T + leaves[2]).relu().topk(3, dim=1)
    code = torch.zeros(BATCH, 5).scatter(1, top.indices, top.values)
    expected = (code @ leaves[1] + residual).square().sum() / (residual - residual.mean(0)).square().sum()
    (expected / 32).backward()
    close(loss, expected.detach())
    for mine, leaf in zip((rows.W_enc, rows.W_dec, rows.b_enc[:, 0]), leaves, strict=True):
        close(mine, leaf.grad)
