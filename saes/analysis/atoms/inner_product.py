"""The atomic inner product `<u, v> = u^T S v`, which whitens the space that atoms live in.

Atoms are rows here. Two recipes for S ("Towards Atoms of Large Language Models", 2025):

    of_moment   S = C^-1, the inverse covariance of activations, with a ridge: what is measured on a model
    of_atoms    S = (D^T D)^-1 of the atoms themselves; equal to the first, up to scale, where codes are isotropic: not
                where every token uses the same number of atoms, for then their sum hardly varies

Both make *any* atoms look nearly orthogonal: with the second, the Gram matrix of whatever atoms is a projection of
trace d. So no coherence means anything without that of random atoms beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ....lab.errors import InputError
from ....lab.models.sites import Site
from ....lab.storage import State, write_tensors
from ....lab.streams.activation_stream import Batch

RIDGE = 1e-6
"""Added to every variance, as a share of the mean variance of a dimension."""


class SecondMoment:
    """Mean and covariance of the rows at one site, fp64: a consumer of the stream.

    Args:
        rows: read this many rows, then be done; None goes on to the end of the stream.

    Raises:
        InputError: `rows` is below 2.
    """

    kind = "measures"

    def __init__(self, site: Site, *, rows: int | None = None, name: str | None = None) -> None:
        if rows is not None and rows < 2:
            raise InputError(f"a second moment takes at least 2 rows, got rows={rows}")
        self.sites, self.limit = (site,), rows
        self.name = name or f"moment-{site}"
        self.rows = 0
        self._sum = self._squares = torch.zeros(0, dtype=torch.float64)

    @property
    def done(self) -> bool:
        """True once the configured rows have been read."""
        return self.limit is not None and self.rows >= self.limit

    @property
    def progress(self) -> tuple[int, int | None]:
        """Rows read, and rows asked for."""
        return self.rows, self.limit

    def merge(self, other: SecondMoment) -> None:
        """Add the moments of other rows of the site.

        Raises:
            InputError: the other is of another site.
        """
        if self.sites != other.sites:
            raise InputError(f"moments of {other.sites[0]} do not add to those of {self.sites[0]}")
        if not other.rows:
            return
        if not len(self._sum):
            self._sum, self._squares = torch.zeros_like(other._sum), torch.zeros_like(other._squares)
        self._sum = self._sum + other._sum
        self._squares = self._squares + other._squares
        self.rows += other.rows

    def step(self, batch: Batch) -> None:
        """Add the rows of a batch, up to those asked for."""
        room = len(batch.origin) if self.limit is None else self.limit - self.rows
        self.add(batch.acts[self.sites[0]][:room])

    def add(self, x: Float[Tensor, "rows d"]) -> None:
        """Add rows."""
        exact = x.double()
        if not len(self._sum):
            self._sum, self._squares = exact.new_zeros(x.shape[1]), exact.new_zeros(x.shape[1], x.shape[1])
        self._sum += exact.sum(0)
        self._squares.addmm_(exact.T, exact)
        self.rows += len(x)

    @property
    def mean(self) -> Float64[Tensor, " d"]:
        """Mean row.

        Raises:
            InputError: fewer than two rows were read.
        """
        if self.rows < 2:
            raise InputError(f"{self.name} has read {self.rows} rows: give it at least 2")
        return self._sum / self.rows

    @property
    def covariance(self) -> Float64[Tensor, "d d"]:
        """E[(x - E x)(x - E x)^T]."""
        mean = self.mean
        return self.second - torch.outer(mean, mean)

    @property
    def second(self) -> Float64[Tensor, "d d"]:
        """E[x x^T]."""
        return self._squares / max(self.rows, 1)

    def metrics(self) -> dict[str, float]:
        """Rows read, and their total variance."""
        variance = float(self.covariance.trace()) if self.rows > 1 else 0.0
        return {"rows": float(self.rows), "variance": variance}

    def state_dict(self) -> State:
        """The sums."""
        return {"rows": self.rows, "sum": self._sum.clone(), "squares": self._squares.clone()}

    def load_state_dict(self, state: State) -> None:
        """Continue from `state_dict`."""
        self.rows, self._sum, self._squares = state["rows"], state["sum"].clone(), state["squares"].clone()

    def save(self, folder: Path) -> None:
        """Write `moment.safetensors`: mean and covariance."""
        write_tensors(folder / "moment.safetensors", {"mean": self.mean, "covariance": self.covariance})


@dataclass(frozen=True)
class AtomicInnerProduct:
    """An inner product by the symmetric root of its matrix: <u, v> = (u W) . (v W), S = W W."""

    whitening: Float64[Tensor, "d d"]
    """W: rows times it have unit covariance, up to the ridge."""
    ridge: float
    """The constant added to every variance, in squared activation units."""
    condition: float
    """Largest over smallest eigenvalue of what was inverted, the ridge included."""

    @classmethod
    def of_moment(cls, moment: SecondMoment, ridge: float = RIDGE, centred: bool = True) -> Self:
        """S = (C + ridge * mean variance * I)^-1.

        Args:
            centred: C is the covariance; else E[x x^T], for atoms that carry the mean of the activations themselves.

        Raises:
            InputError: a negative ridge, or none with fewer rows than dimensions.
        """
        covariance = moment.covariance if centred else moment.second
        if ridge == 0 and moment.rows <= len(covariance):
            raise InputError(
                f"{moment.rows} rows leave directions of {len(covariance)} dimensions without variance: "
                "read more rows, or give a ridge above 0"
            )
        values, vectors = torch.linalg.eigh(covariance)
        return cls._inverse(values, vectors, ridge)

    @classmethod
    def of_atoms(cls, atoms: Float[Tensor, "n d"], ridge: float = 0.0) -> Self:
        """S = (D^T D)^-1, D the rows as they are; see the module.

        Raises:
            InputError: a negative ridge, or atoms that do not span the space.
        """
        n, d = atoms.shape
        if n < d:
            raise InputError(f"{n} atoms do not span {d} dimensions: the inner product of their own takes at least {d}")
        # by their singular values: the eigenvalues of D^T D would lose half the digits
        _, sizes, directions = torch.linalg.svd(torch.linalg.qr(atoms.double(), mode="r").R)
        return cls._inverse(sizes.square().flip(0), directions.flip(0).T, ridge)

    @classmethod
    def _inverse(cls, values: Float64[Tensor, " d"], vectors: Float64[Tensor, "d d"], ridge: float) -> Self:
        """From ascending eigenvalues, and eigenvectors in columns."""
        if not 0 <= ridge < float("inf"):
            raise InputError(f"ridge must be 0 or a positive share of the mean variance, got {ridge}")
        added = ridge * float(values.mean())
        values = values + added
        if not values[0] > len(values) * torch.finfo(values.dtype).eps * values[-1]:
            raise InputError("the inner product is not defined: some direction has no variance; give a larger ridge")
        whitening = (vectors * values.rsqrt()) @ vectors.T
        return cls(whitening, added, float(values[-1] / values[0]))

    @property
    def S(self) -> Float64[Tensor, "d d"]:
        """The matrix of the inner product."""
        return self.whitening @ self.whitening

    @property
    def unwhitening(self) -> Float64[Tensor, "d d"]:
        """The inverse of W."""
        return torch.linalg.inv(self.whitening)

    def whiten(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Rows times W, in their own dtype: Euclidean there is atomic here."""
        return rows @ self.whitening.to(rows)

    def gram(self, atoms: Float[Tensor, "n d"]) -> Float64[Tensor, "n n"]:
        """All inner products of atoms as they are: for small n; `gram_stats` streams any n."""
        white = self.whiten(atoms.double())
        return white @ white.T
