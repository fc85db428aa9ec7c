"""Selection kernels against their references: any shape, ties, infinities, k = n."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monosem.kernels import batch_topk, chunks, encode, kth, threshold, topk

SHAPES = [(1, 1, 1), (3, 7, 7), (5, 33, 1), (4, 64, 40), (17, 1000, 31), (6, 4097, 64), (2, 96, 96)]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rows, n, k", SHAPES)
def test_topk_equals_a_stable_sort(rows, n, k):
    pre = random(rows, n)
    for got, expected in zip(topk.topk(pre, k), topk.reference(pre, k), strict=True):
        assert torch.equal(got, expected)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(1, 200), st.data())
def test_ties_go_to_the_lowest_column(rows, n, data):
    k = data.draw(st.integers(1, n))
    levels = data.draw(st.integers(1, 4))
    pre = torch.randint(levels, (rows, n), generator=torch.Generator().manual_seed(n)).float()
    for got, expected in zip(topk.topk(pre, k), topk.reference(pre, k), strict=True):
        assert torch.equal(got, expected)


def test_infinities_are_ordered_like_numbers():
    pre = random(3, 100)
    pre[0] = -torch.inf
    pre[1, 5:90] = -torch.inf
    pre[2, 50] = torch.inf
    for got, expected in zip(topk.topk(pre, 20), topk.reference(pre, 20), strict=True):
        assert torch.equal(got, expected)


HARD = torch.tensor([0.0, -0.0, 1.0, -1.0, 2.0, torch.inf, -torch.inf, torch.nan, -torch.nan])


def hard_rows(rows, n, seed, levels):
    """Few-valued rows: ties everywhere, both zeros; with all levels infinities and NaN of both signs."""
    return HARD[torch.randint(levels, (rows, n), generator=torch.Generator().manual_seed(seed))]


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 5), st.integers(1, 300), st.sampled_from([5, 7, 9]), st.booleans(), st.booleans(),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]), st.data(),
)  # fmt: skip
def test_hard_rows_with_bias_and_mask_equal_the_reference(rows, n, levels, biased, masked, dtype, data):
    k = data.draw(st.integers(1, n))
    pre = hard_rows(rows, n, k, levels).to(dtype)
    bias = torch.randint(-1, 2, (n,), generator=torch.Generator().manual_seed(n)).float() if biased else None
    mask = random(n, seed=n) > 0 if masked else None
    got, expected = topk.topk(pre, k, bias=bias, mask=mask), topk.reference(pre, k, bias, mask)
    assert torch.equal(got.columns, expected.columns)
    torch.testing.assert_close(got.values, expected.values, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(got.values.signbit() & (got.values == 0), expected.values.signbit() & (expected.values == 0))


def test_nan_is_seen_first():
    row = torch.tensor([[1.0, -torch.nan, torch.inf, torch.nan, 3.0]])
    assert topk.topk(row, 2).columns.tolist() == [[1, 3]]
    assert topk.topk(row, 3).columns.tolist() == [[1, 2, 3]]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 2000), st.sampled_from([5, 7, 9]), st.data())
def test_the_m_largest_of_a_flat_tensor(size, levels, data):
    m = data.draw(st.integers(1, size))
    values = hard_rows(1, size, m, levels)[0]
    got, expected = kth.kth_largest(values, m), kth.reference(values, m)
    torch.testing.assert_close(got.value, expected.value, rtol=0, atol=0, equal_nan=True)
    assert got.spare == expected.spare
    chosen = kth.among_largest(values, got).nonzero()[:, 0]
    assert torch.equal(chosen, values.sort(descending=True, stable=True).indices[:m].sort().values)


@pytest.mark.parametrize("m", [0, 6])
def test_impossible_m_is_refused(m):
    with pytest.raises(ValueError, match="m must be from 1 to the 5 entries"):
        kth.kth_largest(torch.zeros(5), m)


@pytest.mark.parametrize("k", [0, 11])
def test_impossible_k_is_refused(k):
    with pytest.raises(ValueError, match="k must be from 1 to the 10 columns"):
        topk.topk(random(2, 10), k)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("batch, d, n, k", [(1, 5, 9, 9), (70, 48, 333, 16), (130, 33, 2050, 8)])
def test_encode_equals_the_whole_matrix(precision, batch, d, n, k, monkeypatch):
    monkeypatch.setitem(chunks.LEAST_ROWS, "cpu", 64)
    monkeypatch.setitem(chunks.CHUNK_BYTES, "cpu", 64 * 4 * n)  # several chunks
    x, W_enc, b_enc = random(batch, d), random(n, d, seed=1), random(n, seed=2)
    values, columns = encode.encode_topk(x, W_enc, b_enc, k, precision=precision)
    expected, expected_columns = encode.reference(x, W_enc, b_enc, k)
    assert torch.equal(columns, expected_columns)
    assert torch.allclose(values, expected, atol=1e-4)


def test_int8_screen_is_exact_under_outlier_dimensions_and_uneven_rows():
    x, W_enc = random(200, 64), random(3000, 64, seed=1)
    x[:, 3] *= 60
    W_enc *= torch.logspace(-2, 1, 3000)[:, None]
    got = encode.encode_topk(x, W_enc, torch.zeros(3000), 24, precision="int8")
    expected = encode.reference(x, W_enc, torch.zeros(3000), 24)
    assert torch.equal(got[1], expected[1])


def test_int8_screen_of_zero_rows():
    x = torch.zeros(2, 8)
    values, columns = encode.encode_topk(x, random(40, 8), torch.arange(40.0), 3, precision="int8")
    assert columns.tolist() == [[37, 38, 39]] * 2 and values.tolist() == [[37, 38, 39]] * 2


def test_bf16_codes_are_close():
    x, W_enc = random(20, 64), random(500, 64, seed=1)
    values, _ = encode.encode_topk(x, W_enc, torch.zeros(500), 8, precision="bf16")
    expected, _ = encode.reference(x, W_enc, torch.zeros(500), 8)
    assert torch.allclose(values.sum(1), expected.sum(1), rtol=0.01)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("skew", [0.0, 8.0])
def test_batch_topk_equals_a_sort_of_the_batch(skew, precision):
    """With skew, a few rows hold nearly all winners: more than the first pass keeps for them."""
    x, W_enc, b_enc = random(40, 16), random(600, 16, seed=1), torch.zeros(600)
    x[:3] *= 1 + skew
    got = batch_topk.encode_batch_topk(x, W_enc, b_enc, 5, precision=precision)
    expected = batch_topk.reference(x, W_enc, b_enc, 5)
    assert torch.equal(got.indptr, expected.indptr) and torch.equal(got.indices, expected.indices)
    assert torch.allclose(got.values, expected.values, atol=1e-5)
    assert len(got.values) == 200
    if skew:
        assert int(got.indptr.diff().max()) > batch_topk.HEADROOM * 5


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 90), st.integers(1, 60), st.integers(1, 4), st.booleans(), st.data())
def test_batch_topk_ties_go_to_the_earlier_row_then_column(batch, n, levels, lost, data):
    """Whole numbers, exact in any order of summation: many tie at the bound, within rows and across them."""
    k = data.draw(st.integers(1, n))
    generator = torch.Generator().manual_seed(batch * n)
    x = torch.randint(levels, (batch, 3), generator=generator).float()
    W_enc = torch.randint(-1, 3, (n, 3), generator=generator).float()
    b_enc = torch.randint(2, (n,), generator=generator).float()
    if lost and batch:
        x[batch // 2, 1] = torch.nan
    got, expected = batch_topk.encode_batch_topk(x, W_enc, b_enc, k), batch_topk.reference(x, W_enc, b_enc, k)
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)


def test_batch_topk_of_equal_entries_looks_again_at_few_rows(monkeypatch):
    """All entries tie: the first rows take all places, and one chunk of rows is encoded again."""
    looked = []
    again = batch_topk.encode_above
    monkeypatch.setattr(
        batch_topk, "encode_above", lambda x, *rest, **more: looked.append(len(x)) or again(x, *rest, **more)
    )
    monkeypatch.setitem(chunks.CHUNK_BYTES, "cpu", 1)
    monkeypatch.setitem(chunks.LEAST_ROWS, "cpu", 64)
    got = batch_topk.encode_batch_topk(torch.zeros(300, 2), torch.zeros(50, 2), torch.ones(50), 4)
    assert got.indptr.diff().tolist() == [50] * 24 + [0] * 276
    assert looked == [64]


def test_batch_topk_refuses_impossible_k():
    with pytest.raises(ValueError, match="k must be from 1 to the 50 latents, got 51"):
        batch_topk.encode_batch_topk(random(4, 8), random(50, 8), torch.zeros(50), 51)


def test_batch_topk_keeps_positive_codes_only():
    got = batch_topk.encode_batch_topk(random(4, 8), random(50, 8), torch.full((50,), -100.0), 5)
    assert got.indptr.tolist() == [0] * 5


def test_threshold_codes(monkeypatch):
    x, W_enc, b_enc = random(150, 8), random(70, 8, seed=1), random(70, seed=2)
    monkeypatch.setitem(chunks.LEAST_ROWS, "cpu", 64)
    monkeypatch.setitem(chunks.CHUNK_BYTES, "cpu", 1)  # 64 rows a chunk
    got = threshold.encode_threshold(x, W_enc, b_enc, torch.tensor(2.0))
    pre = x @ W_enc.T + b_enc
    assert torch.equal(got.indptr.diff(), (pre > 2).sum(1))
    assert torch.allclose(got.values, pre[pre > 2], atol=1e-5)
