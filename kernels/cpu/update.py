"""Compiled CPU loops of the latent-major update."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..tuples import Adam, LowPrecisionCopy, Moments, Residual, RowGradients, Updated, Weights
from .compiled import compiled, fused, inlined
from .decode import arrays
from .encode import quantise_row
from .products import FAST, add_rows, add_scaled, dot
from .threads import run_parts, weighted_parts


@compiled
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


@inlined
def longest(pointers):
    """Entries of the longest list."""
    most = np.int64(0)
    for j in range(pointers.shape[0] - 1):
        most = max(most, pointers[j + 1] - pointers[j])
    return most


class AdamStep(NamedTuple):
    """Scalars of one Adam step."""

    lr: np.float32
    beta1: np.float32
    beta2: np.float32
    correct1: np.float32
    correct2: np.float32
    eps: np.float32
    t: int


@inlined(fastmath=FAST)
def adam_row(p, g, m, v, keep1, keep2, step):
    """One Adam update of a row in place; the moments first keep the shares keep1 and keep2 of themselves."""
    rate = step.lr / step.correct1
    root = np.float32(1) / np.sqrt(step.correct2)
    for i in range(p.shape[0]):
        m[i] = keep1 * m[i] + (np.float32(1) - step.beta1) * g[i]
        v[i] = fused(g[i] * g[i], np.float32(1) - step.beta2, keep2 * v[i])  # pyright: ignore[reportCallIssue]
        p[i] -= rate * m[i] / (np.sqrt(v[i]) * root + step.eps)


@inlined(fastmath=FAST)
def momentless_row(p, g, v, keep2, step):
    """`adam_row` for beta1 = 0: the first moment is the gradient."""
    root = np.float32(1) / np.sqrt(step.correct2)
    for i in range(p.shape[0]):
        v[i] = keep2 * v[i] + (np.float32(1) - step.beta2) * g[i] * g[i]
        p[i] -= step.lr * g[i] / (np.sqrt(v[i]) * root + step.eps)


@inlined(fastmath=FAST)
def normalise_row(row):
    """Scale a row to unit norm in place."""
    inverse = np.float32(1) / max(np.sqrt(dot(row, row)), np.float32(1e-12))
    for i in range(row.shape[0]):
        row[i] *= inverse


@compiled
def bias_gradients(pointers, entries, values, grads, scale, bias_grads, fired):
    """bias_grads[j] += scale * sum of the code gradients of latent j; fired[j] = how many codes are active."""
    for j in range(fired.shape[0]):
        count = 0
        for q in range(pointers[j], pointers[j + 1]):
            if values[entries[q]] != 0:
                bias_grads[j] += scale * grads[entries[q]]
                count += 1
        fired[j] = count


@inlined
def sum_gradients(entries, tokens, values, grads, x, residual, scale, factors, grad_enc, grad_dec):
    """grad_enc = sum of dz x and grad_dec = sum of z residual over the entries of one latent.

    factors: scratch [2, at least as many as there are entries]. An entry at zero adds nothing.
    """
    count = entries.shape[0]
    for q in range(count):
        p = entries[q]
        there = scale if values[p] != 0 else np.float32(0)
        factors[0, q] = there * grads[p]
        factors[1, q] = there * values[p]
    grad_enc[:] = 0
    grad_dec[:] = 0
    add_rows(grad_enc, factors[0, :count], tokens, x)
    add_rows(grad_dec, factors[1, :count], tokens, residual)


@compiled
def latent_rows(
    start, stop, pointers, tokens, entries, values, grads, x, residual, scale, extra_row, extra,
    weights, first, second, touched, step, low_precision, bias_grads, fired,
):  # fmt: skip
    """Both weight gradients, Adam, projection, unit norm and the int8 copy of latents start..stop, in one pass.

    weights, first, second: (W_enc [n, d], W_dec [n, d_out], b_enc [n]) and Adam moments; first empty if beta1 is 0.
    extra: (encoder, decoder) gradient rows added where extra_row[j] >= 0.
    touched: step of each latent's last update, or empty where every latent is updated at every step.
    low_precision: (rows int8 [n, d], scale [n], norm [n]) of the updated encoder, or empty.
    """
    grad_enc, grad_dec = np.empty(x.shape[1], np.float32), np.empty(residual.shape[1], np.float32)
    factors = np.empty((2, longest(pointers[start : stop + 1])), np.float32)
    keep1, keep2 = step.beta1, step.beta2
    for j in range(start, stop):
        if touched.shape[0] > 0:
            if fired[j] == 0 and extra_row[j] < 0:
                continue
            gap = step.t - touched[j]
            keep1, keep2 = np.float32(step.beta1**gap), np.float32(step.beta2**gap)
            touched[j] = step.t
        own = slice(pointers[j], pointers[j + 1])
        sum_gradients(entries[own], tokens[own], values, grads, x, residual, scale, factors, grad_enc, grad_dec)
        if extra_row[j] >= 0:
            add_scaled(grad_enc, np.float32(1), extra[0][extra_row[j]])
            add_scaled(grad_dec, np.float32(1), extra[1][extra_row[j]])
        row, bias, grad_bias = weights[1][j], weights[2][j : j + 1], bias_grads[j : j + 1]
        add_scaled(grad_dec, -dot(grad_dec, row), row)
        if first[0].shape[0] > 0:
            adam_row(weights[0][j], grad_enc, first[0][j], second[0][j], keep1, keep2, step)
            adam_row(row, grad_dec, first[1][j], second[1][j], keep1, keep2, step)
            adam_row(bias, grad_bias, first[2][j : j + 1], second[2][j : j + 1], keep1, keep2, step)
        else:
            momentless_row(weights[0][j], grad_enc, second[0][j], keep2, step)
            momentless_row(row, grad_dec, second[1][j], keep2, step)
            momentless_row(bias, grad_bias, second[2][j : j + 1], keep2, step)
        normalise_row(row)
        if low_precision[1].shape[0] > 0:
            low_precision[1][j], low_precision[2][j] = quantise_row(weights[0][j], low_precision[0][j])


@compiled
def gradient_rows(
    start, stop, latents, pointers, tokens, entries, values, grads, x, residual, scale, grad_enc, grad_dec
):  # fmt: skip
    """Both weight gradients of latents[start..stop], one row each."""
    factors = np.empty((2, longest(pointers)), np.float32)
    for r in range(start, stop):
        own = slice(pointers[latents[r]], pointers[latents[r] + 1])
        sum_gradients(entries[own], tokens[own], values, grads, x, residual, scale, factors, grad_enc[r], grad_dec[r])


class Lists(NamedTuple):
    """Codes by latent: latent j owns pointers[j] to pointers[j + 1] of tokens and entries, tokens ascending."""

    pointers: np.ndarray
    tokens: np.ndarray
    entries: np.ndarray


def transposed(codes: tuple[Tensor, Tensor, Tensor], n: int) -> Lists:
    """The codes of a batch, by latent."""
    nnz = len(codes[1])
    lists = Lists(np.empty(n + 1, np.int64), np.empty(nnz, np.int32), np.empty(nnz, np.int32))
    transpose_codes(codes[0].numpy(), codes[1].numpy(), n, *lists)
    return lists


def latent_step(
    codes: tuple[Tensor, Tensor, Tensor],
    out: Residual,
    x: Tensor,
    scale: float | Tensor,
    weights: Weights,
    moments: Moments,
    adam: Adam,
    low_precision: LowPrecisionCopy | None = None,
    extra: RowGradients | None = None,
) -> Updated:
    """`kernels.update.latent_step` on a CPU."""
    n = len(weights.b_enc)
    lists, values, grads = transposed(codes, n), *arrays(codes[2], out.grads)
    factor = np.float32(float(scale))
    extra_row, extra_rows = np.full(n, -1, np.int32), arrays(weights.W_enc[:0], weights.W_dec[:0])
    bias_grads, fired = torch.zeros(n), torch.empty(n, dtype=torch.int64)
    if extra is not None:
        extra = extra.owned(n)
        extra_row[extra.latents.numpy()] = np.arange(len(extra.latents), dtype=np.int32)
        extra_rows = arrays(*extra[1:3])
        bias_grads[extra.latents] = extra.b_enc[:, 0]
    bias_gradients(lists.pointers, lists.entries, values, grads, factor, *arrays(bias_grads, fired))
    updated = Updated(bias_grads @ weights.W_enc, fired)
    work = np.diff(lists.pointers) * 2.0 + 8.0
    touched = np.empty(0, np.int32)
    if moments.touched is not None:
        touched = moments.touched.numpy()
        work[(fired.numpy() == 0) & (extra_row < 0)] = 0.01
    empty = torch.empty(0, 0), torch.empty(0, 0), torch.empty(0)
    copies = arrays(torch.empty(0, 0, dtype=torch.int8), *empty[1:])
    if low_precision is not None and low_precision.scale is not None and low_precision.norm is not None:
        copies = arrays(low_precision.W_enc, low_precision.scale, low_precision.norm)
    numbers = map(np.float32, (adam.lr, adam.beta1, adam.beta2, *adam.corrections, adam.eps))
    step = AdamStep._make((*numbers, adam.t))
    run_parts(
        latent_rows, weighted_parts(work, torch.get_num_threads()), *lists, values, grads, *arrays(x, out.residual),
        factor, extra_row, extra_rows, arrays(*weights), arrays(*(moments.first or empty)), arrays(*moments.second),
        touched, step, copies, *arrays(bias_grads, fired),
    )  # fmt: skip
    if low_precision is not None and low_precision.scale is None:
        low_precision.W_enc.copy_(weights.W_enc)
    return updated


def latent_gradients(
    codes: tuple[Tensor, Tensor, Tensor], out: Residual, x: Tensor, scale: float | Tensor, n_latents: int
) -> RowGradients:
    """`kernels.update.latent_gradients` on a CPU."""
    lists, values, grads = transposed(codes, n_latents), *arrays(codes[2], out.grads)
    factor = np.float32(float(scale))
    bias_grads, fired = torch.zeros(n_latents), torch.empty(n_latents, dtype=torch.int64)
    bias_gradients(lists.pointers, lists.entries, values, grads, factor, *arrays(bias_grads, fired))
    latents = fired.nonzero()[:, 0]
    made = [torch.empty(len(latents), summed.shape[1]) for summed in (x, out.residual)]
    rows = RowGradients(latents, made[0], made[1], bias_grads[latents, None])
    parts = weighted_parts(np.diff(lists.pointers)[latents.numpy()] + 1.0, torch.get_num_threads())
    run_parts(
        gradient_rows, parts, latents.numpy(), *lists, values, grads, *arrays(x, out.residual), factor,
        *arrays(rows.W_enc, rows.W_dec),
    )  # fmt: skip
    return rows
