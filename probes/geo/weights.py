"""Sparse matrices of spatial weights that say which places are neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, eigsh
from scipy.spatial import KDTree

from ...lab.errors import InputError
from ...lab.sequences import numbers_of
from .places import Places

Weights = sparse.csr_array
"""Weights [places, places], w_ij >= 0 and w_ii = 0; row i are the neighbours of place i."""


def nearest_neighbours(positions: Float64[np.ndarray, "places axes"], k: int = 8) -> Weights:
    """The k nearest others of every place, 1/k each, by straight distance between positions.

    Unit vectors give the neighbours on the sphere. Where several are as far as the k-th, the first in order count.

    Raises:
        InputError: k below 1, k + 1 or fewer places than that, or positions that are not finite.
    """
    positions = numbers_of(positions, "positions")
    n = len(positions)
    if k < 1:
        raise InputError(f"k must be at least 1, got {k}")
    if n <= k:
        raise InputError(f"{k} neighbours need at least {k + 1} places and there are {n}: lower k, or take more places")
    if not np.isfinite(positions).all():
        raise InputError(f"{int((~np.isfinite(positions)).any(1).sum())} of {n} positions are not finite")
    _, found = KDTree(positions).query(positions, k + 1)
    others = np.not_equal(found, np.arange(n)[:, None])
    others[others.all(1), -1] = False  # a place that k + 1 equal points hide from itself
    columns = np.asarray(found)[others]
    return sparse.csr_array((np.full(n * k, 1 / k), (np.repeat(np.arange(n), k), columns)), shape=(n, n))


def rook(rows: int, columns: int, *, standardised: bool = True) -> Weights:
    """Cells of a grid that share an edge, row by row; each row of weights adds up to 1, or is 0 and 1.

    Raises:
        InputError: fewer than two cells.
    """
    if min(rows, columns) < 1 or rows * columns < 2:
        raise InputError(f"a grid needs at least two cells, got {rows} x {columns}")
    down, across = (sparse.csr_array(np.eye(n, k=1) + np.eye(n, k=-1)) for n in (rows, columns))
    binary = sparse.kron(down, sparse.eye_array(columns)) + sparse.kron(sparse.eye_array(rows), across)
    return row_standardised(binary) if standardised else sparse.csr_array(binary)


def row_standardised(weights: sparse.sparray) -> Weights:
    """Each row divided by its sum; places without neighbours stay so."""
    found = sparse.csr_array(weights)
    sums = np.asarray(found.sum(1)).reshape(-1)
    return sparse.csr_array(sparse.diags_array(1 / np.where(sums > 0, sums, 1)) @ found)


def joined(blocks: Sequence[Weights]) -> Weights:
    """Weights of separate areas as one, in order: no place neighbours one of another area."""
    return sparse.csr_array(sparse.block_diag(blocks))


def neighbours_by_country(places: Places, k: int = 8) -> dict[str, Weights]:
    """The k nearest neighbours on the sphere within every country, by its code.

    Raises:
        InputError: a country with too few places; names it.
    """
    found = {}
    positions = places.positions()
    for country in dict.fromkeys(places.countries):
        try:
            found[country] = nearest_neighbours(positions[places.of(country)], k)
        except InputError as error:
            raise InputError(f"{country}: {error}") from None
    return found


def best_possible(weights: Weights) -> float:
    """The largest Moran's I that any values can have on these weights (de Jong, Sprenger and van Veen 1984).

    n / S0 times the largest eigenvalue of the symmetrised weights among centred vectors.
    """
    n = len(weights.indptr) - 1
    symmetric = sparse.csr_array(weights + weights.T) / 2

    def product(z: np.ndarray) -> np.ndarray:
        found = symmetric @ (z - z.mean())
        return found - found.mean()

    if n < 4:  # too small for the iteration
        dense = np.stack([product(row) for row in np.eye(n)])
        return float(n / weights.sum() * np.linalg.eigvalsh(dense)[-1])
    operator: Any = LinearOperator((n, n), matvec=product, dtype=np.float64)  # pyright: ignore[reportCallIssue]
    start = np.random.default_rng(0).normal(size=n)  # the same digits each time
    largest: Any = eigsh(operator, k=1, which="LA", v0=start, return_eigenvectors=False)
    return float(n / weights.sum() * largest[0])
