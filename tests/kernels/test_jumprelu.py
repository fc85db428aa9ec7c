"""JumpReLU gradients against a dense fp64 autograd function with the rectangle estimator written out."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monosem.kernels import code_gradients as sampled
from monosem.kernels import decode, jumprelu
from monosem.kernels.dispatch import using
from monosem.kernels.tuples import Ragged


class DenseJumpReLU(torch.autograd.Function):
    """z * 1[z > theta] and 1[z > theta], with straight-through derivatives to theta."""

    @staticmethod
    def forward(ctx, z, theta, bandwidth):
        ctx.save_for_backward(z, theta)
        ctx.bandwidth = bandwidth
        active = (z > theta).to(z)
        return z * active, active

    @staticmethod
    def backward(ctx, grad_value, grad_active):
        z, theta = ctx.saved_tensors
        spike = ((z - theta).abs() < ctx.bandwidth / 2).to(z) / ctx.bandwidth
        to_theta = -(theta * spike * grad_value + spike * grad_active).sum(0)
        return grad_value * (z > theta), to_theta, None


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dense_gradients(pre, theta, W_dec, x, bandwidth, l0_coefficient):
    pre, theta = pre.double().requires_grad_(), theta.double().requires_grad_()
    values, active = DenseJumpReLU.apply(pre, theta, bandwidth)
    loss = (values @ W_dec.double() - x.double()).square().sum() / 2 + l0_coefficient * active.sum()
    loss.backward()
    return pre.grad, theta.grad


def sparse_gradients(codes, theta, W_dec, x, bandwidth, l0_coefficient):
    values = jumprelu.jumprelu_values(codes, theta)
    residual = decode.decode(codes.indptr, codes.indices, values, W_dec, torch.zeros(W_dec.shape[1])) - x
    grads = sampled.code_gradients(codes.indptr, codes.indices, W_dec, residual)
    return jumprelu.jumprelu_gradients(codes, grads, theta, bandwidth, l0_coefficient)


@pytest.mark.parametrize("backend", ["compiled", "reference"])
@pytest.mark.parametrize("l0_coefficient", [0.0, 0.3])
def test_gradients_equal_the_dense_function_in_fp64(backend, l0_coefficient):
    x, W_enc, b_enc, W_dec = random(60, 12), random(90, 12, seed=1), random(90, seed=2), random(90, 12, seed=3) / 4
    theta, bandwidth = random(90, seed=4).abs() + 0.5, 0.8
    with using(backend):
        codes = jumprelu.encode_jumprelu(x, W_enc, b_enc, theta, bandwidth)
        got = sparse_gradients(codes, theta, W_dec, x, bandwidth, l0_coefficient)
    pre = torch.full((60, 90), -torch.inf)
    rows = decode.row_of_entry(codes.indptr, len(codes.indices))
    pre[rows, codes.indices.long()] = codes.values
    to_pre, to_theta = dense_gradients(x @ W_enc.T + b_enc, theta, W_dec, x, bandwidth, l0_coefficient)
    assert (got.to_theta - to_theta).norm() < 1e-5 * to_theta.norm()
    assert (got.to_pre - to_pre[rows, codes.indices.long()]).norm() < 1e-5 * to_pre.norm()
    kept = torch.zeros(60, 90, dtype=torch.bool)
    kept[rows, codes.indices.long()] = True
    assert not to_pre[~kept].any()  # nothing that was left out has a gradient


def test_entries_at_inside_and_outside_the_window():
    theta, bandwidth = torch.tensor([1.0]), 0.5
    values = torch.tensor([0.74, 0.75, 0.76, 0.99, 1.0, 1.01, 1.24, 1.25, 2.0])
    codes = Ragged(torch.arange(10), torch.zeros(9, dtype=torch.int32), values)
    grads = 2.0 ** torch.arange(9)
    found = jumprelu.jumprelu_gradients(codes, grads, theta, bandwidth, 10.0)
    assert jumprelu.jumprelu_values(codes, theta).tolist() == [0.0] * 5 + values[5:].tolist()
    assert found.to_pre.tolist() == [0.0] * 5 + grads[5:].tolist()
    assert found.to_theta.item() == -(4 + 8 + 16 + 32 + 64 + 5 * 10) / 0.5


def test_the_code_holds_the_actives_and_the_lower_half_of_the_window():
    x = torch.tensor([[0.74], [0.75], [0.76], [1.0], [5.0]])
    codes = jumprelu.encode_jumprelu(x, torch.ones(1, 1), torch.zeros(1), torch.ones(1), 0.5)
    assert codes.values.tolist() == x[2:, 0].tolist()
    assert codes.indptr.tolist() == [0, 0, 0, 1, 2, 3]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 40), st.integers(0, 500), st.floats(0.01, 4), st.floats(0, 2))
def test_compiled_gradients_equal_the_reference(rows, n, seed, bandwidth, l0_coefficient):
    keep = random(rows, n, seed=seed) > 0.5
    counts = keep.sum(1)
    columns = torch.arange(n, dtype=torch.int32).expand(rows, n)[keep]
    codes = Ragged(torch.cat([counts.new_zeros(1), counts.cumsum(0)]), columns, random(len(columns), seed=seed + 1))
    grads, theta = random(len(columns), seed=seed + 2), random(n, seed=seed + 3)
    got = jumprelu.jumprelu_gradients(codes, grads, theta, bandwidth, l0_coefficient)
    expected = jumprelu.reference(codes, grads, theta, bandwidth, l0_coefficient)
    assert torch.equal(got.to_pre, expected.to_pre)
    assert torch.allclose(got.to_theta, expected.to_theta, rtol=1e-6, atol=1e-6)


def test_what_is_not_a_number_reaches_the_decoded_values():
    codes = Ragged(torch.tensor([0, 1]), torch.zeros(1, dtype=torch.int32), torch.tensor([torch.nan]))
    assert jumprelu.jumprelu_values(codes, torch.ones(1)).isnan().all()


@pytest.mark.parametrize("bandwidth", [0.0, -1.0])
def test_a_bandwidth_that_is_not_positive_is_refused(bandwidth):
    with pytest.raises(ValueError, match="bandwidth must be positive"):
        jumprelu.encode_jumprelu(torch.ones(1, 1), torch.ones(1, 1), torch.zeros(1), torch.ones(1), bandwidth)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_code_gradients_serve_every_entry_whatever_its_row(dtype):
    counts = torch.tensor([0, 3, 0, 40, 1])
    indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    indices = torch.randint(50, (44,), generator=torch.Generator().manual_seed(0)).int()
    W_dec, residual = random(50, 33, seed=1).to(dtype), random(5, 33, seed=2)
    got = sampled.code_gradients(indptr, indices, W_dec, residual)
    exact = (residual.double() @ W_dec.double().T)[decode.row_of_entry(indptr, 44), indices.long()]
    assert (got - exact).norm() < 1e-6 * exact.norm()
    assert torch.allclose(sampled.reference(indptr, indices, W_dec, residual), got, atol=1e-5)
