"""The one loop: a stream feeds consumers until all are done.

Killed at any moment, mid-checkpoint included, and called again with the same run, it continues to the same
weights, optimizer states and metrics as if nothing had happened. No step reads a tensor back to the host.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from ..checkpoints import require_same
from ..errors import InputError
from ..storage import State
from ..streams.activation_stream import ActivationStream
from ..streams.token_stream import TokenStream
from .consumers import Consumer
from .run import Run
from .trackers import Sink, open_sink

STREAM = "stream"  # the name of the stream's own lines in the metrics
SHOWN = 4  # metrics beside the bar
CONSUMER = ("name", "sites", "done", "step", "metrics", "state_dict", "load_state_dict", "save")


def train(
    stream: ActivationStream | TokenStream,
    consumers: Sequence[Consumer] | Consumer,
    run: Run,
    *,
    steps: int | None = None,
    log_every: int = 50,
    checkpoint_every: int | None = None,
    checkpoint_minutes: float | None = 15.0,
    progress: bool = True,
    sinks: Sequence[Sink | str] = (),
) -> Run:
    """Step every consumer on every batch until all are done, the stream ends or `steps` is reached.

    A run that holds a checkpoint is continued from it; pass a fresh stream and fresh consumers built with the
    same options. At the end each consumer's artefact is saved and the run's manifest written.

    Args:
        steps: batches in total, those before a resume included.
        log_every: steps between log points: a line per consumer and one for the stream in `metrics.jsonl`.
        checkpoint_every: steps between checkpoints.
        checkpoint_minutes: minutes between checkpoints; whichever of the two comes first.
        progress: show a bar on stderr.
        sinks: further places for the metrics: `Sink` objects, or "wandb", "tensorboard", "trackio".

    Raises:
        InputError: a consumer's name is taken or its site not streamed, the checkpoint is of another stream
            or other consumers, activations are not finite, or the disk is full. The last checkpoint stays.
        KeyboardInterrupt: on Ctrl-C, after the current step and a checkpoint.
    """
    consumers = list(consumers) if isinstance(consumers, Sequence) else [consumers]
    _check(stream, consumers, log_every=log_every, checkpoint_every=checkpoint_every, steps=steps)
    loop = _Loop(stream, consumers, run)
    loop.restore()
    every = _Every(checkpoint_every, checkpoint_minutes)
    with contextlib.ExitStack() as stack:
        stack.callback(stream.close)
        bar = stack.enter_context(_bar(loop, steps, progress))
        outputs = [open_sink(sink, run) if isinstance(sink, str) else sink for sink in sinks]
        for sink in outputs:
            stack.callback(sink.close)
        interrupt = stack.enter_context(_Interrupt(stream))
        try:
            while loop.wants_more(steps):
                interrupt.check()
                rows = loop.step()
                if not rows:
                    break
                bar.update(rows)
                if loop.steps % log_every == 0 or not loop.wants_more(steps):  # before a checkpoint of the last step
                    loop.log(outputs, bar)
                if every.due(loop.steps):
                    loop.checkpoint()
        except KeyboardInterrupt:
            if interrupt.requested and not loop.stepping:
                loop.checkpoint()
            raise KeyboardInterrupt(f"stopped; {run.folder} can be continued: resume it (--resume)") from None
        if loop.logged != loop.steps:
            loop.log(outputs, bar)
    loop.finish()
    return run


@dataclass
class _Loop:
    """What a step, a log point and a checkpoint do, and the counters they share."""

    stream: ActivationStream | TokenStream
    consumers: list[Consumer]
    run: Run
    steps: int = 0
    logged: int = 0
    """The step of the last log point."""
    belongs: dict[str, Any] = field(init=False)
    """What a checkpoint belongs to: it fits no other stream, and no other consumers."""
    stepping: bool = False
    """Some consumers have seen the current batch and others not."""
    _clock: tuple[float, int] = field(default_factory=lambda: (time.monotonic(), 0))

    def __post_init__(self) -> None:
        sites = {consumer.name: [str(site) for site in consumer.sites] for consumer in self.consumers}
        self.belongs = {"stream": self.stream.fingerprint(), "consumers": sites}

    @property
    def rows(self) -> int:
        return self.stream.counts["served"]

    def wants_more(self, steps: int | None) -> bool:
        return (steps is None or self.steps < steps) and any(not consumer.done for consumer in self.consumers)

    def step(self) -> int:
        """Feed one batch to the consumers that are not done; the rows it had, 0 at the stream's end."""
        batch = next(self.stream, None)
        if batch is None:
            return 0
        self.stepping = True
        for consumer in self.consumers:
            if not consumer.done:
                consumer.step(batch)
        self.steps += 1
        self.stepping = False
        return len(batch.origin)

    def log(self, sinks: Sequence[Sink], bar: tqdm) -> None:
        """Write one line per consumer; the numbers depend on nothing but the state."""
        where = {"step": self.steps, "rows": self.rows, "tokens": self.stream.counts["tokens"]}
        logged: dict[str, int | float] = {}
        for name, source in [(STREAM, self.stream), *((c.name, c) for c in self.consumers)]:
            values = source.metrics()
            self.run.log({**where, "consumer": name, **values})
            logged.update({f"{name}/{key}": value for key, value in values.items()})
        for sink in sinks:
            sink.log(self.steps, logged)
        self.logged = self.steps
        shown = [name for name in logged if not name.startswith(f"{STREAM}/")][:SHOWN]
        bar.set_postfix({name: logged[name] for name in shown}, refresh=False)
        self._log_time()

    def _log_time(self) -> None:
        (before, rows), now = self._clock, time.monotonic()
        self._clock = now, self.rows
        line = {"step": self.steps, "seconds": now - before, "rows": self.rows - rows}
        self.run.log(line, "timing.jsonl")

    def checkpoint(self) -> None:
        state: State = {
            "step": self.steps,
            "logged": self.logged,
            "belongs": self.belongs,
            "stream": self.stream.state_dict(),
            "consumers": {consumer.name: consumer.state_dict() for consumer in self.consumers},
        }
        self.run.checkpoint(state)

    def restore(self) -> None:
        state = self.run.resume()
        if state is None:
            return
        require_same(state["belongs"], self.belongs, f"the checkpoint in {self.run.folder}")
        self.stream.load_state_dict(state["stream"])
        for consumer in self.consumers:
            consumer.load_state_dict(state["consumers"][consumer.name])
        self.steps, self.logged = state["step"], state["logged"]
        self._clock = time.monotonic(), self.rows

    def finish(self) -> None:
        self.checkpoint()
        for consumer in self.consumers:
            self.run.save(consumer)
        facts = {"steps": self.steps, "rows": self.rows, "counts": self.stream.counts}
        self.run.finish(**facts, **self.belongs)


class _Every:
    """Whether a checkpoint is due, by steps or by the clock."""

    def __init__(self, steps: int | None, minutes: float | None):
        self.steps, self.minutes = steps, minutes
        self._last = time.monotonic()

    def due(self, step: int) -> bool:
        by_clock = self.minutes is not None and time.monotonic() - self._last > 60 * self.minutes
        if by_clock or (self.steps is not None and step % self.steps == 0):
            self._last = time.monotonic()
            return True
        return False


class _Interrupt:
    """The first Ctrl-C is a request, honoured between two steps or two reads; the second is immediate."""

    def __init__(self, stream: ActivationStream | TokenStream):
        self.requested = False
        self._stream = stream
        self._before: Any = None

    def __enter__(self) -> _Interrupt:
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
        if self.requested:
            raise KeyboardInterrupt


def _bar(loop: _Loop, steps: int | None, progress: bool) -> tqdm:
    total = steps * loop.stream.config.batch if steps is not None else None
    return tqdm(total=total, initial=loop.rows, unit="tok", unit_scale=True, disable=not progress)


def _check(stream: ActivationStream | TokenStream, consumers: Sequence[Consumer], **counts: int | None) -> None:
    for option, value in counts.items():
        if value is not None and value < 1:
            raise InputError(f"{option}={value} must be 1 or more")
    if not consumers:
        raise InputError("train needs at least one consumer")
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
        names.append(consumer.name)
        for site in consumer.sites:
            if site not in stream.widths:
                raise InputError(
                    f"consumer {consumer.name!r} reads {site}, which is not streamed: "
                    f"add it to the stream's sites ({', '.join(map(str, stream.sites))})"
                )
