"""Compiled CPU loops for exact top-k selection. The specification is `kernels.topk.reference`.

A row is cut into contiguous groups of 32; a key that k group maxima reach is a lower bound of the k-th largest, so
only groups whose maximum reaches it hold candidates. Always exact, ties included.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..tuples import Codes
from .compiled import compiled, inlined
from .keys import GROUP, LOWEST, flip, fold_keys, gather_reaching, keep_best, kth_key, n_groups
from .threads import run_rows

NAN = np.float32(np.nan)
"""One NaN for all, whose bits are above those of infinity."""


@inlined
def order_row(row, bias, mask, exact, keys):
    """exact = row + bias, masked -inf; keys = the same in the order of selection: NaN largest, both zeros alike.

    An empty bias or mask is none.
    """
    if bias.shape[0]:
        for c in range(row.shape[0]):
            exact[c] = row[c] + bias[c]
    else:
        for c in range(row.shape[0]):
            exact[c] = row[c]
    if mask.shape[0]:
        for c in range(row.shape[0]):
            exact[c] = exact[c] if mask[c] else np.float32(-np.inf)
    for c in range(row.shape[0]):
        exact[c] = exact[c] if exact[c] == exact[c] else NAN
    bits = exact.view(np.int32)
    for c in range(row.shape[0]):
        keys[c] = flip(bits[c]) if bits[c] != LOWEST else np.int32(0)  # LOWEST: the bits of -0


@compiled
def topk_rows(start, stop, pre, bias, mask, k, out_values, out_columns):
    """Rows start..stop of pre [rows, n] -> the k largest, ascending by column."""
    n = pre.shape[1]
    exact, row, maxima = np.empty(n, np.float32), np.empty(n, np.int32), np.empty(n_groups(n), np.int32)
    keys, columns = np.empty(n + 1, np.int32), np.empty(n + 1, np.int32)
    for r in range(start, stop):
        order_row(pre[r], bias, mask, exact, row)
        fold_keys(row, maxima)
        bound = kth_key(maxima, k, k >> 4)
        candidates = 0
        for g in range(maxima.shape[0]):
            if maxima[g] >= bound:
                part = row[g * GROUP : min((g + 1) * GROUP, n)]
                candidates = gather_reaching(part, bound, g * GROUP, candidates, keys, columns)
        keep_best(keys, columns, candidates, k)
        for i in range(k):
            out_columns[r, i] = columns[i]
            out_values[r, i] = exact[columns[i]]


def topk(pre: Tensor, k: int, bias: Tensor | None = None, mask: Tensor | None = None) -> Codes:
    """`kernels.topk.topk` on a CPU."""
    pre = pre.float().contiguous()
    out = Codes(torch.empty(len(pre), k), torch.empty(len(pre), k, dtype=torch.int32))
    bias_row = np.empty(0, np.float32) if bias is None else bias.contiguous().numpy()
    mask_row = np.empty(0, np.bool_) if mask is None else mask.contiguous().numpy()
    run_rows(topk_rows, len(pre), pre.numpy(), bias_row, mask_row, k, *(part.numpy() for part in out))
    return out
