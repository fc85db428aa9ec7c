"""Compiled CPU loops of the threshold encode: count and fill, and the int8 screen (see `cpu.encode`).

The screen keeps a column whose int8 estimate plus six deviations of its rounding error reaches the bound;
fp32 dot products of those decide. Rows and columns that int8 cannot hold (NaN, infinity) are never screened out.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..chunks import chunk_buffer, chunk_rows
from ..csr import concatenate
from ..tuples import LowPrecisionCopy, Ragged
from .compiled import compiled, inlined
from .encode import MARGIN, quantise
from .products import dot, dot_rows
from .threads import run_rows

GROUP = 128
"""Columns passed over at once when none is kept: of 32, 64, 128 and 256 the fastest for 32 kept of 9,216."""


@inlined
def count_above(pre, bias, bound):
    """How many entries of pre + bias are above their bound, or NaN."""
    above = np.int32(0)
    for c in range(pre.shape[0]):
        above += np.int32(not (pre[c] + bias[c] <= bound[c]))
    return above


@compiled
def count_rows(start, stop, pre, bias, bound, counts):
    """counts[r] = `count_above` of row r."""
    for r in range(start, stop):
        counts[r] = count_above(pre[r], bias, bound)


@compiled
def fill_rows(start, stop, pre, bias, bound, indptr, indices, values):
    """Write the entries counted in each row, ascending by column, passing over groups that hold none."""
    n = pre.shape[1]
    for r in range(start, stop):
        p = indptr[r]
        for first in range(0, n, GROUP):
            last = min(first + GROUP, n)
            if count_above(pre[r, first:last], bias[first:last], bound[first:last]):
                for c in range(first, last):
                    value = pre[r, c] + bias[c]
                    if not value <= bound[c]:
                        indices[p] = c
                        values[p] = value
                        p += 1


@inlined(fastmath={"reassoc", "contract", "nsz"})
def reaches(products, scale_x, norm_x, scale_w, norm_w, offset, out):
    """out = int8 estimate of the pre-activation + six deviations - bound."""
    for c in range(products.shape[0]):
        exactly = np.float32(products[c]) * scale_w[c] + np.float32(MARGIN) * norm_w[c]
        out[c] = scale_x * exactly + np.float32(MARGIN) * norm_x * scale_w[c] + offset[c]


@inlined
def count_not_negative(values):
    """How many entries are not below zero: an integer sum, which becomes vector instructions."""
    total = np.int32(0)
    for i in range(values.shape[0]):
        total += np.int32(values[i] >= 0)
    return total


@compiled
def screen_rows(start, stop, products, x, scale_x, norm_x, scale_w, norm_w, offset, counts):
    """Replace each row of int8 products by the columns that may exceed their bound; counts[r] of them.

    In place: a column is written at or before the place its product was read from.
    """
    n = products.shape[1]
    reach = np.empty(GROUP, np.float32)
    for r in range(start, stop):
        row, filled = products[r], 0
        whole = not np.isfinite(dot(x[r], x[r]))
        for first in range(0, n, GROUP):
            last = min(first + GROUP, n)
            part = reach[: last - first]
            columns = scale_w[first:last], norm_w[first:last], offset[first:last]
            reaches(row[first:last], scale_x[r], norm_x[r], *columns, part)
            if whole or count_not_negative(part):
                for i in range(last - first):
                    if whole or part[i] >= 0:
                        row[filled] = first + i
                        filled += 1
        counts[r] = filled


@compiled
def rescore_rows(start, stop, candidates, x, weight, bias, indptr, indices, values):
    """Exact fp32 pre-activations of the candidate columns of each row."""
    for r in range(start, stop):
        first, last = indptr[r], indptr[r + 1]
        columns = candidates[r, : last - first]
        dot_rows(x[r], columns, weight, values[first:last])
        for i in range(columns.shape[0]):
            indices[first + i] = columns[i]
            values[first + i] += bias[columns[i]]


def above(pre: Tensor, bias: Tensor, bound: Tensor) -> Ragged:
    """`kernels.threshold.above` on a CPU."""
    counts = torch.empty(len(pre), dtype=torch.int64)
    inputs = tuple(part.numpy() for part in (pre, bias.contiguous(), bound))
    run_rows(count_rows, len(pre), *inputs, counts.numpy())
    out = _empty(counts)
    run_rows(fill_rows, len(pre), *inputs, *(part.numpy() for part in out))
    return out


def encode_above(x: Tensor, W_enc: Tensor, b_enc: Tensor, bound: Tensor, low_precision: LowPrecisionCopy) -> Ragged:
    """`kernels.threshold.encode_above` with the int8 screen."""
    batch, n = len(x), len(W_enc)
    rounded, scale, norm, _ = quantise(x)
    assert scale is not None and norm is not None
    columns = _screened_columns(b_enc - bound, low_precision)
    chunk = max(1, min(chunk_rows(n), batch))
    held, counts = chunk_buffer(chunk, n, torch.int32, x.device), torch.empty(chunk, dtype=torch.int64)
    parts = []
    for start in range(0, max(batch, 1), chunk):
        rows = slice(start, min(start + chunk, batch))
        products, filled = held[: rows.stop - start], counts[: rows.stop - start]
        torch._int_mm(rounded[rows], low_precision.W_enc.T, out=products)
        screen = (products, x[rows], scale[rows], norm[rows], *columns, filled)
        run_rows(screen_rows, len(products), *(part.numpy() for part in screen))
        maybe = _empty(filled)
        rescore = (products, x[rows], W_enc, b_enc, *maybe)
        run_rows(rescore_rows, len(products), *(part.numpy() for part in rescore))
        parts.append(_kept(maybe, bound))
    return concatenate(parts)


def _screened_columns(offset: Tensor, low_precision: LowPrecisionCopy) -> tuple[Tensor, Tensor, Tensor]:
    """Scale, norm and offset of each column; columns that int8 cannot hold get an offset that always passes.

    A norm of zero is a row of zeros or of NaN.
    """
    _, scale, norm, _ = low_precision
    assert scale is not None and norm is not None  # an int8 copy has both
    doubtful = ~(norm.isfinite() & (norm > 0)) | offset.isnan()
    return scale.masked_fill(doubtful, 0), norm.masked_fill(doubtful, 0), offset.masked_fill(doubtful, torch.inf)


def _empty(counts: Tensor) -> Ragged:
    indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    nnz = int(indptr[-1])
    return Ragged(indptr, torch.empty(nnz, dtype=torch.int32), torch.empty(nnz))


def _kept(maybe: Ragged, bound: Tensor) -> Ragged:
    keep = ~(maybe.values <= bound[maybe.indices])
    before = torch.cat([maybe.indptr.new_zeros(1), keep.cumsum(0)])
    return Ragged(before[maybe.indptr], maybe.indices[keep], maybe.values[keep])
