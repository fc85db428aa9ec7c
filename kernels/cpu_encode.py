"""Compiled CPU loops of the screened encode: int8 products propose, fp32 dot products decide.

With x = sx*qx + ex and w = sw*qw + ew (rounding errors uniform in half a step), the error of the int8 product
is close to normal with deviation at most (sx*|w| + sw*|x|) / sqrt(12). A column can only belong to the top k if
its estimate plus six deviations reaches the smallest exact value among the k best estimates; every such column
is recomputed in fp32. The values returned are always exact; a wrong set needs a six-sigma rounding error.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from .cpu_topk import GROUP, fold_groups, gather_candidates, keep_best, lower_bound, n_groups

MARGIN = 6.0 / math.sqrt(12.0)


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})
def dot(a, b):
    """Inner product of two vectors, summed in lanes."""
    total = np.float32(0)
    for i in range(a.shape[0]):
        total += a[i] * b[i]
    return total


@njit(nogil=True, cache=True, error_model="numpy")
def quantise_row(row, out):
    """out = round(row / scale) in int8, scale = max|row| / 127. Returns (scale, |row|)."""
    largest = np.float32(0)
    for i in range(row.shape[0]):
        largest = max(largest, abs(row[i]))
    if not largest > 0:
        out[:] = 0
        return np.float32(0), np.float32(0)
    inverse = np.float32(127) / largest
    for i in range(row.shape[0]):
        out[i] = np.int8(np.rint(row[i] * inverse))
    return largest / np.float32(127), np.sqrt(dot(row, row))


@njit(nogil=True, cache=True, error_model="numpy")
def quantise_rows(start, stop, rows, out, scales, norms):
    """Quantise rows start..stop, keeping each row's scale and norm."""
    for r in range(start, stop):
        scales[r], norms[r] = quantise_row(rows[r], out[r])


@njit(nogil=True, cache=True, error_model="numpy")
def estimate_row(products, scale_w, bias, scale_x, estimates):
    """estimates = products * scale_x * scale_w + bias."""
    for c in range(estimates.shape[0]):
        estimates[c] = np.float32(products[c]) * (scale_x * scale_w[c]) + bias[c]


@njit(nogil=True, cache=True, error_model="numpy")
def merge_by_column(values, columns, first, found):
    """Insertion sort of entries first..found into the ascending entries before them."""
    for i in range(first, found):
        value, column = values[i], columns[i]
        j = i - 1
        while j >= 0 and columns[j] > column:
            values[j + 1] = values[j]
            columns[j + 1] = columns[j]
            j -= 1
        values[j + 1] = value
        columns[j + 1] = column


@njit(nogil=True, cache=True, error_model="numpy")
def screen_rows(
    start, stop, products, x, scale_x, norm_x, weight, bias, scale_w, norm_w, k, out_values, out_columns, rescored
):  # fmt: skip
    """Exact top-k of x @ weight.T + bias for rows start..stop, from the int8 products of those rows."""
    n = weight.shape[0]
    maxima, scratch = np.empty(n_groups(n), np.float32), np.empty(n, np.float32)
    estimates, values, columns = np.empty(n, np.float32), np.empty(n, np.float32), np.empty(n, np.int32)
    largest_scale, largest_norm = scale_w.max(), norm_w.max()
    margin = np.float32(MARGIN)
    for r in range(start, stop):
        estimate_row(products[r], scale_w, bias, scale_x[r], estimates)
        fold_groups(estimates, maxima)
        found = gather_candidates(estimates, maxima, lower_bound(maxima, k, scratch), values, columns)
        found = keep_best(values, columns, found, k, scratch)
        reach = np.float32(np.inf)
        for i in range(found):
            values[i] = dot(x[r], weight[columns[i]]) + bias[columns[i]]
            reach = min(reach, values[i])
            estimates[columns[i]] = -np.inf
        widest = margin * (scale_x[r] * largest_norm + norm_x[r] * largest_scale)
        first = found
        for g in range(maxima.shape[0]):
            if maxima[g] + widest >= reach:
                for c in range(g * GROUP, min((g + 1) * GROUP, n)):
                    spread = margin * (scale_x[r] * norm_w[c] + norm_x[r] * scale_w[c])
                    if estimates[c] + spread >= reach:
                        values[found] = dot(x[r], weight[c]) + bias[c]
                        columns[found] = c
                        found += 1
        rescored[r] = found
        merge_by_column(values, columns, first, found)
        kept = keep_best(values, columns, found, k, scratch)
        out_values[r, :kept] = values[:kept]
        out_columns[r, :kept] = columns[:kept]
