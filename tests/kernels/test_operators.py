"""Kernels as PyTorch operators: shapes without data, tracing, gradients, sharded rows."""

import pytest
import torch
import torch.distributed as dist
from monosem.kernels import sharding
from monosem.kernels.code_gradients import code_gradients
from monosem.kernels.decode import decode, decode_reference, decode_residual
from monosem.kernels.encode import encode_topk
from monosem.kernels.explain import explain
from monosem.kernels.pursuit import pursuit
from monosem.kernels.threshold import encode_above
from monosem.kernels.topk import topk
from monosem.kernels.tuples import Adam, Weights
from monosem.kernels.update import latent_step, new_moments
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode


def inputs(device="cpu", batch=6, d=5, n=11, k=3):
    g = torch.Generator().manual_seed(0)
    x, W = torch.randn(batch, d, generator=g), torch.randn(n, d, generator=g)
    indices = torch.stack([torch.randperm(n, generator=g)[:k].sort().values for _ in range(batch)]).int()
    codes = (torch.arange(batch + 1) * k, indices.flatten(), torch.rand(batch * k, generator=g))
    return tuple(tensor.to(device) for tensor in (x, W, torch.zeros(n), torch.zeros(d))), codes


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_fake_tensors_go_through_a_whole_step_on_one_device(device):
    """No kernel runs: shapes, dtypes and devices come out as they would, also where there is no such device."""
    (x, W, b_enc, b_dec), codes = inputs()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        x, W, b_enc, b_dec, *codes = (
            FakeTensor(mode, tensor.to("meta"), torch.device(device)) for tensor in (x, W, b_enc, b_dec, *codes)
        )
        assert topk(x, 2).columns.dtype == torch.int32
        found = encode_topk(x, W, b_enc, 4)
        assert found.values.shape == (6, 4) and found.values.device.type == device
        out = decode_residual(*codes, W, b_dec, x, 3)
        assert out.residual.shape == x.shape and out.grads.shape == (18,)
        weights = Weights(W, W.clone(), b_enc)
        moments = new_moments(weights, 0.9, active_rows=False)
        done = latent_step(tuple(codes), out, x, 0.1, weights, moments, Adam(1e-3, 1))
        assert done.to_input.shape == (5,) and done.fired.shape == (11,) and done.fired.device.type == device
        assert pursuit(x, W, 2).residual_squares.shape == (6,)
        assert code_gradients(*codes[:2], W, x).shape == (18,)


def test_operators_pass_pytorch_s_own_checks():
    (x, W, b_enc, b_dec), codes = inputs()
    library = torch.ops.monosem
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    weights, second = [W.clone(), W.clone(), b_enc.clone()], [torch.zeros_like(t) for t in (W, W, b_enc)]
    first = [torch.zeros_like(tensor) for tensor in second]
    out = decode_residual(*codes, W, b_dec, x)
    step = (*codes, *out, x, torch.tensor(0.1), *weights, *first, *second, None, 1e-3, 1, 0.9, 0.999, 1e-8)
    for operator, args in {
        library.topk: (x, 2, None, None),
        library.encode_topk: (x, W, b_enc, 3, "fp32", None, None, None, None),
        library.decode: (*codes, W, b_dec),
        library.decode_residual: (*codes, W, b_dec, x, 3),
        library.code_gradients: (*codes[:2], W, x),
        library.above: (x, x[0], x[1]),
        library.pursuit: (x, W / W.norm(dim=1, keepdim=True), 2, None, False, 0.0),
        library.latent_step: (*step, *(None,) * 9),
    }.items():
        torch.library.opcheck(operator.default, args, test_utils=checks)


def test_compiled_code_traces_through():
    (x, W, b_enc, b_dec), _ = inputs()

    def reconstruct(x):
        found = encode_topk(x, W, b_enc, 3)
        indptr = torch.arange(len(x) + 1) * 3
        return decode(indptr, found.columns.flatten(), found.values.flatten().relu(), W, b_dec) * 2

    traced = torch.compile(reconstruct, backend="aot_eager", fullgraph=True)
    assert torch.equal(traced(x), reconstruct(x))


def test_ragged_sizes_are_known_only_when_run():
    (x, W, b_enc, _), _ = inputs()

    def total(x):
        return encode_above(x, W, b_enc, torch.tensor(0.5)).values.sum()

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        traced = torch.compile(total, backend="eager", fullgraph=False)
        assert torch.allclose(traced(x), total(x))


def test_decode_is_differentiable():
    (x, W, _, b_dec), (indptr, indices, values) = inputs()
    grads = []
    for function in (decode, decode_reference):
        leaves = [tensor.clone().requires_grad_() for tensor in (values, W, b_dec)]
        (function(indptr, indices, *leaves) - x).square().sum().backward()
        grads.append([leaf.grad for leaf in leaves])
    for mine, expected in zip(*grads, strict=True):
        assert torch.allclose(mine, expected, atol=1e-5)


@pytest.fixture
def two_ranks():
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield dist.init_device_mesh("cpu", (2,))
    dist.destroy_process_group()


def test_sharded_rows_are_encoded_where_they_lie(two_ranks):
    from torch.distributed.tensor import DTensor, Replicate, Shard

    sharding.register()
    (x, W, b_enc, _), _ = inputs()
    rows = DTensor.from_local(x, two_ranks, [Shard(0)], run_check=False)
    weights = [DTensor.from_local(tensor, two_ranks, [Replicate()], run_check=False) for tensor in (W, b_enc)]
    values, columns = encode_topk(rows, *weights, 3)
    expected = encode_topk(x, W, b_enc, 3)
    assert values.placements == (Shard(0),) and values.shape == (12, 3)
    assert torch.equal(values.to_local(), expected.values) and torch.equal(columns.to_local(), expected.columns)


def test_the_dispatcher_says_what_it_would_run_and_why():
    plan = explain(torch.device("cpu"), d_in=576, n_latents=9216, k=32, batch=2048, precision="fp32")
    assert set(plan) == {"backend", "encode", "topk", "decode", "update"}
    assert plan["decode"].startswith("gather") and "288 latents a code" in plan["decode"]
    few = explain(torch.device("cpu"), d_in=64, n_latents=256, k=64, batch=128)
    assert few["decode"].startswith("dense products")
    far = explain(torch.device("cuda"), d_in=4096, n_latents=1 << 20, k=64, batch=4096)
    assert far["backend"].startswith("triton") and far["topk"].startswith("groups: the 64 best of")
