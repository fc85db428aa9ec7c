"""Consumers that keep rows, tokens or documents of a stream, to fit something on or to read again.

FirstRows       activations at one site
FullTokenRows   rows of tokens without padding, from a `TokenStream`
"""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ..errors import InputError
from ..models.sites import Site
from ..storage import State
from ..streams.activation_stream import Batch
from ..text.packing import NOWHERE, TokenBatch


class _Kept:
    """The base of all: keeps a number of rows, is a measure, and writes nothing."""

    kind = "measures"

    def __init__(self, rows: int, name: str) -> None:
        if rows < 1:
            raise InputError(f"rows={rows} keeps nothing: give at least 1")
        self.limit, self.name = rows, name
        self.rows = 0

    @property
    def done(self) -> bool:
        """True once the rows asked for are kept."""
        return self.rows >= self.limit

    @property
    def progress(self) -> tuple[int, int | None]:
        """Rows kept, and rows asked for."""
        return self.rows, self.limit

    def metrics(self) -> dict[str, int | float]:
        """Rows kept so far."""
        return {"rows": self.rows}

    def save(self, folder: Path) -> None:
        """Write nothing: rows are for whoever asked for them."""


class FirstRows(_Kept):
    """Keeps rows of a site and their origins, in the order of the stream, in the stream's dtype.

    Args:
        rows: how many to keep.
        whole: keep all rows of the batch that has the last of these, so a few more.

    Raises:
        InputError: `rows` is below 1.
    """

    def __init__(self, site: Site, rows: int, *, whole: bool = False, name: str | None = None) -> None:
        super().__init__(rows, name or f"rows-{site}")
        self.sites, self.whole = (site,), whole
        self._acts: list[Tensor] = []
        self._origins: list[Tensor] = []

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
    def batches(self) -> list[Batch]:
        """The rows in the batches that they came in, for another `read`."""
        parts = zip(self._acts, self._origins, strict=True)
        return [Batch({self.sites[0]: acts}, origin) for acts, origin in parts]

    @property
    def origin(self) -> Int64[Tensor, "rows 2"]:
        """Document and offset of every row."""
        return torch.cat(self._origins) if self._origins else torch.empty(0, 2, dtype=torch.int64)

    def step(self, batch: Batch) -> None:
        """Keep rows of a batch, up to those asked for."""
        self._keep(batch.acts[self.sites[0]], batch.origin)

    def _keep(self, acts: Tensor, origin: Tensor) -> None:
        room = len(origin) if self.whole and not self.done else self.limit - self.rows
        if room <= 0 or not len(origin):
            return
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
        for acts, origin in zip(other._acts, other._origins, strict=True):
            if not self.done:
                self._keep(acts, origin)

    def state_dict(self) -> State:
        """The rows and their origins, and how many came in each batch."""
        if not self._acts:
            return {"rows": self.rows, "kept": {}}
        sizes = torch.tensor([len(origin) for origin in self._origins])
        return {"rows": self.rows, "kept": {"acts": self.acts, "origin": self.origin, "sizes": sizes}}

    def load_state_dict(self, state: State) -> None:
        """Continue where `state_dict` was taken."""
        kept = state.get("kept", {})
        sizes = kept["sizes"].tolist() if "sizes" in kept else [state["rows"]]  # states before sizes hold one stretch
        self._acts, self._origins = (
            list(kept[name].clone().split(sizes)) if kept else [] for name in ("acts", "origin")
        )
        self.rows = state["rows"]


class FullTokenRows(_Kept):
    """Keeps the first rows of tokens of one length that hold no padding, in the order of a `TokenStream`.

    Args:
        rows: how many to keep.
        length: tokens a row; by default as many as the first row without padding has.

    Raises:
        InputError: `rows` is below 1.
    """

    needs_text = True
    sites: tuple[Site, ...] = ()

    def __init__(self, rows: int, *, length: int | None = None, name: str = "token-rows") -> None:
        super().__init__(rows, name)
        self.length = length
        self._kept: list[TokenBatch] = []

    @property
    def kept(self) -> TokenBatch:
        """The rows, [rows, length] in every field.

        Raises:
            InputError: none was found.
        """
        if not self._kept:
            raise InputError(f"{self.name} has found no row of tokens without padding: give more text")
        return TokenBatch(*(torch.cat(field) for field in zip(*self._kept, strict=True)))

    def step(self, batch: Batch) -> None:
        """Keep rows of a token batch, up to those asked for."""
        assert batch.source is not None, "served by a TokenStream"
        text = batch.source.batch
        full = text.attention.all(1).nonzero()[:, 0]
        if len(full) and self.length in (None, text.tokens.shape[1]):
            self._keep(TokenBatch(*(field[full] for field in text)))

    def _keep(self, rows: TokenBatch) -> None:
        room = self.limit - self.rows
        self.length = rows.tokens.shape[1]
        self._kept.append(TokenBatch(*(field[:room].clone() for field in rows)))
        self.rows += len(self._kept[-1].tokens)

    def merge(self, other: FullTokenRows) -> None:
        """Append rows of later text, up to those asked for; exact.

        Raises:
            InputError: the other keeps rows of another length.
        """
        if None not in (self.length, other.length) and self.length != other.length:
            raise InputError(f"rows of {other.length} tokens do not continue rows of {self.length}: give both a length")
        if other.rows and not self.done:
            self._keep(other.kept)

    def state_dict(self) -> State:
        """The rows."""
        return {"rows": self.rows, "length": self.length, "kept": self.kept._asdict() if self._kept else {}}

    def load_state_dict(self, state: State) -> None:
        """Continue where `state_dict` was taken."""
        kept = state.get("kept", {})
        self._kept = [TokenBatch(**{name: field.clone() for name, field in kept.items()})] if kept else []
        self.rows, self.length = state["rows"], state["length"]


class DocumentIds:
    """Keeps the id of every document that a `TokenStream` reads to its end."""

    kind = "measures"
    needs_text = True
    sites: tuple[Site, ...] = ()
    done = False

    def __init__(self, *, name: str = "documents") -> None:
        self.name = name
        self.ids: set[int] = set()

    @property
    def progress(self) -> tuple[int, int | None]:
        """Documents so far; the stream's end decides how many there will be."""
        return len(self.ids), None

    def step(self, batch: Batch) -> None:
        """Note the documents of a token batch."""
        assert batch.source is not None, "served by a TokenStream"
        self.ids.update(doc for doc in batch.source.batch.doc.unique().tolist() if doc != NOWHERE)

    def merge(self, other: DocumentIds) -> None:
        """Take in the documents of other text; exact."""
        self.ids |= other.ids

    def metrics(self) -> dict[str, int | float]:
        """Documents so far."""
        return {"documents": len(self.ids)}

    def state_dict(self) -> State:
        """The ids, in order."""
        return {"ids": sorted(self.ids)}

    def load_state_dict(self, state: State) -> None:
        """Continue where `state_dict` was taken."""
        self.ids = set(state["ids"])

    def save(self, folder: Path) -> None:
        """Write nothing: ids are for whoever asked for them."""
