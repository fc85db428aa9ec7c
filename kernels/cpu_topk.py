"""Compiled CPU loops for exact top-k selection. The specification is `topk.reference`.

A row is cut into contiguous groups of 32; the k-th largest group maximum is a lower bound of the k-th largest
element, so only groups whose maximum reaches it hold candidates. Always exact, ties included.
"""

from __future__ import annotations

import numpy as np
from numba import njit

GROUP = 32
"""Columns per group: 128 bytes, and for k = 32 of 9216 the maxima and the surviving groups cost alike."""


@njit(nogil=True, cache=True, error_model="numpy")
def kth_largest(values, n, k):
    """The k-th largest of values[:n] (k from 1); reorders `values`."""
    low, high, want = 0, n - 1, k - 1
    while low < high:
        pivot = values[(low + high) >> 1]
        i, j = low, high
        while i <= j:
            while values[i] > pivot:
                i += 1
            while values[j] < pivot:
                j -= 1
            if i <= j:
                held = values[i]
                values[i] = values[j]
                values[j] = held
                i += 1
                j -= 1
        if want <= j:
            high = j
        elif want >= i:
            low = i
        else:
            break
    return values[want]


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "nnan", "nsz"})
def group_maximum(part):
    """Largest entry of a short contiguous slice (vector reduction; NaN gives an arbitrary entry)."""
    best = part[0]
    for i in range(1, part.shape[0]):
        best = max(best, part[i])
    return best


@njit(nogil=True, cache=True, error_model="numpy")
def fold_groups(row, maxima):
    """maxima[g] = largest of row[32 g : 32 g + 32]."""
    for g in range(maxima.shape[0]):
        maxima[g] = group_maximum(row[g * GROUP : min((g + 1) * GROUP, row.shape[0])])


@njit(nogil=True, cache=True, error_model="numpy")
def n_groups(n):
    """Number of groups of a row of n columns."""
    return (n + GROUP - 1) // GROUP


@njit(nogil=True, cache=True, error_model="numpy")
def lower_bound(maxima, k, scratch):
    """A value that at least k elements of the row reach, and no k-th largest is below."""
    groups = maxima.shape[0]
    if k > groups:
        return np.float32(-np.inf)
    scratch[:groups] = maxima
    return kth_largest(scratch, groups, k)


@njit(nogil=True, cache=True, error_model="numpy")
def gather_candidates(row, maxima, bound, values, columns):
    """Entries of `row` that reach `bound`, ascending by column. Returns their count."""
    found = 0
    for g in range(maxima.shape[0]):
        if maxima[g] >= bound:
            for c in range(g * GROUP, min((g + 1) * GROUP, row.shape[0])):
                if row[c] >= bound:
                    values[found] = row[c]
                    columns[found] = c
                    found += 1
    return found


@njit(nogil=True, cache=True, error_model="numpy")
def keep_best(values, columns, found, k, scratch):
    """Move the k best of `found` candidates to the front, in the order they came. Returns the count.

    Ties at the k-th value go to those that came first.
    """
    if found <= k:
        return found
    scratch[:found] = values[:found]
    bound = kth_largest(scratch, found, k)
    above = 0
    for i in range(found):
        above += values[i] > bound
    ties = k - above
    kept = 0
    for i in range(found):
        tie = values[i] == bound and ties > 0
        if values[i] > bound or tie:
            ties -= tie
            values[kept] = values[i]
            columns[kept] = columns[i]
            kept += 1
    return kept


@njit(nogil=True, cache=True, error_model="numpy")
def topk_rows(start, stop, pre, k, out_values, out_columns):
    """Rows start..stop of pre [rows, n] -> the k largest, ascending by column."""
    n = pre.shape[1]
    maxima = np.empty(n_groups(n), np.float32)
    scratch, values, columns = np.empty(n, np.float32), np.empty(n, np.float32), np.empty(n, np.int32)
    for r in range(start, stop):
        fold_groups(pre[r], maxima)
        found = gather_candidates(pre[r], maxima, lower_bound(maxima, k, scratch), values, columns)
        kept = keep_best(values, columns, found, k, scratch)
        out_values[r, :kept] = values[:kept]
        out_columns[r, :kept] = columns[:kept]
