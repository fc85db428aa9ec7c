"""The one-pass int8 screen against the one that stores its products, and against exact products: same bytes."""

import pytest
import torch
from monosem.kernels import topk
from monosem.kernels.cpu import encode as stored
from monosem.kernels.cpu import screen
from monosem.kernels.cpu.tile import has_vnni
from monosem.kernels.encode import quantise, reference

pytestmark = pytest.mark.skipif(not has_vnni(), reason="this CPU has no AVX512-VNNI")

SHAPES = [
    (1, 1, 1, 1), (1, 5, 9, 9), (3, 4, 32, 7), (15, 16, 31, 31), (14, 12, 33, 4), (29, 33, 450, 450),
    (70, 48, 1333, 16), (130, 63, 2050, 8), (9, 2060, 200, 3),
]  # fmt: skip


def problem(batch, d, n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, weight, bias = (torch.randn(size, generator=generator) for size in ((batch, d), (n, d), (n,)))
    return x, weight, 0.1 * bias


def both(x, weight, bias, k):
    low_precision = quantise(weight)
    return screen.encode_topk(x, weight, bias, k, low_precision), stored.encode_topk(x, weight, bias, k, low_precision)


def assert_same_bytes(got, expected):
    assert torch.equal(got.columns, expected.columns)
    assert torch.equal(got.values.view(torch.int32), expected.values.view(torch.int32))


@pytest.mark.parametrize("batch, d, n, k", SHAPES)
def test_same_bytes_as_stored_products(batch, d, n, k):
    x, weight, bias = problem(batch, d, n)
    got, expected = both(x, weight, bias, k)
    assert_same_bytes(got, expected)
    exact = reference(x, weight, bias, k)
    assert torch.equal(got.columns, exact.columns)
    torch.testing.assert_close(got.values, exact.values, rtol=1e-5, atol=1e-4)


def test_ties_spill_their_lists_and_go_to_the_lowest_column():
    x, weight, bias = problem(20, 8, 2000)
    x[4:] = 0
    bias[:] = 0
    got, expected = both(x, weight, bias, 5)
    assert_same_bytes(got, expected)
    assert got.columns[4:].eq(torch.arange(5)).all()


def test_estimates_that_rise_along_the_row_replace_the_whole_list():
    x, weight, _ = problem(3, 8, 3000)
    got, expected = both(x, weight, torch.arange(3000.0), 6)
    assert_same_bytes(got, expected)
    assert got.columns.min() > 2900


def test_rows_of_one_large_entry_have_wide_margins():
    x, weight, bias = problem(16, 256, 4000)
    x[:, 3] = 4000
    assert_same_bytes(*both(x, 1e-3 * weight, bias, 4))


def test_what_int8_cannot_hold_harms_no_other_row():
    x, weight, bias = problem(20, 8, 900)
    plain = both(x, weight, bias, 3)[0]
    x[1, 2], x[17, 0] = torch.nan, torch.inf
    got = both(x, weight, bias, 3)[0]
    assert got.columns.min() >= 0 and got.columns.max() < 900
    others = [r for r in range(20) if r not in (1, 17)]
    assert_same_bytes(*(topk.Codes(*(part[others] for part in found)) for found in (got, plain)))


def test_a_bias_that_is_nan_is_seen_first():
    x, weight, bias = problem(20, 8, 900)
    bias[5] = torch.nan
    got, exact = both(x, weight, bias, 3)[0], reference(x, weight, bias, 3)
    assert torch.equal(got.columns, exact.columns) and got.values.isnan().any(1).all()


def test_passes_over_the_weights_and_threads_change_nothing(monkeypatch):
    x, weight, bias = problem(100, 20, 700)
    whole, _ = both(x, weight, bias, 4)
    monkeypatch.setattr(screen, "LIST_BYTES", 1)
    assert_same_bytes(both(x, weight, bias, 4)[0], whole)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    assert_same_bytes(both(x, weight, bias, 4)[0], whole)
    torch.set_num_threads(before)
