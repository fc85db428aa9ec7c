"""`HeldRows`: batches of activations at hand, read as a stream."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from ..errors import InputError
from ..models.sites import Site
from ..storage import State
from .activation_stream import Batch


class HeldRows:
    """Serves batches in their order, once, for `read`; they are taken one by one and cannot be continued from disk.

    Raises:
        InputError: there is no batch.
    """

    def __init__(self, batches: Iterable[Batch]) -> None:
        self._batches = iter(batches)
        first = next(self._batches, None)
        if first is None:
            raise InputError("there is no batch to read: give at least one")
        self._first: Batch | None = first
        self.sites: tuple[Site, ...] = tuple(first.acts)
        self.widths = {site: x.shape[1] for site, x in first.acts.items()}
        """Width of every site."""
        self.dtype: torch.dtype = next((x.dtype for x in first.acts.values()), torch.float32)
        self.counts: dict[str, Any] = {"tokens": 0, "kept": 0, "dropped_special": 0, "dropped_norm": {}, "served": 0}
        """As an `ActivationStream`'s; a row is counted as the one token that was read for it."""
        self._cancelled = threading.Event()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._cancelled.is_set():
            self.close()
            raise KeyboardInterrupt
        batch, self._first = self._first or next(self._batches), None
        for name in ("tokens", "kept", "served"):
            self.counts[name] += len(batch.origin)
        return batch

    def metrics(self) -> dict[str, int | float]:
        """No counts of its own: nothing is left out."""
        return {}

    def cancel(self) -> None:
        """Let the next batch raise KeyboardInterrupt instead: for signal handlers."""
        self._cancelled.set()

    def close(self) -> None:
        """Forget a cancellation; iterating again goes on where the stream stands."""
        self._cancelled.clear()

    def fingerprint(self) -> dict[str, Any]:
        """Refuse: batches at hand are in no manifest.

        Raises:
            InputError: always.
        """
        raise InputError("batches at hand cannot be read in a run, which would be continued from disk: write them to "
                         "an ActivationStore first, or read without a run")  # fmt: skip

    def state_dict(self) -> State:
        """Counts."""
        return dict(self.counts)

    def load_state_dict(self, state: State) -> None:
        """Refuse, as `fingerprint` does.

        Raises:
            InputError: always.
        """
        self.fingerprint()

    def __repr__(self) -> str:
        return f"HeldRows({', '.join(f'{site} [{width}]' for site, width in self.widths.items())})"
