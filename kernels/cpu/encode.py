"""Compiled CPU loops of the screened encode: int8 products propose, fp32 dot products decide.

With x = sx*qx + ex and w = sw*qw + ew (rounding errors uniform in half a step), the error of the int8 product
is close to normal with deviation at most (sx*|w| + sw*|x|) / sqrt(12). Candidates are the columns whose estimate
plus twelve deviations reaches a bound that k estimates reach. The k best are recomputed in fp32, then those whose
estimate plus six deviations reaches the smallest of these. The values returned are always exact; a wrong set needs
a six-sigma rounding error.

`encode_topk` here stores the products of a chunk of rows, made by oneDNN, and runs on any CPU; `cpu.screen` makes them
in registers where the CPU has AVX512-VNNI. Both decide by the same candidates, so their results have the same bytes.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ..chunks import chunk_buffer, chunk_rows
from ..tuples import Codes, LowPrecisionCopy
from .compiled import compiled, inlined
from .keys import (
    GROUP,
    flip,
    flip_all,
    fold_keys,
    gather_reaching,
    keep_best,
    kth_key,
    largest_magnitude,
    n_groups,
    places,
)
from .products import dot, dot4
from .threads import run_rows

MARGIN = 6.0 / math.sqrt(12.0)

BLOCK = 4096
"""Latents of one int8 product: its scratch space grows with them, its speed does not."""


@inlined
def quantise_row(row, out):
    """out = round(row / scale) in int8, scale = max|row| / 127. Returns (scale, |row|)."""
    bits = np.empty(1, np.int32)
    bits[0] = largest_magnitude(row.view(np.int32))
    largest = bits.view(np.float32)[0]
    if not largest > 0:
        out[:] = 0
        return np.float32(0), np.float32(0)
    inverse = np.float32(127) / largest
    for i in range(row.shape[0]):
        out[i] = np.int8(np.rint(row[i] * inverse))
    return largest / np.float32(127), np.sqrt(dot(row, row))


@compiled
def quantise_rows(start, stop, rows, out, scales, norms):
    """Quantise rows start..stop, keeping each row's scale and norm."""
    for r in range(start, stop):
        scales[r], norms[r] = quantise_row(rows[r], out[r])


@inlined
def estimate_block(products, scale_w, bias, scale_x, estimates):
    """estimates = products * scale_x * scale_w + bias."""
    for c in range(estimates.shape[0]):
        estimates[c] = np.float32(products[c]) * (scale_x * scale_w[c]) + bias[c]


@inlined
def estimate_row(products, row, rows, scale_w, bias, scale_x, estimates):
    """Estimates of one of `rows` rows, whose products lie in blocks of columns, each [rows, at most BLOCK]."""
    n = estimates.shape[0]
    for first in range(0, n, BLOCK):
        width = min(BLOCK, n - first)
        start = rows * first + row * width
        own = slice(first, first + width)
        estimate_block(products[start : start + width], scale_w[own], bias[own], scale_x, estimates[own])


@inlined
def flag_groups(maxima, group_norm, group_scale, scale_x, norm_x, bound, flags):
    """flags[g]: the largest estimate of group g may, with twice its margin, reach `bound`."""
    for g in range(flags.shape[0]):
        flags[g] = maxima[g] + scale_x * group_norm[g] + norm_x * group_scale[g] >= bound


@inlined
def rescore(x, weight, bias, columns, which, count, values):
    """values[i] = x . weight[columns[i]] + bias for the first `count` i of `which`, four at a time.

    The last ones are repeated to make four, so that a value does not depend on its place in the list.
    """
    last = count - 1
    for p in range(0, count, 4):
        i, j, l, m = which[p], which[min(p + 1, last)], which[min(p + 2, last)], which[min(p + 3, last)]
        a, b, c, d = columns[i], columns[j], columns[l], columns[m]
        s, t, u, v = dot4(x, weight[a], weight[b], weight[c], weight[d])
        values[i], values[j], values[l], values[m] = s + bias[a], t + bias[b], u + bias[c], v + bias[d]


@inlined
def decide(x, s, z, weight, bias, scale_w, norm_w, k, estimates, columns, candidates, out_values, out_columns, scratch):
    """Exact top-k of a row from its `candidates` candidates, ascending by column, whose estimates are `estimates`.

    s, z: the row's scale and norm. An estimate that is NaN is recomputed too.
    scratch: (values fp32, keys int32, which int32, flags bool), each at least `candidates` long.
    """
    margin = np.float32(MARGIN)
    values, keys, which, flags = scratch
    bound = np.empty(1, np.float32)
    flip_all(estimates[:candidates].view(np.int32), keys)
    bound.view(np.int32)[0] = flip(kth_key(keys[:candidates], k, k >> 4))
    for i in range(candidates):
        values[i] = -np.inf
        flags[i] = not (estimates[i] < bound[0])
    count = places(flags[:candidates], which)
    rescore(x, weight, bias, columns, which, count, values)
    reach = np.float32(np.inf)
    for i in range(count):
        reach = min(reach, values[which[i]])
    for i in range(candidates):
        c = columns[i]
        upper = estimates[i] + margin * (s * norm_w[c] + z * scale_w[c])
        flags[i] = (estimates[i] < bound[0]) & (upper >= reach)
    count = places(flags[:candidates], which)
    rescore(x, weight, bias, columns, which, count, values)
    flip_all(values[:candidates].view(np.int32), keys)
    keep_best(keys, columns, candidates, k)
    flip_all(keys[:k], out_values.view(np.int32))
    out_columns[:] = columns[:k]


@compiled
def screen_rows(
    start, stop, products, x, scale_x, norm_x, weight, bias, scale_w, norm_w, k, out_values, out_columns
):  # fmt: skip
    """Exact top-k of x @ weight.T + bias for rows start..stop of x, from the int8 products of all its rows."""
    n = weight.shape[0]
    groups = n_groups(n)
    margin = np.float32(MARGIN)
    group_scale, group_norm = np.empty(groups, np.float32), np.empty(groups, np.float32)
    for g in range(groups):
        own = slice(g * GROUP, min((g + 1) * GROUP, n))
        group_scale[g], group_norm[g] = 2 * margin * scale_w[own].max(), 2 * margin * norm_w[own].max()
    keys, bits, flags = np.empty(groups, np.int32), np.empty(groups, np.int32), np.empty(groups, np.bool_)
    maxima, bound = bits.view(np.float32), np.empty(1, np.float32)
    row, estimates, columns = np.empty(n, np.float32), np.empty(n + 1, np.float32), np.empty(n + 1, np.int32)
    scratch = np.empty(n, np.float32), np.empty(n, np.int32), np.empty(n, np.int32), np.empty(n, np.bool_)
    for r in range(start, stop):
        s, z = scale_x[r], norm_x[r]
        estimate_row(products, r, x.shape[0], scale_w, bias, s, row)
        flip_all(row.view(np.int32), scratch[1])
        fold_keys(scratch[1], keys)
        bound.view(np.int32)[0] = flip(kth_key(keys, k, k >> 4))
        if k > groups:
            bound[0] = -np.inf
        flip_all(keys, bits)
        flag_groups(maxima, group_norm, group_scale, s, z, bound[0], flags)
        candidates = 0
        for g in range(groups):
            if flags[g]:
                part = row[g * GROUP : min((g + 1) * GROUP, n)]
                limit = bound[0] - (s * group_norm[g] + z * group_scale[g])
                candidates = gather_reaching(part, limit, g * GROUP, candidates, estimates, columns)
        decide(
            x[r], s, z, weight, bias, scale_w, norm_w, k, estimates, columns, candidates, out_values[r], out_columns[r],
            scratch,
        )  # fmt: skip


def quantise(rows: Tensor) -> LowPrecisionCopy:
    """Symmetric int8 rows with one scale a row."""
    made = torch.empty(rows.shape, dtype=torch.int8), torch.empty(len(rows)), torch.empty(len(rows))
    run_rows(quantise_rows, len(rows), rows.numpy(), *(part.numpy() for part in made))
    return LowPrecisionCopy(*made)


def encode_topk(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, low_precision: LowPrecisionCopy) -> Codes:
    """`kernels.encode.encode_topk` with the int8 screen."""
    batch, n = len(x), len(W_enc)
    out = Codes(torch.zeros(batch, k), torch.zeros(batch, k, dtype=torch.int32))
    chunk = max(1, min(chunk_rows(n), batch))
    products = chunk_buffer(chunk, n, torch.int32, x.device).view(-1)
    for start in range(0, batch, chunk):
        rows = slice(start, min(start + chunk, batch))
        part = x[rows]
        quantised = quantise(part)
        for first in range(0, n, BLOCK):
            weight = low_precision.W_enc[first : first + BLOCK]
            block = products[len(part) * first : len(part) * (first + len(weight))].view(len(part), -1)
            torch._int_mm(quantised.W_enc, weight.T, out=block)
        rounded = margins(quantised), margins(low_precision)
        inputs = (products, part, *rounded[0], W_enc, b_enc, *rounded[1])
        outputs = (out.values[rows], out.columns[rows])
        run_rows(screen_rows, len(part), *(t.numpy() for t in inputs), k, *(t.numpy() for t in outputs))
    return out


def margins(copy: LowPrecisionCopy) -> tuple[Tensor, Tensor]:
    """Scale and norm of the rows of an int8 copy."""
    if copy.scale is None or copy.norm is None:
        raise ValueError("the int8 screen needs an int8 copy of the encoder, and this one is bf16")
    return copy.scale, copy.norm
