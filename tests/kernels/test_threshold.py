"""The threshold encode against masks of the whole matrix: any count a row, chunks, the int8 screen, NaN."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monosem.kernels import chunks, threshold
from monosem.kernels.csr import concatenate
from monosem.kernels.encode import low_precision_copy
from monosem.kernels.tuples import Ragged


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_equal(got: Ragged, expected: Ragged) -> None:
    assert torch.equal(got.indptr, expected.indptr)
    assert torch.equal(got.indices, expected.indices)
    assert torch.allclose(got.values, expected.values, rtol=0, atol=0, equal_nan=True)
    assert [part.dtype for part in got] == [torch.int64, torch.int32, torch.float32]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 5), st.integers(1, 150), st.integers(0, 1000), st.floats(-3, 3))
def test_above_equals_a_mask(rows, n, seed, bound):
    pre, bias = random(rows, n, seed=seed), random(n, seed=seed + 1)
    bounds = bound + random(n, seed=seed + 2)
    assert_equal(threshold.above(pre, bias, bounds), threshold.reference(pre, bias, bounds))


def test_known_entries_are_found_and_equality_is_not_above():
    pre = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0], [5.0, 1.5, 3.0]])
    found = threshold.above(pre, torch.tensor([0.0, 0.5, 0.0]), torch.tensor([1.0, 2.0, 2.0]))
    assert found.indptr.tolist() == [0, 2, 2, 4]
    assert found.indices.tolist() == [1, 2, 0, 2]
    assert found.values.tolist() == [2.5, 3.0, 5.0, 3.0]


@pytest.mark.parametrize("bound, kept", [(-torch.inf, 3 * 70), (torch.inf, 0)])
def test_all_and_none(bound, kept):
    found = threshold.encode_above(random(3, 8), random(70, 8), torch.zeros(70), torch.tensor(bound))
    assert len(found.indices) == kept == found.indptr[-1]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_chunks_give_the_whole_matrix(precision, monkeypatch):
    x, W_enc, b_enc, bound = random(200, 24), random(130, 24, seed=1), random(130, seed=2), random(130, seed=3).abs()
    whole = threshold.reference(x @ W_enc.T, b_enc, bound)
    monkeypatch.setitem(chunks.LEAST_ROWS, "cpu", 64)
    monkeypatch.setitem(chunks.CHUNK_BYTES, "cpu", 64 * 4 * 130)
    found = threshold.encode_above(x, W_enc, b_enc, bound, precision=precision)
    assert torch.equal(found.indptr, whole.indptr)
    assert torch.equal(found.indices, whole.indices)
    assert torch.allclose(found.values, whole.values, atol=1e-5)


def test_the_int8_screen_is_exact_under_outliers_and_reads_the_callers_copy():
    x, W_enc, b_enc = random(64, 96), random(700, 96, seed=1), random(700, seed=2)
    x[:, 5] *= 60
    x *= torch.logspace(-3, 3, 64)[:, None]
    W_enc *= torch.logspace(-2, 2, 700)[:, None]
    bound = random(700, seed=3).abs() * W_enc.norm(dim=1) * 20
    exact = threshold.encode_above(x.double().float(), W_enc, b_enc, bound)
    found = threshold.encode_above(
        x, W_enc, b_enc, bound, precision="int8", low_precision=low_precision_copy(W_enc, W_enc, "int8")
    )
    assert len(exact.indices) > 1000
    assert torch.equal(found.indptr, exact.indptr)
    assert torch.equal(found.indices, exact.indices)
    assert torch.allclose(found.values, exact.values, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize(
    "broken", ["one input", "a whole row", "an infinite input", "a latent", "part of a latent", "bias"]
)
def test_values_that_are_not_numbers_are_kept(precision, broken):
    x, W_enc, b_enc = random(4, 16), random(40, 16, seed=1), torch.zeros(40)
    match broken:
        case "one input":
            x[2, 3] = torch.nan
        case "a whole row":
            x[2] = torch.nan
        case "an infinite input":
            x[2, 3:5] = torch.inf
            W_enc[:, 3], W_enc[:, 4] = 1, -1
        case "a latent":
            W_enc[7] = torch.nan
        case "part of a latent":
            W_enc[7, 0] = torch.nan
        case "bias":
            b_enc[7] = torch.nan
    expected = (x @ W_enc.T + b_enc).isnan().sum()
    found = threshold.encode_above(x, W_enc, b_enc, torch.tensor(1e6), precision=precision)
    assert expected in (4, 40)
    assert found.values.isnan().sum() == expected == len(found.values)


def test_an_int8_screen_of_zero_rows_and_zero_latents_is_exact():
    x, W_enc, b_enc = random(5, 16), random(40, 16, seed=1), random(40, seed=2)
    x[1], W_enc[:9] = 0, 0
    found = threshold.encode_above(x, W_enc, b_enc, torch.tensor(0.5), precision="int8")
    expected = threshold.encode_above(x, W_enc, b_enc, torch.tensor(0.5))
    assert torch.equal(found.indices, expected.indices)
    assert torch.equal(found.indptr, expected.indptr)


def test_bits_do_not_depend_on_the_number_of_threads():
    pre, bias, bound = random(37, 500), random(500, seed=1), torch.ones(500)
    one = threshold.above(pre, bias, bound)
    torch.set_num_threads(3)
    try:
        three = threshold.above(pre, bias, bound)
    finally:
        torch.set_num_threads(1)
    assert_equal(three, one)


@pytest.mark.parametrize("value", [-1.0, 0.7])
def test_the_inference_threshold_is_never_below_zero(value):
    x, W_enc, b_enc = random(9, 12), random(50, 12, seed=1), random(50, seed=2)
    found = threshold.encode_threshold(x, W_enc, b_enc, torch.tensor(value))
    pre = x @ W_enc.T + b_enc
    assert len(found.values) == (pre > max(value, 0)).sum()
    assert (found.values > max(value, 0)).all()


def test_no_rows_give_no_codes():
    found = threshold.encode_above(torch.zeros(0, 6), random(9, 6), torch.zeros(9), torch.tensor(0.0))
    assert found.indptr.tolist() == [0]
    assert len(found.indices) == len(found.values) == 0


def test_concatenated_parts_equal_the_whole():
    pre, bias, bound = random(10, 33), random(33, seed=1), torch.zeros(33)
    parts = [threshold.reference(part, bias, bound) for part in pre.split([4, 0, 1, 5])]
    assert_equal(concatenate(parts), threshold.reference(pre, bias, bound))
    with pytest.raises(ValueError, match="at least one part"):
        concatenate([])
