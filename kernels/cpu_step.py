"""Compiled CPU loops of the sparse step: decode with residual and code gradient, and the latent-major update."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from .cpu_encode import dot, quantise_row

FAST = {"reassoc", "contract", "nsz"}


@njit(nogil=True, cache=True, error_model="numpy", fastmath=FAST)
def add_scaled(target, factor, source):
    """target += factor * source."""
    for i in range(target.shape[0]):
        target[i] += factor * source[i]


@njit(nogil=True, cache=True, error_model="numpy")
def decode_rows(start, stop, indptr, indices, values, weight, bias, out):
    """out[r] = bias + sum of values * weight[indices] over the codes of row r."""
    for r in range(start, stop):
        out[r] = bias
        for p in range(indptr[r], indptr[r + 1]):
            add_scaled(out[r], values[p], weight[indices[p]])


@njit(nogil=True, cache=True, error_model="numpy")
def residual_rows(start, stop, indptr, indices, values, weight, bias, x, residual, squares, grads):
    """residual[r] = x_hat - x, squares[r] = |residual[r]|^2, grads[p] = weight[indices[p]] . residual[r].

    The decoder rows of one token are read twice in a row, the second time from cache.
    """
    for r in range(start, stop):
        row = residual[r]
        for i in range(row.shape[0]):
            row[i] = bias[i] - x[r, i]
        for p in range(indptr[r], indptr[r + 1]):
            add_scaled(row, values[p], weight[indices[p]])
        squares[r] = dot(row, row)
        for p in range(indptr[r], indptr[r + 1]):
            grads[p] = dot(weight[indices[p]], row) if values[p] > 0 else np.float32(0)


@njit(nogil=True, cache=True, error_model="numpy")
def transpose_codes(indptr, indices, n_latents, pointers, tokens, entries):
    """Counting sort of the codes by latent, tokens ascending within each: pointers [n+1], tokens, entries [nnz]."""
    pointers[:] = 0
    for p in range(indices.shape[0]):
        pointers[indices[p] + 1] += 1
    for j in range(n_latents):
        pointers[j + 1] += pointers[j]
    cursor = pointers[:-1].copy()
    for r in range(indptr.shape[0] - 1):
        for p in range(indptr[r], indptr[r + 1]):
            slot = cursor[indices[p]]
            tokens[slot] = r
            entries[slot] = p
            cursor[indices[p]] = slot + 1


class AdamStep(NamedTuple):
    """Scalars of one Adam step; bias corrections are already divided into `lr` and `eps_hat` per latent row."""

    lr: np.float32
    beta1: np.float32
    beta2: np.float32
    correct1: np.float32
    correct2: np.float32
    eps: np.float32


@njit(nogil=True, cache=True, error_model="numpy", fastmath=FAST)
def adam_row(p, g, m, v, step):
    """One Adam update of a row in place, without weight decay."""
    rate = step.lr / step.correct1
    root = np.float32(1) / np.sqrt(step.correct2)
    for i in range(p.shape[0]):
        m[i] = step.beta1 * m[i] + (np.float32(1) - step.beta1) * g[i]
        v[i] = step.beta2 * v[i] + (np.float32(1) - step.beta2) * g[i] * g[i]
        p[i] -= rate * m[i] / (np.sqrt(v[i]) * root + step.eps)


@njit(nogil=True, cache=True, error_model="numpy", fastmath=FAST)
def normalise_row(row):
    """Scale a row to unit norm in place."""
    inverse = np.float32(1) / max(np.sqrt(dot(row, row)), np.float32(1e-12))
    for i in range(row.shape[0]):
        row[i] *= inverse


@njit(nogil=True, cache=True, error_model="numpy")
def bias_gradients(pointers, entries, values, grads, scale, bias_grads, fired):
    """bias_grads[j] += scale * sum of the code gradients of latent j; fired[j] = how many codes are active."""
    for j in range(fired.shape[0]):
        count = 0
        for q in range(pointers[j], pointers[j + 1]):
            if values[entries[q]] > 0:
                bias_grads[j] += scale * grads[entries[q]]
                count += 1
        fired[j] = count


@njit(nogil=True, cache=True, error_model="numpy")
def latent_rows(
    start, stop, pointers, tokens, entries, values, grads, x, residual, scale, extra_row, extra,
    weights, first, second, step, shadow, bias_grads,
):  # fmt: skip
    """Both weight gradients, Adam, projection, unit norm and the int8 shadow of latents start..stop, in one pass.

    weights, first, second: (W_enc [n, d], W_dec [n, d], b_enc [n]) and their Adam moments.
    extra: (encoder, decoder) gradient rows added where extra_row[j] >= 0 (the dead-latent aid).
    shadow: (rows int8 [n, d], scale [n], norm [n]) of the updated encoder.
    """
    d = x.shape[1]
    grad_enc, grad_dec = np.empty(d, np.float32), np.empty(d, np.float32)
    for j in range(start, stop):
        grad_enc[:] = 0
        grad_dec[:] = 0
        for q in range(pointers[j], pointers[j + 1]):
            p, t = entries[q], tokens[q]
            if values[p] > 0:
                add_scaled(grad_enc, scale * grads[p], x[t])
                add_scaled(grad_dec, scale * values[p], residual[t])
        if extra_row[j] >= 0:
            add_scaled(grad_enc, np.float32(1), extra[0][extra_row[j]])
            add_scaled(grad_dec, np.float32(1), extra[1][extra_row[j]])
        row = weights[1][j]
        add_scaled(grad_dec, -dot(grad_dec, row), row)
        adam_row(weights[0][j], grad_enc, first[0][j], second[0][j], step)
        adam_row(row, grad_dec, first[1][j], second[1][j], step)
        adam_row(weights[2][j : j + 1], bias_grads[j : j + 1], first[2][j : j + 1], second[2][j : j + 1], step)
        normalise_row(row)
        shadow[1][j], shadow[2][j] = quantise_row(weights[0][j], shadow[0][j])
