"""`FirstRows`: a consumer that keeps the first rows of a stream at one site, to fit something on or to read again."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ..errors import InputError
from ..models.sites import Site
from ..storage import State
from ..streams.activation_stream import Batch


class FirstRows:
    """Keeps rows of a site and their origins, in the order of the stream, in the stream's dtype.

    Args:
        rows: how many to keep.

    Raises:
        InputError: `rows` is below 1.
    """

    kind = "measures"

    def __init__(self, site: Site, rows: int, *, name: str | None = None) -> None:
        if rows < 1:
            raise InputError(f"rows={rows} keeps nothing: give at least 1")
        self.sites, self.limit, self.name = (site,), rows, name or f"rows-{site}"
        self.rows = 0
        self._acts: list[Tensor] = []
        self._origins: list[Tensor] = []

    @property
    def done(self) -> bool:
        """True once the rows asked for are kept."""
        return self.rows >= self.limit

    @property
    def progress(self) -> tuple[int, int | None]:
        """Rows kept, and rows asked for."""
        return self.rows, self.limit

    @property
    def acts(self) -> Float[Tensor, "rows d"]:
        """The rows.

        Raises:
            InputError: none were read.
        """
        if not self._acts:
            raise InputError(f"{self.name} has read no rows: step it on at least one batch")
        return torch.cat(self._acts)

    @property
    def origin(self) -> Int64[Tensor, "rows 2"]:
        """Document and offset of every row."""
        return torch.cat(self._origins) if self._origins else torch.empty(0, 2, dtype=torch.int64)

    def step(self, batch: Batch) -> None:
        """Keep rows of a batch, up to those asked for."""
        self._keep(batch.acts[self.sites[0]], batch.origin)

    def _keep(self, acts: Tensor, origin: Tensor) -> None:
        room = self.limit - self.rows
        self._acts.append(acts[:room].clone())
        self._origins.append(origin[:room].clone())
        self.rows += len(self._origins[-1])

    def merge(self, other: FirstRows) -> None:
        """Append the rows of a later stretch of the stream, up to those asked for; exact.

        Raises:
            InputError: the other keeps rows of another site.
        """
        if self.sites != other.sites:
            raise InputError(f"rows of {other.sites[0]} do not continue rows of {self.sites[0]}")
        if other.rows:
            self._keep(other.acts, other.origin)

    def metrics(self) -> dict[str, int | float]:
        """Rows kept so far."""
        return {"rows": self.rows}

    def state_dict(self) -> State:
        """The rows and their origins."""
        return {"rows": self.rows, "kept": {"acts": self.acts, "origin": self.origin} if self._acts else {}}

    def load_state_dict(self, state: State) -> None:
        """Continue where `state_dict` was taken."""
        kept = state.get("kept", {})
        self._acts, self._origins = ([kept[name].clone()] if kept else [] for name in ("acts", "origin"))
        self.rows = state["rows"]

    def save(self, folder: Path) -> None:
        """Write nothing: rows are for whoever asked for them."""
