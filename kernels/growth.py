"""Growing a dictionary of unit atoms by the rows it explains worst: each row is tried on all atoms before it.

`pursuit` encodes many rows on one dictionary; here every row may become an atom that the next row is encoded with. The
rows' correlations with the atoms and with each other are two products; what is left is a chain of short steps, which
runs on the host.
"""

from __future__ import annotations

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from . import pursuit
from .chunks import chunk_rows
from .dispatch import backend


def admit(
    x: Float32[Tensor, "candidates d"],
    atoms: Float32[Tensor, "capacity d"],
    gram: Float32[Tensor, "capacity capacity"],
    n: int,
    k: int,
    limit: float,
    *,
    cosine: bool = False,
    nonnegative: bool = False,
    tolerance: float = 0.0,
    room: int | None = None,
) -> Int64[Tensor, " admitted"]:
    """Go through rows in order; one that k steps of matching pursuit miss by more than `limit` becomes an atom.

    What a row is missed by is `lost`. Its energies obey the identity |r|^2 <- |r|^2 - c_j^2 in fp64 sums of fp32 codes,
    good to about 1e-6. Runs on the CPU.

    Args:
        atoms: the first n rows have unit norm, the others are zero. Admitted rows are written behind them, normalised.
        gram: atoms @ atoms.T; its rows and columns of admitted atoms are written.
        limit: at least 0.
        tolerance: a row is done once its squared residual is at most this share of |x|^2.
        room: the most rows to admit; by default as many as the capacity has room for.

    Returns:
        The admitted rows, in order.

    Raises:
        ValueError: k is not positive, gram does not fit the atoms, or there is less capacity than room.
    """
    capacity = len(atoms)
    if k < 1 or gram.shape != (capacity, capacity):
        raise ValueError(f"k must be at least 1 and gram {capacity} x {capacity}, got {k} and {tuple(gram.shape)}")
    room = min(capacity - n, len(x)) if room is None else min(room, len(x))
    if n + room > capacity:
        raise ValueError(f"{capacity} atoms have no room for {room} beside {n}: enlarge the buffers first")
    options = (k, limit, cosine, nonnegative, tolerance)
    run = _compiled if backend(torch.device("cpu")) == "compiled" else reference
    return run(x.contiguous(), atoms, gram, n, room, *options)


def lost(
    x: Float32[Tensor, "rows d"], x_hat: Float32[Tensor, "rows d"], cosine: bool = False
) -> Float32[Tensor, " rows"]:
    """How much of every row is lost: |x - x_hat|^2 / |x|^2, or 1 - cos(x, x_hat), which is 1 where x_hat is zero.

    A row of zeros has nothing to lose: 0.
    """
    squares = x.square().sum(1)
    if cosine:
        norms = (squares * x_hat.square().sum(1)).sqrt()
        share = 1 - (x * x_hat).sum(1) / norms.masked_fill(norms == 0, torch.inf)
    else:
        share = (x - x_hat).square().sum(1) / squares
    return share.masked_fill(squares == 0, 0)


def _compiled(
    x: Tensor, atoms: Tensor, gram: Tensor, n: int, room: int, k: int, limit: float,
    cosine: bool, nonnegative: bool, tolerance: float,
) -> Tensor:  # fmt: skip
    from .cpu.growth import admit_rows

    chunk, admitted = chunk_rows(len(atoms)), []
    for start in range(0, len(x), chunk):
        rows = x[start : start + chunk]
        part = admit_rows(rows, atoms, gram, n, room, k, limit, cosine, nonnegative, tolerance)
        atoms[n : n + len(part)] = _unit(rows[part])
        n, room = n + len(part), room - len(part)
        admitted.append(start + part)
        if not room:
            break
    return torch.cat(admitted) if admitted else torch.empty(0, dtype=torch.int64)


def reference(
    x: Tensor, atoms: Tensor, gram: Tensor, n: int, room: int, k: int, limit: float,
    cosine: bool, nonnegative: bool, tolerance: float,
) -> Tensor:  # fmt: skip
    """Row by row, each encoded anew: the specification of `admit`."""
    admitted, first = [], n
    for number, row in enumerate(x.split(1)):
        if len(admitted) == room:
            break
        x_hat = torch.zeros_like(row)
        if n:
            values, columns = pursuit.reference(row, atoms[:n], k, None, nonnegative, tolerance)
            x_hat = values @ atoms[columns[0].long()]
        if lost(row, x_hat, cosine) > limit:
            atoms[n] = _unit(row)[0]
            admitted.append(number)
            n += 1
    products = atoms[first:n] @ atoms[:n].T
    gram[first:n, :n], gram[:n, first:n] = products, products.T
    return torch.tensor(admitted, dtype=torch.int64)


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True)
