"""Decode and update kernels against dense references and torch's own Adam."""

import numpy as np
import pytest
import torch
from monosem.kernels import decode, update
from monosem.kernels.cpu.threads import even_parts, weighted_parts
from monosem.kernels.cpu.update import transpose_codes
from monosem.kernels.encode import quantise


def problem(batch=50, d=24, n=300, k=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    x, W = torch.randn(batch, d, generator=g), torch.randn(n, d, generator=g)
    counts = torch.randint(0, k + 1, (batch,), generator=g)  # ragged, empty rows included
    indptr = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    indices = torch.cat([torch.randperm(n, generator=g)[:c].sort().values for c in counts.tolist()]).int()
    values = torch.randn(len(indices), generator=g).clamp_min(0)  # about half cut by the relu
    return (indptr, indices, values), W / W.norm(dim=1, keepdim=True), torch.randn(d, generator=g), x


def close(a, b, tolerance=1e-5):
    assert (a - b).norm() <= tolerance * b.norm().clamp_min(1e-8), (a - b).abs().max()


def test_decode_and_residual_equal_their_references():
    codes, W, b, x = problem()
    close(decode.decode(*codes, W, b), decode.decode_reference(*codes, W, b))
    for got, expected in zip(
        decode.decode_residual(*codes, W, b, x), decode.residual_reference(*codes, W, b, x), strict=True
    ):
        close(got, expected)


def test_code_gradient_equals_autograd():
    codes, W, b, x = problem()
    values = codes[2].clone().requires_grad_()
    residual = decode.decode_reference(codes[0], codes[1], values, W, b) - x
    (0.5 * residual.square().sum()).backward()
    got = decode.decode_residual(*codes, W, b, x).grads
    close(got, values.grad * (codes[2] > 0))


def state(W):
    weights = update.Weights(W.clone() * 1.5, W.clone(), torch.zeros(len(W)))
    return weights, update.new_moments(weights, 0.9, active_rows=False)


def tensors(state):
    weights, moments = state
    return [*weights, *(moments.first or ()), *moments.second]


def same(fast, slow, tolerance=1e-4):
    for a, c in zip(tensors(fast), tensors(slow), strict=True):
        close(a, c, tolerance)


def extra_rows(n, d):
    g = torch.Generator().manual_seed(5)
    return update.RowGradients(torch.tensor([1, n - 1]), *(torch.randn(2, w, generator=g) for w in (d, d, 1)))


@pytest.mark.parametrize("with_extra", [False, True])
def test_update_equals_dense_gradients_and_adam_over_steps(with_extra):
    codes, W, b, x = problem()
    extra = extra_rows(*W.shape) if with_extra else None
    fast, slow = state(W), state(W)
    low_precision = quantise(fast[0].W_enc)
    for t in range(1, 6):
        out = decode.decode_residual(*codes, fast[0].W_dec, b, x)
        adam = update.Adam(lr=1e-2, t=t)
        got = update.latent_step(codes, out, x, 0.01, *fast, adam, low_precision, extra)
        expected = update.reference(codes, out, x, 0.01, *slow, adam, None, extra)
        close(got.to_input, expected.to_input)
        assert torch.equal(got.fired, expected.fired)
    same(fast, slow)
    for kept, made in zip(low_precision, quantise(fast[0].W_enc), strict=True):
        assert made is None or torch.allclose(kept.float(), made.float(), rtol=1e-6)
    assert torch.allclose(fast[0].W_dec.norm(dim=1), torch.ones(len(W)), atol=1e-5)


def test_reference_adam_is_torch_adam():
    codes, W, b, x = problem()
    ours = state(W)
    theirs = [weight.clone().requires_grad_() for weight in ours[0]]
    optimizer = torch.optim.Adam([theirs[0], theirs[2]], lr=1e-2)  # the decoder is also projected
    out = decode.residual_reference(*codes, W, b, x)
    for t in range(1, 4):
        update.reference(codes, out, x, 0.5, *ours, update.Adam(lr=1e-2, t=t))
        pre_grad = torch.zeros(len(x), len(W)).index_put_(
            (decode.row_of_entry(codes[0], len(codes[1])), codes[1].long()), 0.5 * out.grads
        )
        theirs[0].grad, theirs[2].grad = pre_grad.T @ x, pre_grad.sum(0)
        optimizer.step()
    close(ours[0].W_enc, theirs[0].detach())
    close(ours[0].b_enc, theirs[2].detach())


def test_update_gives_the_same_bytes_for_any_thread_count():
    codes, W, b, x = problem(batch=400, n=90)
    out = decode.decode_residual(*codes, W, b, x)
    results = []
    threads = torch.get_num_threads()
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        weights = state(W)
        update.latent_step(codes, out, x, 0.01, *weights, update.Adam(lr=1e-2, t=1))
        results.append(weights)
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(tensors(results[0]), tensors(other), strict=True))


def test_transposed_codes_ascend_by_token_within_each_latent():
    indptr, indices, _ = problem()[0]
    n, nnz = 300, len(indices)
    pointers, tokens, entries = np.empty(n + 1, np.int64), np.empty(nnz, np.int32), np.empty(nnz, np.int32)
    transpose_codes(indptr.numpy(), indices.numpy(), n, pointers, tokens, entries)
    assert pointers[-1] == nnz and sorted(entries) == list(range(nnz))
    for j in range(n):
        own = slice(pointers[j], pointers[j + 1])
        assert (indices.numpy()[entries[own]] == j).all() and (np.diff(tokens[own]) > 0).all()


def test_parts_cover_all_rows_once():
    for parts in (even_parts(7, 3), even_parts(2, 5), weighted_parts(np.array([9.0, 1, 1, 1, 9, 1, 1]), 3)):
        covered = [row for start, stop in parts for row in range(start, stop)]
        assert covered == list(range(len(covered))) and len(covered) in (7, 2)
    assert weighted_parts(np.array([100.0, 1, 1, 1]), 2) == [(0, 1), (1, 4)]
