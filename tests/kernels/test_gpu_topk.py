"""Triton top-k and k-th value against their references: in the interpreter, and on a GPU where there is one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monosem.kernels import kth, topk

triton = pytest.importorskip("triton")
tl = triton.language
keys, gpu_kth, gpu_topk, compiling = (
    pytest.importorskip(f"monosem.kernels.gpu.{name}") for name in ("keys", "kth", "topk", "compile")
)

row_start = keys.row_start
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
HARD = torch.tensor([0.0, -0.0, 1.0, 1.0, -1.0, 2.0, torch.inf, -torch.inf, torch.nan, -torch.nan, 1e-40])


def generator(seed):
    return torch.Generator().manual_seed(seed)


def hard_rows(rows, n, seed, dtype=torch.float32):
    """Few-valued rows: ties everywhere, both zeros, infinities, NaN of both signs, and in fp32 a subnormal.

    Triton's interpreter reads bf16 subnormals as zero.
    """
    few = HARD if dtype == torch.float32 else HARD[:-1]
    return few[torch.randint(len(few), (rows, n), generator=generator(seed))].to(dtype)


def same(got, expected):
    """Equal to the bit, but for the payload of NaN."""
    assert torch.equal(got.columns.cpu(), expected.columns.cpu())
    bits = [codes.values.cpu().nan_to_num(nan=3e38, posinf=torch.inf, neginf=-torch.inf) for codes in (got, expected)]
    assert torch.equal(*(values.view(torch.int32) for values in bits))


def check(pre, k, bias=None, mask=None):
    on_device = (t if t is None else t.to(DEVICE) for t in (bias, mask))
    same(gpu_topk.topk(pre.to(DEVICE), k, *on_device), topk.reference(pre.cpu(), k, bias, mask))


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 3), st.integers(1, 300), st.sampled_from(DTYPES), st.booleans(), st.booleans(), st.data())
def test_short_rows_equal_the_reference(rows, n, dtype, biased, masked, data):
    k = data.draw(st.integers(1, n))
    bias = torch.randint(-1, 2, (n,), generator=generator(n)).float() if biased else None
    mask = torch.rand(n, generator=generator(n + 1)) > 0.5 if masked else None
    check(hard_rows(rows, n, k, dtype), k, bias, mask)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n, k, route", [(4101, 9, "groups"), (4100, 2000, "row"), (16400, 600, "scan")])
def test_every_route_equals_the_reference(n, k, route, dtype):
    assert gpu_topk.plan(n, k).route == route
    numbers = torch.randn(2, n, generator=generator(0)).to(dtype)
    numbers[1, 40:] = -torch.inf
    check(numbers, k)
    check(
        hard_rows(2, n, 1, dtype),
        k,
        torch.randn(n, generator=generator(2)),
        torch.rand(n, generator=generator(3)) > 0.3,
    )


def test_one_group_may_hold_all_k_or_each_group_one():
    n, k = 4101, 20
    group = gpu_topk.plan(n, k).group
    together, apart = torch.randn(2, n, generator=generator(0)).unbind()
    together[2 * group : 2 * group + k] += 100
    apart[group - 1 :: group][:k] += 100
    check(torch.stack([together, apart, torch.full((n,), 7.0)]), k)


def test_whole_row_and_rows_apart_in_memory():
    wide = torch.randn(2, 700, generator=generator(0))
    check(wide[:, :33], 33)
    check(wide.T[:50], 1)


def test_rows_beyond_two_to_the_31_elements_are_found():
    """Five rows 2**29 elements apart: the last begins at 2**31. Only the pages written are ever held."""
    rows, stride, n = 5, 2**29, 4101
    pre = torch.empty(4 * stride + n, dtype=torch.bfloat16, device=DEVICE).as_strided((rows, n), (stride, 1))
    pre.copy_(torch.randn(rows, n, generator=generator(0)))
    check(pre, 3)
    check(pre[:, :100], 3)


@triton.jit
def row_starts(out, row, stride):
    tl.store(out, row_start(tl.full([], row, tl.int32), stride))


def test_row_offsets_are_64_bit():
    out = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    row_starts[(1,)](out, 8191, 1_048_573)
    assert out.item() == 8191 * 1_048_573 > 2**31


def test_equal_bytes_twice():
    pre = torch.randn(4, 4101, generator=generator(0)).to(DEVICE)
    first, second = gpu_topk.topk(pre, 9), gpu_topk.topk(pre, 9)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("n", [1, 4097, 24576, 65536, 131072, 1 << 20, 1 << 24])
@pytest.mark.parametrize("k", [1, 32, 64, 500, 5000])
def test_plans_cover_the_row_within_their_limits(n, k):
    if k > n:
        return
    route, group, groups, why = gpu_topk.plan(n, k)
    assert why
    if route == "groups":
        assert groups * group >= n > (groups - 1) * group and groups > k
        assert max(groups, k * group) <= gpu_topk.LIMIT
    assert route != "row" or n <= gpu_topk.LIMIT


def test_the_large_shapes_select_by_groups():
    assert [gpu_topk.plan(s.n, s.k)[:3] for s in compiling.SHAPES] == [
        ("groups", 32, 768), ("groups", 32, 2048), ("groups", 64, 2048), ("groups", 128, 8192),
    ]  # fmt: skip
    assert all(len(gpu_topk.specs(shape)) == 7 for shape in compiling.SHAPES)


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 5000), st.booleans(), st.data())
def test_kth_equals_the_reference(size, hard, data):
    m = data.draw(st.integers(1, size))
    values = hard_rows(1, size, m)[0] if hard else torch.randn(size, generator=generator(m))
    got, expected = gpu_kth.kth_largest(values.to(DEVICE), m), kth.reference(values, m)
    torch.testing.assert_close(got.value.cpu(), expected.value, rtol=0, atol=0, equal_nan=True)
    assert got.spare.item() == expected.spare.item()
