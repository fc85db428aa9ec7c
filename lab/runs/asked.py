"""Rows that consumers ask for, held against the rows that a stream has.

A run that gets fewer rows than its consumers want is short. Where the number of rows is known beforehand (a store, or
texts at hand that are read a set number of times), `fit_rows` refuses the run before the first step, or with
`allow_short` lets the schedules span the rows there are. Elsewhere the loop finds out at the end: everything is kept,
the manifest says what was asked and had, and `short_run` is the error.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    from ..streams.activation_stream import ActivationStream
    from ..streams.token_stream import TokenStream
    from .consumers import Consumer
    from .run import Run

log = logging.getLogger(__name__)

ALLOW = "allow fewer (allow_short=True, --allow-short)"


def rows_asked(consumers: Sequence[Consumer], batch: int, steps: int | None = None) -> int | None:
    """Count the rows after which no consumer wants more.

    Args:
        batch: rows per batch.
        steps: most batches that will be served.

    Returns:
        The largest number that a consumer asks for, `steps` batches at most; None where no consumer says how many.
    """
    asked = [_asked(consumer, batch, steps) for consumer in consumers]
    return max((rows for rows in asked if rows is not None), default=None)


def _asked(consumer: Consumer, batch: int, steps: int | None) -> int | None:
    limits = (getattr(consumer, "rows_wanted", None), None if steps is None else steps * batch)
    return min((rows for rows in limits if rows is not None), default=None)


def require_rows(stream: ActivationStream | TokenStream, asked: int, allow_short: bool = False) -> int:
    """Return the rows that a stream will serve of those asked for, as far as that is known before it is read.

    Raises:
        InputError: fewer than are asked for, unless `allow_short`; names both numbers.
    """
    had = stream.rows_at_most(asked)
    if had is None or had >= asked:
        return asked
    if not allow_short:
        raise InputError(
            f"{asked:,} rows are asked for and the stream has {had:,}: ask for at most {had:,} (rows, --rows), give"
            f" more text or a larger store, or {ALLOW}, and schedules span the rows there are"
        )
    return had


def fit_rows(
    stream: ActivationStream | TokenStream, consumers: Sequence[Consumer], steps: int | None, allow_short: bool
) -> bool:
    """Refuse a stream that is known to hold fewer rows than are asked for, or let schedules span the rows it holds.

    Args:
        steps: most batches that will be served.
        allow_short: shorten the schedules of consumers that have one (`Consumer.shorten`).

    Returns:
        True if a consumer will get fewer rows than it wants.

    Raises:
        InputError: as `require_rows`.
    """
    wanting = [consumer for consumer in consumers if getattr(consumer, "rows_wanted", None) is not None]
    asked = rows_asked(wanting, stream.config.batch, steps)
    if asked is None or (had := require_rows(stream, asked, allow_short)) >= asked:
        return False
    log.warning("%s rows are asked for and the stream has %s: the run is short", f"{asked:,}", f"{had:,}")
    for consumer in wanting:
        own, shorten = _asked(consumer, stream.config.batch, steps), getattr(consumer, "shorten", None)
        if own is not None and own > had and shorten is not None:
            shorten(had)
    return True


def is_short(consumers: Sequence[Consumer], had: int, batch: int, steps: int | None) -> bool:
    """Tell if a stream ended after `had` rows before a consumer that says how much it wants was done."""
    unfinished = [consumer for consumer in consumers if not consumer.done]
    asked = rows_asked(unfinished, batch, steps)
    return asked is not None and had < asked


def short_run(asked: int, had: int, run: Run | None) -> InputError:
    """The error of a run whose stream ended early."""
    kept = "the consumers hold what they learned" if run is None else f"what was trained is kept in {run.folder}"
    again = "" if run is None else ", resuming this run"
    return InputError(
        f"the stream ended after {had:,} of {asked:,} rows; {kept}: ask for at most {had:,} (rows, --rows), give"
        f" text or passes (epochs), or {ALLOW}{again}"
    )


def shortness(asked: int | None, had: int, short: bool) -> dict[str, Any]:
    """Facts of a manifest: `status`, and the rows that were asked for and had."""
    return {"status": "short" if short else "complete", "asked_rows": asked, "rows": had}
