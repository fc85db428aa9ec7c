"""The one loop: a stream feeds consumers until all are done. `train` runs it to learn, `read` (read.py) to measure.

Killed at any moment, mid-checkpoint included, and called again with the same run, it continues to the same
weights, optimizer states and metrics as if nothing had happened. An error ends a run after a checkpoint. No step reads
a tensor back to the host.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

from tqdm.auto import tqdm

from ..checkpoints import require_same
from ..errors import InputError
from ..storage import LONGEST_NAME, State, short_name
from ..streams.activation_stream import ActivationStream, Batch
from ..streams.held_rows import HeldRows
from ..streams.token_stream import TokenStream
from .asked import fit_rows, is_short, rows_asked, short_run, shortness
from .consumers import Consumer
from .run import Run
from .trackers import Sink, open_sink

log = logging.getLogger(__name__)

Stream = ActivationStream | TokenStream | HeldRows
"""Streams that the loop reads; `train` takes no `HeldRows`."""
STREAM = "stream"  # the name of the stream's own lines in the metrics
LOG_POINTS = 20
"""Log points that a run has at least, however short, where `log_every` is not given."""
SHOWN = 4  # metrics beside the bar
CONSUMER = ("name", "sites", "done", "step", "metrics", "state_dict", "load_state_dict", "save")


@overload
def train(
    stream: ActivationStream | TokenStream,
    consumers: Sequence[Consumer] | Consumer,
    run: Run | Path | str,
    *,
    steps: int | None = ...,
    allow_short: bool = ...,
    log_every: int = ...,
    checkpoint_every: int | None = ...,
    checkpoint_minutes: float | None = ...,
    progress: bool = ...,
    trackers: Sequence[Sink | str] = ...,
) -> Run:
    """Train in a run, which is returned."""
    ...


@overload
def train(
    stream: ActivationStream | TokenStream,
    consumers: Sequence[Consumer] | Consumer,
    run: None = None,
    *,
    steps: int | None = ...,
    allow_short: bool = ...,
    log_every: int = ...,
    checkpoint_every: int | None = ...,
    checkpoint_minutes: float | None = ...,
    progress: bool = ...,
    trackers: Sequence[Sink | str] = ...,
) -> None:
    """Train without a run."""
    ...


def train(
    stream: ActivationStream | TokenStream,
    consumers: Sequence[Consumer] | Consumer,
    run: Run | Path | str | None = None,
    *,
    steps: int | None = None,
    allow_short: bool = False,
    log_every: int | None = None,
    log_at_most: int = 50,
    checkpoint_every: int | None = None,
    checkpoint_minutes: float | None = 15.0,
    progress: bool = True,
    trackers: Sequence[Sink | str] = (),
    sinks: None = None,
) -> Run | None:
    """Step every consumer on every batch until all are done, the stream ends or `steps` is reached.

    A run that holds a checkpoint is continued from it; pass a fresh stream and fresh consumers built with the
    same options. At the end each consumer's artefact is saved and the run's manifest written.

    Args:
        run: where metrics, checkpoints and artefacts go. A folder is created, or the run in it is continued, if its
            stream and consumers were set up alike. None keeps nothing on disk: the consumers hold what they learned.
        steps: batches in total, those before a resume included.
        allow_short: accept a stream that ends before the consumers have the rows they want. Where its rows are known
            beforehand, learning-rate schedules then span the rows there are; the manifest has `status` short.
        log_every: steps between log points: a line per consumer and one for the stream in `metrics.jsonl`. By default
            `log_at_most`, or fewer in a run so short that it would have less than 20 log points. A run that is
            continued keeps its interval.
        log_at_most: steps between log points of a long run, where `log_every` is not given.
        checkpoint_every: steps between checkpoints.
        checkpoint_minutes: minutes between checkpoints; whichever of the two comes first.
        progress: show a bar on stderr, with a total and a remaining time where all consumers say how much they want.
        trackers: further places for the metrics: `Sink` objects, or "wandb", "tensorboard", "trackio".
        sinks: the former name of `trackers`; refused.

    Raises:
        InputError: a consumer's name is taken or its site not streamed, the checkpoint is of another stream
            or other consumers, activations are not finite, or the disk is full: a checkpoint is written first, where
            one can be. Or the stream has fewer rows than asked for, without `allow_short`: refused at the start where
            that is known, and else raised at the end, when artefacts and manifest are written.
        KeyboardInterrupt: on Ctrl-C, after the current step and, with a run, a checkpoint.
    """
    if sinks is not None:
        raise InputError(f"train has no option sinks={sinks!r}: it is called trackers now")
    consumers = list(consumers) if isinstance(consumers, Sequence) else [consumers]
    require_counts(log_every=log_every, log_at_most=log_at_most, checkpoint_every=checkpoint_every, steps=steps)
    require_consumers(stream, consumers, "train")
    for consumer in consumers:
        if attach := getattr(consumer, "attach", None):
            attach(stream)
    settings = {consumer.name: getattr(consumer, "settings", dict)() for consumer in consumers}
    asked = rows_asked(consumers, stream.config.batch, steps)
    short = fit_rows(stream, consumers, steps, allow_short)
    if isinstance(run, Path | str):
        run = Run.create(run, {"consumers": settings}, stream.fingerprint(), resume=True)
    loop = Loop(stream, consumers, run, asked, short=short)
    interval = log_every or _log_interval(loop, run, steps, log_at_most)
    loop.restore()
    every = CheckpointClock(checkpoint_every, checkpoint_minutes)
    with contextlib.ExitStack() as stack:
        stack.callback(stream.close)
        bar = stack.enter_context(_bar(loop, steps, progress))
        outputs = [_opened(sink, run) for sink in trackers]
        for sink in outputs:
            stack.callback(sink.close)

        def after_step(rows: int) -> None:
            bar.update(rows)
            if loop.steps % interval == 0 or not loop.wants_more(steps):  # before a checkpoint of the last step
                loop.log(run, outputs, bar)

        loop.drive(every, after_step, steps)
        if loop.logged != loop.steps:
            loop.log(run, outputs, bar)
        if loop.ended and is_short(consumers, loop.rows, stream.config.batch, steps):
            loop.short = True
    loop.end(allow_short)
    return run


@dataclass
class Loop:
    """The steps and checkpoints of `train` and `read`, and the counters that they share."""

    stream: Stream
    consumers: list[Consumer]
    run: Run | None
    """Where checkpoints and artefacts go; None keeps nothing on disk."""
    asked: int | None = None
    """Rows that the consumers ask for; None where they do not say."""
    ended: bool = False
    """The stream has no more rows."""
    short: bool = False
    """True if consumers get fewer rows than they ask for."""
    steps: int = 0
    logged: int = 0
    """The step of the last log point."""
    belongs: dict[str, Any] = field(init=False)
    """Fingerprints of the stream and the consumers that a checkpoint belongs to alone; empty without a run."""
    batch: Batch | None = None
    """The batch that some consumers have seen and others not; None between two steps."""
    waiting: list[str] = field(default_factory=list)
    """Names of the consumers that have not seen it."""
    tried: int = -1
    """Step of the last checkpoint that was begun, and `saved` of the last that was written."""
    saved: int = -1
    interrupted: bool = False
    """Ctrl-C came with the last batch: what was driven is complete, and the caller should go no further."""
    _clock: tuple[float, int] = field(default_factory=lambda: (time.monotonic(), 0))

    def __post_init__(self) -> None:
        self.belongs = {}
        if self.run is not None:  # a fingerprint reads all parameters and all text
            sites = {consumer.name: [str(site) for site in consumer.sites] for consumer in self.consumers}
            self.belongs = {"stream": self.stream.fingerprint(), "consumers": sites}

    @property
    def rows(self) -> int:
        return self.stream.counts["served"]

    def wants_more(self, steps: int | None) -> bool:
        return (steps is None or self.steps < steps) and any(not consumer.done for consumer in self.consumers)

    def drive(self, every: CheckpointClock, after_step: Callable[[int], None], steps: int | None = None) -> None:
        """Step until every consumer is done, the stream ends or `steps` is reached.

        An error of the stream, of a consumer or of `after_step` ends it, after a checkpoint where the state is whole.

        Raises:
            KeyboardInterrupt: on Ctrl-C, after the current step and, where there is a run, a checkpoint.
        """
        with Interrupt(self.stream) as interrupt:
            try:
                while self.wants_more(steps):
                    interrupt.check()
                    rows = self.step()
                    if rows is None:
                        break
                    after_step(rows)
                    if every.due(self.steps):
                        self.checkpoint()
            except KeyboardInterrupt:
                if interrupt.requested and self.batch is None:
                    self.checkpoint()
                raise KeyboardInterrupt(self._stopped()) from None
            except Exception as error:
                self._keep(error)
                raise
            self.interrupted = interrupt.requested

    def _keep(self, error: Exception) -> None:
        """Write a checkpoint before an error ends the run, and say in the error how the run is continued.

        Between two steps the state is whole. In a step it is, if the consumer that failed says that it has changed
        nothing yet (`Consumer.halfway`): the batch is kept for it and for those after it.
        """
        nothing = not self.steps and not self.stream.counts["kept"]
        if self.run is None or nothing or not self._whole():
            return
        if self.tried != self.steps:
            try:
                self.checkpoint()
            except (InputError, OSError) as refused:
                log.warning("no checkpoint could be written: %s", refused)
        if self.saved == self.steps:
            error.add_note(f"{self.run.folder} is kept up to step {self.steps}: resume it (--resume)")

    def _whole(self) -> bool:
        """True if the state of stream and consumers can be continued from."""
        if self.batch is None:
            return True
        failed = next(consumer for consumer in self.consumers if consumer.name == self.waiting[0])
        return self.batch.source is None and not getattr(failed, "halfway", True)

    def _stopped(self) -> str:
        if self.run is None:
            return f"stopped after {self.steps} batches; the consumers hold what they measured"
        return f"stopped; {self.run.folder} can be continued: resume it (--resume)"

    def step(self) -> int | None:
        """Feed one batch to the consumers that are not done; return its rows, None at the stream's end."""
        if self.batch is None:
            self.batch = next(self.stream, None)
            self.waiting = [consumer.name for consumer in self.consumers if not consumer.done]
        if (batch := self.batch) is None:
            self.ended = True
            return None
        for consumer in self.consumers:
            if consumer.name in self.waiting:
                consumer.step(batch)
                self.waiting.remove(consumer.name)
        self.steps += 1
        self.batch = None
        return len(batch.origin)

    def log(self, run: Run | None, sinks: Sequence[Sink], bar: tqdm) -> None:
        """Write one line per consumer; the numbers depend on nothing but the state."""
        where = {"step": self.steps, "rows": self.rows, "tokens": self.stream.counts["tokens"]}
        logged: dict[str, int | float] = {}
        for name, source in [(STREAM, self.stream), *((c.name, c) for c in self.consumers)]:
            values = source.metrics()
            if run is not None:
                run.log({**where, "consumer": name, **values})
            logged.update({f"{name}/{key}": value for key, value in values.items()})
        for sink in sinks:
            sink.log(self.steps, logged)
        self.logged = self.steps
        shown = [name for name in logged if not name.startswith(f"{STREAM}/")][:SHOWN]
        bar.set_postfix({name: logged[name] for name in shown}, refresh=False)
        if run is not None:
            self._log_time(run)

    def _log_time(self, run: Run) -> None:
        (before, rows), now = self._clock, time.monotonic()
        self._clock = now, self.rows
        line = {"step": self.steps, "seconds": now - before, "rows": self.rows - rows}
        run.log(line, "timing.jsonl")

    def checkpoint(self) -> None:
        """Write the state of the stream and of every consumer, where there is a run."""
        if self.run is None:
            return
        self.tried = self.steps
        state: State = {
            "step": self.steps,
            "logged": self.logged,
            "belongs": self.belongs,
            "stream": self.stream.state_dict(),
            "consumers": {consumer.name: consumer.state_dict() for consumer in self.consumers},
        }
        if (batch := self.batch) is not None:
            acts = {str(site): rows for site, rows in batch.acts.items()}
            state["batch"] = {"acts": acts, "origin": batch.origin, "waiting": list(self.waiting)}
        self.run.checkpoint(state)
        self.saved = self.steps

    def restore(self) -> None:
        """Continue from the run's checkpoint, if it has one.

        Raises:
            InputError: the checkpoint is of another stream or of other consumers.
        """
        state = None if self.run is None else self.run.resume()
        if self.run is None or state is None:
            return
        require_same(state["belongs"], self.belongs, f"the checkpoint in {self.run.folder}")
        self.stream.load_state_dict(state["stream"])
        for consumer in self.consumers:
            consumer.load_state_dict(state["consumers"][consumer.name])
        self.steps, self.logged = state["step"], state["logged"]
        if (batch := state.get("batch")) is not None:  # the run ended with an error in the middle of a step
            device = getattr(self.stream, "device", "cpu")
            acts = {site: batch["acts"][str(site)].to(device) for site in self.stream.sites}
            self.batch, self.waiting = Batch(acts, batch["origin"]), list(batch["waiting"])
        self._clock = time.monotonic(), self.rows

    def finish(self) -> None:
        """Write the last checkpoint, every artefact and the manifest, where there is a run."""
        if self.run is None:
            return
        self.checkpoint()
        for consumer in self.consumers:
            self.run.save(consumer)
        facts = {"steps": self.steps, **shortness(self.asked, self.rows, self.short), "counts": self.stream.counts}
        self.run.finish(**facts, **self.belongs)

    def end(self, allow_short: bool = True) -> None:
        """Finish, and pass on a Ctrl-C that came with the last batch.

        Args:
            allow_short: accept a stream that ended before consumers had the rows they ask for.

        Raises:
            KeyboardInterrupt: once everything is written.
            InputError: the run is short, once everything is written.
        """
        self.finish()
        if self.interrupted:
            raise KeyboardInterrupt(self._stopped())
        if self.short and self.asked is not None:
            error = short_run(self.asked, self.rows, self.run)
            if not allow_short:
                raise error
            log.warning("%s of %s rows: the stream ended", f"{self.rows:,}", f"{self.asked:,}")


def _log_interval(loop: Loop, run: Run | None, steps: int | None, most: int) -> int:
    """Steps between log points: a run that has logged keeps its own, another has `most`, or fewer if it is short."""
    logged = next((line["step"] for line in run.metrics() if "step" in line), None) if run is not None else None
    if logged is not None:
        return min(logged, most)
    wanted = [getattr(consumer, "rows_wanted", None) for consumer in loop.consumers]
    rows = [count for count in wanted if count is not None]
    lengths = [] if steps is None else [steps]
    if len(rows) == len(wanted):
        assert not isinstance(loop.stream, HeldRows), "train takes none"
        lengths.append(-(-max(rows) // loop.stream.config.batch))
    return max(1, min(most, min(lengths) // LOG_POINTS)) if lengths else most


class CheckpointClock:
    """Tells when a checkpoint is due, by steps or by the clock."""

    def __init__(self, steps: int | None, minutes: float | None):
        self.steps, self.minutes = steps, minutes
        self._last = time.monotonic()

    def due(self, step: int) -> bool:
        """True if this step should be followed by a checkpoint."""
        by_clock = self.minutes is not None and time.monotonic() - self._last > 60 * self.minutes
        if by_clock or (self.steps is not None and step % self.steps == 0):
            self._last = time.monotonic()
            return True
        return False


class Interrupt:
    """The first Ctrl-C is a request, honoured between two steps or two reads; the second is immediate."""

    def __init__(self, stream: Stream):
        self.requested = False
        self._stream = stream
        self._before: Any = None

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _ask(self, *_: object) -> None:
        self.requested = True
        self._stream.cancel()
        signal.signal(signal.SIGINT, self._before or signal.default_int_handler)

    def check(self) -> None:
        """Raise KeyboardInterrupt once one was requested."""
        if self.requested:
            raise KeyboardInterrupt


def _opened(sink: Sink | str, run: Run | None) -> Sink:
    if not isinstance(sink, str):
        return sink
    if run is None:
        raise InputError(f"tracker {sink!r} follows a run: give train a folder or a Run, or leave the tracker out")
    return open_sink(sink, run)


def _bar(loop: Loop, steps: int | None, progress: bool) -> tqdm:
    assert not isinstance(loop.stream, HeldRows), "train takes none"
    batch = loop.stream.config.batch
    wanted = [getattr(consumer, "rows_wanted", None) for consumer in loop.consumers]
    total = None if None in wanted else -(-max(filter(None, wanted)) // batch) * batch
    if steps is not None:
        total = steps * batch if total is None else min(total, steps * batch)
    return tqdm(total=total, initial=loop.rows, unit="tok", unit_scale=True, disable=not progress)


def require_counts(**counts: int | None) -> None:
    """Refuse counts below 1.

    Raises:
        InputError: names the count.
    """
    for option, value in counts.items():
        if value is not None and value < 1:
            raise InputError(f"{option}={value} must be 1 or more")


def require_consumers(stream: Stream, consumers: Sequence[Consumer], who: str) -> None:
    """Refuse consumers that this stream cannot feed together.

    Args:
        who: names the caller, `train` or `read`.

    Raises:
        InputError: there is none, one lacks a part of `Consumer`, two have one name, a site is not streamed, or the
            stream does not serve what a consumer needs.
    """
    if not consumers:
        raise InputError(f"{who} needs at least one consumer")
    names = [STREAM]
    for consumer in consumers:
        if not isinstance(consumer, Consumer):
            lacking = ", ".join(part for part in CONSUMER if not hasattr(consumer, part))
            raise InputError(f"{type(consumer).__name__} is no Consumer: it lacks {lacking}, so add them")
        if consumer.name in names or not consumer.name or "/" in consumer.name or consumer.name[0] == ".":
            raise InputError(
                f"consumer name {consumer.name!r} cannot be used: names must be plain, different from "
                f"each other and not {STREAM!r}, so set name= on it"
            )
        if short_name(consumer.name) != consumer.name:
            raise InputError(
                f"consumer name {consumer.name[:40]}... has {len(consumer.name.encode())} bytes and names a folder: "
                f"file systems take {LONGEST_NAME}, so set a shorter name= on it"
            )
        names.append(consumer.name)
        for site in consumer.sites:
            if site not in stream.sites:
                raise InputError(
                    f"consumer {consumer.name!r} reads {site}, which is not streamed: "
                    f"add it to the stream's sites ({', '.join(map(str, stream.sites))})"
                )
        if getattr(consumer, "needs_text", False) and not isinstance(stream, TokenStream):
            raise InputError(
                f"consumer {consumer.name!r} reads whole texts, which {type(stream).__name__} does not serve: "
                "give it a TokenStream"
            )
