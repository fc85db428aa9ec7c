"""The compiled loop of `kernels.growth.admit`: matching pursuit of one row after another on a growing Gram matrix.

A row's correlations with the atoms of before are a product over all rows; with those admitted since they are the inner
products of the rows with each other. So are the admitted atoms' own rows of the Gram matrix: the chain reads nothing of
width d.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .compiled import compiled, inlined
from .pursuit import first_best, fold_groups, n_groups, subtract_and_fold


@inlined
def pursue_row(start, work, gram, n, square, k, mask, enough, maxima):
    """k steps of one row over the first n atoms, by its correlations `start`; `work` is used up.

    Returns |r|^2 and <x, x_hat>.
    """
    energy, along = square, 0.0
    work[:n] = start[:n]
    fold_groups(work[:n], mask, maxima)
    for step in range(k):
        j = first_best(work[:n], mask, maxima)
        if j < 0 or not energy > enough:
            break
        value = work[j]
        energy -= float(value) * float(value)
        along += float(value) * float(start[j])
        if step + 1 < k:
            subtract_and_fold(work[:n], value, gram[j, :n], mask, maxima)
    return max(energy, 0.0), along


@inlined
def lost_share(square, energy, along, cosine):
    """`kernels.growth.lost` of one row: |x_hat|^2 is |r|^2 - |x|^2 + 2 <x, x_hat>."""
    if square == 0:
        return 0.0
    if not cosine:
        return energy / square
    made = energy - square + 2 * along
    return 1 - along / np.sqrt(square * made) if made > 0 else 1.0


@compiled
def admit_chain(
    correlations, inner, gram, n, room, k, limit, cosine, mask, tolerance, admitted
):  # fmt: skip
    """Rows in order; writes those admitted, and their rows and columns of the Gram matrix. Returns how many."""
    work, count = np.empty(correlations.shape[1], np.float32), 0
    for i in range(correlations.shape[0]):
        if count == room:
            break
        row, square, m = correlations[i], float(inner[i, i]), n + count
        for a in range(count):
            row[n + a] = inner[i, admitted[a]] / np.sqrt(inner[admitted[a], admitted[a]])
        maxima = np.empty(n_groups(m), np.int32)
        energy, along = square, 0.0
        if m:
            energy, along = pursue_row(row, work, gram, m, square, k, mask, tolerance * square, maxima)
        if not lost_share(square, energy, along, cosine) > limit:
            continue
        norm = np.float32(np.sqrt(square))
        for j in range(m):
            gram[m, j] = gram[j, m] = row[j] / norm
        gram[m, m] = 1
        admitted[count] = i
        count += 1
    return count


def admit_rows(
    x: Tensor, atoms: Tensor, gram: Tensor, n: int, room: int, k: int, limit: float,
    cosine: bool, nonnegative: bool, tolerance: float,
) -> Tensor:  # fmt: skip
    """One chunk of candidates: indices of those admitted. Leaves `atoms` as they are."""
    admitted, mask = np.empty(len(x), np.int64), np.int32(-1 if nonnegative else 2**31 - 1)
    products, inner = (x @ atoms.T).numpy(), (x @ x.T).numpy()
    count = admit_chain(products, inner, gram.numpy(), n, room, k, limit, cosine, mask, tolerance, admitted)
    return torch.from_numpy(admitted[:count])
