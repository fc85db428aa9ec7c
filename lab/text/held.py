"""`HeldText`: token batches at hand, read as a corpus."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from ..storage import State
from .packing import TokenBatch


@dataclass(frozen=True)
class HeldShape:
    """Sizes of the largest batch."""

    batch_rows: int
    context: int


class HeldText:
    """Serves token batches in their order, for streams that take a `Corpus`.

    Raises:
        InputError: there is no batch.
    """

    def __init__(self, batches: Iterable[TokenBatch]) -> None:
        self._batches = list(batches)
        if not self._batches:
            raise InputError("there is no token batch to read: give at least one")
        rows, lengths = zip(*(batch.tokens.shape for batch in self._batches), strict=True)
        self.config = HeldShape(max(rows), max(lengths))

    def iterate(self, state: State | None = None, *, epochs: int | None = 1) -> Iterator[tuple[TokenBatch, State]]:
        """Every batch with the state after it.

        Raises:
            InputError: more than one pass is asked for.
        """
        if epochs != 1:
            raise InputError(f"held text is read once, not epochs={epochs}: use a Corpus")
        first = state["next"] if state else 0
        for number, batch in enumerate(self._batches[first:], first + 1):
            yield batch, {"next": number}

    def fingerprint(self) -> dict[str, Any]:
        """A hash of every token."""
        digest = hashlib.sha256()
        for batch in self._batches:
            digest.update(batch.tokens.contiguous().numpy().tobytes())
        return {"hash": digest.hexdigest()}

    def __repr__(self) -> str:
        return f"HeldText({len(self._batches)} batches)"
