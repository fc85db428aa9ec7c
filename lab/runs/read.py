"""`read`: measure anything on one pass over a stream; the loop is `train`'s.

    stream = TokenStream.reading(model, corpus, ["resid_post.12"])
    read(stream, [Reconstruction(dictionary, rows=65_536), features, probes])

Any number of measures share one forward pass. Ctrl-C stops after the current batch: measures hold what they measured,
and with a run everything is on disk and the same call continues. Measures of two halves of a corpus merge
(`Measuring.merge`).
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tqdm.auto import tqdm

from ..streams.activation_stream import ActivationStream, Batch
from ..streams.held_rows import HeldRows
from ..streams.store import ActivationStore
from ..streams.token_stream import TokenStream
from .consumers import Consumer, Measuring
from .loop import CheckpointClock, Loop, require_consumers
from .run import Run

log = logging.getLogger(__name__)

FORECAST_AFTER = 3.0
"""Seconds of reading after which the time that is left is forecast."""
WORTH_TELLING = 60.0
"""Seconds from which a forecast is logged."""


class ReadCounts(NamedTuple):
    """Sizes of one read, those of a continued read included."""

    batches: int
    rows: int
    """Rows served to consumers."""
    tokens: int
    """Tokens that the stream read to serve them."""
    dropped_special: int
    """Tokens left out as special, padding or first."""
    dropped_norm: dict[str, int]
    """Rows left out by site for their norm."""


def read(
    stream: ActivationStream | TokenStream | ActivationStore | Iterable[Batch],
    consumers: Sequence[Consumer] | Consumer,
    run: Run | None = None,
    *,
    description: str = "read",
    checkpoint_minutes: float | None = 15.0,
    progress: bool = True,
) -> ReadCounts:
    """Step every consumer on every batch until all are done or the stream ends.

    Args:
        stream: a store is read once, its rows shuffled; batches at hand in their order, without a run.
        run: where checkpoints and artefacts go, and what an earlier call is continued from; pass a fresh stream and
            fresh consumers then. None keeps nothing on disk.
        description: names the bar.
        checkpoint_minutes: minutes between checkpoints; None leaves only those at a stop and at the end.
        progress: show a bar on stderr; with a total and a remaining time where a consumer knows how much it wants.

    Raises:
        InputError: as `train`: names taken, sites not streamed, another stream's checkpoint, not finite activations;
            or there is no batch at hand.
        KeyboardInterrupt: on Ctrl-C, after the current batch and, with a run, a checkpoint.
    """
    consumers = list(consumers) if isinstance(consumers, Sequence) else [consumers]
    if isinstance(stream, ActivationStore):
        stream = ActivationStream.from_store(stream)
    elif not isinstance(stream, ActivationStream | TokenStream | HeldRows):
        stream = HeldRows(stream)
    require_consumers(stream, consumers, "read")
    loop = Loop(stream, consumers, run)
    loop.restore()
    with contextlib.ExitStack() as stack:
        stack.callback(stream.close)
        bar = stack.enter_context(_Bar(loop, description, progress))
        loop.drive(CheckpointClock(None, checkpoint_minutes), lambda rows: bar.update())
    loop.end()
    counts = stream.counts
    return ReadCounts(
        loop.steps, counts["served"], counts["tokens"], counts["dropped_special"], dict(counts["dropped_norm"])
    )


class _Bar:
    """A bar that follows the measure with most left to do; without a total, the rows of the stream."""

    def __init__(self, loop: Loop, description: str, shown: bool) -> None:
        self._loop, self._description, self._shown = loop, description, shown
        done, total = self._standing()
        self._began, self._before, self._forecast = time.monotonic(), done, not shown
        self._bar = tqdm(desc=description, initial=done, total=total, unit="tok", unit_scale=True, disable=not shown)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def update(self) -> None:
        """Show where the read stands; once it is known and long, log how long it takes."""
        done, total = self._standing()
        if total != self._bar.total:  # another consumer is the slowest now
            self._bar.total = total
        self._bar.update(done - self._bar.n)
        passed = time.monotonic() - self._began
        if not self._forecast and total and passed > FORECAST_AFTER and done > self._before:
            self._forecast = True
            left = passed * (total - done) / (done - self._before)
            if left > WORTH_TELLING:
                units = f"{total - done:,} of {total:,}"
                log.info("%s: about %.0f min for %s", self._description, left / 60, units)

    def _standing(self) -> tuple[int, int | None]:
        """Units done and wanted by the consumer that is furthest from its end."""
        open_ended = any(not isinstance(c, Measuring) or c.progress[1] is None for c in self._loop.consumers)
        wanted = [c.progress for c in self._loop.consumers if isinstance(c, Measuring)]
        shares = [(min(done, total) / max(total, 1), min(done, total), total) for done, total in wanted if total]
        if open_ended or not shares:
            return self._loop.rows, None
        _, done, total = min(shares)
        return done, total
