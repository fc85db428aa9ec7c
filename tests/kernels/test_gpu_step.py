"""Triton decode and latent-major update against their references: on the device, or in Triton's interpreter."""

from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monosem.kernels import decode, update
from monosem.kernels.tuples import LowPrecisionCopy

pytest.importorskip("triton")

from monosem.kernels.gpu import decode as gpu_decode
from monosem.kernels.gpu import update as gpu_update
from monosem.kernels.gpu.pieces import WIDEST
from monosem.kernels.gpu.transpose import transpose

torch.set_num_threads(1)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def as_codes(rows, n, seed=0):
    """Codes of the given latents in each row, about a third of them at zero, and unit rows, bias and inputs."""
    g = torch.Generator().manual_seed(seed)
    indptr = torch.tensor([0, *(len(row) for row in rows)]).cumsum(0)
    indices = torch.tensor([latent for row in rows for latent in row], dtype=torch.int32)
    values = (torch.randn(len(indices), generator=g) + 0.5).clamp_min(0)
    return tuple(part.to(DEVICE) for part in (indptr, indices, values))


def matrices(batch, d, n, seed=1):
    g = torch.Generator().manual_seed(seed)
    W, b, x = (torch.randn(*shape, generator=g).to(DEVICE) for shape in ((n, d), (d,), (batch, d)))
    return W / W.norm(dim=1, keepdim=True), b, x


RAGGED = [[0, 3, 4], [], [4], [0, 1, 2, 3, 4, 6], [], [3, 4]]
"""Latent 5 never fires; 1, 2 and 6 fire at most once; two rows are empty."""


def problem(d=24, rows=RAGGED, n=7):
    W, b, x = matrices(len(rows), d, n)
    return as_codes(rows, n), W, b, x


def close(got, expected, tolerance=1e-5):
    assert got.shape == expected.shape and got.dtype == expected.dtype
    assert (got - expected).norm() <= tolerance * expected.norm().clamp_min(1e-6), (got - expected).abs().max()


def same(got, expected):
    return all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("d", [24, 40, 130])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decode_and_residual_equal_their_references(d, dtype):
    codes, W, b, x = problem(d)
    W = W.to(dtype)
    close(gpu_decode.decode(*codes, W, b), decode.decode_reference(*codes, W, b))
    for width in (None, 6):  # ragged, and rows padded to the longest
        got = gpu_decode.decode_residual(*codes, W, b, x, width)
        for mine, expected in zip(got, decode.residual_reference(*codes, W, b, x), strict=True):
            close(mine, expected)
        assert (got.grads[codes[2] == 0] == 0).all()


@pytest.mark.parametrize("width", [1, 5, 64, 300])
def test_fixed_width_rows_of_any_number_of_codes(width):
    g = torch.Generator().manual_seed(width)
    rows = [torch.randperm(310, generator=g)[:width].sort().values.tolist() for _ in range(2)]
    codes, W, b, x = problem(24, rows, 310)
    fixed = gpu_decode.decode_residual(*codes, W, b, x, width)
    expected = decode.residual_reference(*codes, W, b, x)
    for ours, theirs, wanted in zip(fixed, gpu_decode.decode_residual(*codes, W, b, x), expected, strict=True):
        close(ours, wanted)
        close(theirs, wanted)


def test_residual_takes_the_inputs_precision():
    codes, W, b, x = problem()
    got = gpu_decode.decode_residual(*codes, W, b, x.bfloat16(), 6)
    exact = decode.residual_reference(*codes, W, b, x.bfloat16())
    assert got.residual.dtype == torch.bfloat16
    assert torch.allclose(got.residual.float(), exact.residual, rtol=2**-7)
    close(got.grads, exact.grads)
    close(got.squares, exact.squares)


def test_lists_hold_active_codes_in_token_order():
    codes = problem()[0]
    pointers, tokens, entries = (part.tolist() for part in transpose(codes, 7))
    rows = decode.row_of_entry(codes[0], len(codes[1])).tolist()
    for latent in range(7):
        own = [
            p for p, (j, z) in enumerate(zip(codes[1].tolist(), codes[2].tolist(), strict=True)) if j == latent and z
        ]
        mine = slice(pointers[latent], pointers[latent + 1])
        assert entries[mine] == own and tokens[mine] == [rows[p] for p in own]


@settings(max_examples=8, deadline=None)
@given(st.lists(st.sets(st.integers(0, 3), max_size=4), min_size=1, max_size=5), st.integers(0, 1000))
def test_any_codes_decode_and_give_the_reference_gradients(rows, seed):
    rows = [sorted(row) for row in rows]
    codes, (W, b, x) = as_codes(rows, 4, seed), matrices(len(rows), 5, 4, seed)
    out = decode.residual_reference(*codes, W, b, x)
    for width in (None, 4):
        for mine, expected in zip(gpu_decode.decode_residual(*codes, W, b, x, width), out, strict=True):
            close(mine, expected, 1e-4)
    got = gpu_update.latent_gradients(codes, out, x, 0.5, 4)
    expected = update.gradients_reference(codes, out, x, 0.5, 4)
    assert torch.equal(got.latents, expected.latents)
    for mine, theirs in zip(got[1:], expected[1:], strict=True):
        close(mine, theirs)


def state(W, beta1=0.9, active_rows=False):
    weights = update.Weights(W.clone() * 1.5, W.clone(), torch.zeros(len(W), device=W.device))
    return weights, update.new_moments(weights, beta1, active_rows)


def flat(weights, moments):
    return [*weights, *(moments.first or ()), *moments.second, *([] if moments.touched is None else [moments.touched])]


def extra_rows(latents, d):
    g = torch.Generator().manual_seed(5)
    rows = (torch.randn(len(latents), width, generator=g).to(DEVICE) for width in (d, d, 1))
    return update.RowGradients(torch.tensor(latents, device=DEVICE), *rows)


def copies(weights):
    """The low-precision copies a GPU keeps."""
    return LowPrecisionCopy(weights.W_enc.bfloat16(), W_dec=weights.W_dec.bfloat16())


MODES = {"dense": (0.9, False), "row-sparse": (0.0, True), "active_row": (0.9, True)}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("d", [24, 130])
def test_update_equals_the_reference_over_steps(mode, d):
    beta1, active_rows = MODES[mode]
    codes, W, b, x = problem(d)
    quiet = as_codes([[4], [], [], [3], [], []], 7)  # every second step most latents are idle
    fast, slow = state(W, beta1, active_rows), state(W, beta1, active_rows)
    low_precision = copies(fast[0])
    for t in range(1, 6):
        part = (codes, quiet)[t % 2]
        out = decode.residual_reference(*part, fast[0].W_dec, b, x)
        extra = extra_rows([1, 5], d) if t == 3 else None
        scale = torch.tensor(0.1, device=DEVICE) if t == 2 else 0.1
        adam = update.Adam(1e-2, t, beta1)
        adam = update.Adam(1e-2, t, beta1, device=adam.scalars().to(DEVICE)) if t == 4 else adam
        got = gpu_update.latent_step(part, out, x, scale, *fast, adam, low_precision, extra)
        expected = update.reference(part, out, x, scale, *slow, adam, None, extra)
        close(got.to_input, expected.to_input)
        assert torch.equal(got.fired, expected.fired)
    for mine, theirs in zip(flat(*fast), flat(*slow), strict=True):
        close(mine.float(), theirs.float(), 1e-5)
    for kept, weight in ((low_precision.W_enc, fast[0].W_enc), (low_precision.W_dec, fast[0].W_dec)):
        assert ((kept.view(torch.int16) - weight.bfloat16().view(torch.int16)).abs() <= 1).all()


def test_row_sparse_adam_without_beta1_equals_dense_adam():
    W, b, x = matrices(1, 8, 5)
    rows = [[[0, 3]], [[3]], [[3]], [[1, 3]], [[3]], [[0]]]
    dense, sparse = state(W, 0.0), state(W, 0.0, True)
    for t in range(1, 14):
        part = as_codes(rows[t % 6], 5, seed=t)
        out = decode.residual_reference(*part, dense[0].W_dec, b, x)
        for mode in (dense, sparse):
            gpu_update.latent_step(part, out, x, 1.0, *mode, update.Adam(1e-2, t, 0.0))
    for mine, theirs in zip(sparse[0], dense[0], strict=True):
        close(mine, theirs, 1e-6)
    assert torch.equal(sparse[0].W_enc[4], W[4] * 1.5) and sparse[1].touched[4] == 0


HEAVY = [[0, 1, 2] if t == 0 else [0, 1] if t < 257 else [0] for t in range(600)]


def heavy_problem(batch=600, d=8):
    """Latents of up to 600, 257 and one token, all active, and one that never fires."""
    W, b, x = matrices(batch, d, 4)
    indptr, indices, values = as_codes(HEAVY[:batch], 4)
    codes = (indptr, indices, values + 0.1)
    return codes, W, b, x, decode.residual_reference(*codes, W, b, x)


def test_heavy_latents_are_summed_in_pieces():
    codes, W, _, x, out = heavy_problem()
    got = gpu_update.latent_gradients(codes, out, x, 0.1, 4)
    expected = update.gradients_reference(codes, out, x, 0.1, 4)
    assert got.latents.tolist() == expected.latents.tolist() == [0, 1, 2]
    for mine, theirs in zip(got[1:], expected[1:], strict=True):
        close(mine, theirs)
    fast, slow = state(W), state(W)
    mine = gpu_update.latent_step(codes, out, x, 0.1, *fast, update.Adam(1e-2, 1))
    theirs = update.reference(codes, out, x, 0.1, *slow, update.Adam(1e-2, 1))
    assert mine.fired.tolist() == theirs.fired.tolist() == [600, 257, 1, 0]
    close(mine.to_input, theirs.to_input)
    for a, c in zip(flat(*fast), flat(*slow), strict=True):
        close(a, c, 2e-5)


def test_compact_gradients_applied_later_give_the_same_update():
    codes, W, b, x = problem()
    out = decode.residual_reference(*codes, W, b, x)
    at_once, later = state(W, 0.0, True), state(W, 0.0, True)
    expected = gpu_update.latent_step(codes, out, x, 0.1, *at_once, update.Adam(1e-2, 1, 0.0))
    rows = gpu_update.latent_gradients(codes, out, x, 0.1, 7)
    nothing = as_codes([[]] * len(x), 7)
    got = gpu_update.latent_step(nothing, out, x, 0.1, *later, update.Adam(1e-2, 1, 0.0), extra=rows)
    assert same(flat(*later), flat(*at_once)) and torch.equal(got.to_input, expected.to_input)
    assert not got.fired.any()


def test_bf16_rows_are_read_as_they_are():
    codes, W, b, x = problem()
    x = x.bfloat16()
    out = gpu_decode.decode_residual(*codes, W, b, x, 6)
    got = gpu_update.latent_gradients(codes, out, x, 0.1, 7)
    wide = decode.Residual(out.residual.float(), *out[1:])
    expected = update.gradients_reference(codes, wide, x.float(), 0.1, 7)
    assert torch.equal(got.latents, expected.latents)
    for mine, theirs in zip(got[1:], expected[1:], strict=True):
        close(mine, theirs)


@contextmanager
def poisoned_memory():
    """Fresh memory is filled with NaN, and operations that may differ between runs are refused."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3, device=DEVICE).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def run_everything(codes, W, b, x, out):
    """All that decode and a step return or change, the decode on the first six rows."""
    weights, moments = state(W, 0.9, True)
    low_precision = copies(weights)
    short = (codes[0][:7], codes[1][: codes[0][6]], codes[2][: codes[0][6]])
    extra = extra_rows([3], W.shape[1])
    with poisoned_memory():
        results = [gpu_decode.decode(*short, W, b)]
        for width in (None, 3):
            results += gpu_decode.decode_residual(*short, W, b, x[:6], width)
        results += gpu_update.latent_gradients(codes, out, x, 0.1, len(W))
        results += gpu_update.latent_step(
            codes, out, x, 0.1, weights, moments, update.Adam(1e-2, 1), low_precision, extra
        )
    return [*results, *flat(weights, moments), low_precision.W_enc, low_precision.W_dec]


def test_two_runs_give_the_same_bits_from_poisoned_memory():
    codes, W, b, x, out = heavy_problem(260)
    first, second = (run_everything(codes, W, b, x, out) for _ in range(2))
    assert same(first, second)
    assert all(part.isfinite().all() for part in first)


def test_rows_too_wide_for_a_program_are_refused():
    d = WIDEST + 1
    codes, (W, b, x) = as_codes([[0]], 1), matrices(1, d, 1)
    out = decode.residual_reference(*codes, W, b, x)
    with pytest.raises(ValueError, match=str(d)):
        gpu_update.latent_gradients(codes, out, x, 1.0, 1)


def test_weights_that_cannot_be_updated_in_place_are_refused():
    codes, W, b, x = problem()
    out = decode.residual_reference(*codes, W, b, x)
    weights, moments = state(W)
    with pytest.raises(ValueError, match="contiguous"):
        turned = weights._replace(W_enc=W.T.contiguous().T)
        gpu_update.latent_step(codes, out, x, 0.1, turned, moments, update.Adam(1e-2, 1))
