"""Compiled CPU loops over rows: inner products and sums, one row or four at a time.

Four rows at once hide the time it takes to fetch rows from distant memory, and read the other operand once.
"""

from __future__ import annotations

import numpy as np

from .compiled import inlined

FAST = {"reassoc", "contract", "nsz"}


@inlined(fastmath=FAST)
def dot(a, b):
    """Inner product of two vectors, summed in lanes."""
    total = np.float32(0)
    for i in range(a.shape[0]):
        total += a[i] * b[i]
    return total


@inlined(fastmath=FAST)
def dot4(x, a, b, c, d):
    """Inner products of x with four vectors."""
    s, t, u, v = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    for i in range(x.shape[0]):
        s += x[i] * a[i]
        t += x[i] * b[i]
        u += x[i] * c[i]
        v += x[i] * d[i]
    return s, t, u, v


@inlined(fastmath=FAST)
def add_scaled(target, factor, source):
    """target += factor * source."""
    for i in range(target.shape[0]):
        target[i] += factor * source[i]


@inlined(fastmath=FAST)
def add_scaled4(target, p, a, q, b, r, c, s, d):
    """target += p * a + q * b + r * c + s * d."""
    for i in range(target.shape[0]):
        target[i] += p * a[i] + q * b[i] + r * c[i] + s * d[i]


@inlined
def add_rows(target, factors, rows, matrix):
    """target += sum of factors[i] * matrix[rows[i]], four rows at a time."""
    i, count = 0, rows.shape[0]
    while i + 4 <= count:
        f, r = factors[i : i + 4], rows[i : i + 4]
        add_scaled4(
            target, f[0], matrix[r[0]], f[1], matrix[r[1]], f[2], matrix[r[2]], f[3], matrix[r[3]]
        )  # fmt: skip
        i += 4
    for j in range(i, count):
        add_scaled(target, factors[j], matrix[rows[j]])


@inlined
def dot_rows(x, rows, matrix, out):
    """out[i] = x . matrix[rows[i]], four rows at a time."""
    i, count = 0, rows.shape[0]
    while i + 4 <= count:
        r = rows[i : i + 4]
        out[i], out[i + 1], out[i + 2], out[i + 3] = dot4(
            x, matrix[r[0]], matrix[r[1]], matrix[r[2]], matrix[r[3]]
        )  # fmt: skip
        i += 4
    for j in range(i, count):
        out[j] = dot(x, matrix[rows[j]])
