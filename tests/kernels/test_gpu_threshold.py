"""Triton kernels of threshold, JumpReLU and code gradients: on a GPU where there is one, interpreted elsewhere."""

import pytest
import torch

pytest.importorskip("triton")

from monosem.kernels import code_gradients as sampled
from monosem.kernels import jumprelu, threshold
from monosem.kernels.gpu import code_gradients as gpu_sampled
from monosem.kernels.gpu import jumprelu as gpu_jumprelu
from monosem.kernels.gpu import threshold as gpu_threshold
from monosem.kernels.tuples import Ragged

device = "cuda" if torch.cuda.is_available() else "cpu"


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device)


def assert_equal(got: Ragged, expected: Ragged) -> None:
    assert torch.equal(got.indptr, expected.indptr)
    assert torch.equal(got.indices, expected.indices)
    assert torch.allclose(got.values, expected.values, rtol=0, atol=0, equal_nan=True)
    assert [part.dtype for part in got] == [torch.int64, torch.int32, torch.float32]


def ragged(counts: list[int], n: int, seed: int = 0) -> Ragged:
    columns = [random(n, seed=seed + r).argsort()[:count].sort().values for r, count in enumerate(counts)]
    indptr = torch.tensor([0, *counts], device=device).cumsum(0)
    return Ragged(indptr, torch.cat(columns).int(), random(sum(counts), seed=seed + 99))


@pytest.mark.parametrize("rows, n", [(3, 1), (4, 37), (2, 2048), (3, 5000)])
def test_above_equals_the_reference(rows, n):
    pre, bias, bound = random(rows, n), random(n, seed=1), random(n, seed=2).abs()
    assert_equal(gpu_threshold.above(pre, bias, bound), threshold.reference(pre, bias, bound))


@pytest.mark.parametrize("bound, kept", [(-torch.inf, 300), (torch.inf, 0), (torch.nan, 300)])
def test_all_and_none(bound, kept):
    found = gpu_threshold.above(random(3, 100), torch.zeros(100, device=device), torch.full((100,), bound).to(device))
    assert len(found.indices) == kept == found.indptr[-1]


def test_nan_is_kept_equality_is_not_and_infinities_are_ordered():
    pre, bound = random(4, 90), torch.ones(90, device=device)
    pre[0, 70], pre[1], pre[2, 5], pre[2, 6], pre[3] = torch.nan, -torch.inf, 1, torch.inf, 1
    found = gpu_threshold.above(pre, torch.zeros(90, device=device), bound)
    assert_equal(found, threshold.reference(pre, torch.zeros(90, device=device), bound))
    assert found.values[: found.indptr[1]].isnan().sum() == 1
    assert found.indptr[4] == found.indptr[3]


def test_no_rows_give_no_codes():
    found = gpu_threshold.above(random(0, 9), random(9), random(9))
    assert found.indptr.tolist() == [0]


@pytest.mark.parametrize("l0_coefficient", [0.0, 0.2])
def test_jumprelu_gradients_equal_the_reference(l0_coefficient):
    codes = ragged([0, 12, 7, 0, 12, *[1] * 150], 12)  # latents with none, few and more entries than one block
    codes = codes._replace(
        indices=torch.where(codes.indptr[-1] - 150 <= torch.arange(181, device=device), 3, codes.indices)
    )
    grads, theta = random(181, seed=5), random(12, seed=6).abs()
    theta[4] = codes.values[codes.indices == 4][0]  # an entry exactly at its threshold
    got = gpu_jumprelu.jumprelu_gradients(codes, grads, theta, 1.5, l0_coefficient)
    expected = jumprelu.reference(codes, grads, theta, 1.5, l0_coefficient)
    assert torch.equal(got.to_pre, expected.to_pre)
    assert torch.allclose(got.to_theta, expected.to_theta, rtol=1e-5, atol=1e-5)
    assert got.to_theta.count_nonzero() > 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("d", [33, 128, 200])
def test_code_gradients_equal_the_reference(d, dtype):
    codes = ragged([0, 3, 40, 0, 1], 50)
    W_dec, residual = random(50, d, seed=1).to(dtype), random(5, d, seed=2)
    for given in (residual, residual.bfloat16()):  # a rounded residual's gradients are not rounded again
        got = gpu_sampled.code_gradients(codes.indptr, codes.indices, W_dec, given)
        expected = sampled.reference(codes.indptr, codes.indices, W_dec, given.float())
        assert got.dtype == torch.float32 and (got - expected).norm() < 1e-6 * expected.norm()


def test_code_gradients_of_no_codes():
    none = torch.zeros(0, dtype=torch.int32, device=device)
    assert len(gpu_sampled.code_gradients(torch.zeros(4, device=device).long(), none, random(5, 8), random(3, 8))) == 0
