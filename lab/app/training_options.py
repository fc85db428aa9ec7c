"""Options of commands that train on a stream: the source of rows, the loop, and the counts of a finished run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..models.hooked_model import HookedModel
from ..runs.asked import require_rows
from ..runs.consumers import Consumer
from ..runs.loop import train
from ..runs.run import Run
from ..runs.trackers import check_sink
from ..streams.activation_stream import ActivationStream, StreamConfig
from ..streams.store import READ_ROWS, ActivationStore
from ..streams.token_stream import TokenStream
from .checks import buffer_of, check_run
from .options import Flat, ModelText


@dataclass(frozen=True)
class StreamOptions:
    """Options of the stream that a dictionary is trained on: a model with its text, or a store."""

    source: Flat[ModelText] = field(default_factory=ModelText)
    store: Path | None = None
    """Train on activations from this store (written by `monosem harvest`), not on a model's."""
    stream: StreamConfig = field(default_factory=StreamConfig)

    def check(self, sites: Sequence[Any], out: Path, resume: bool) -> None:
        """Refuse what can be refused before the model is loaded.

        Raises:
            InputError: a folder for the run that cannot be used, or a store, model, site or text that cannot be read.
        """
        check_run(out, resume)
        if self.store is not None:
            ActivationStore.open(self.store).read(0, 0, READ_ROWS)
        else:
            self.source.check(sites)

    def open(
        self,
        sites: Sequence[str],
        model: HookedModel | None = None,
        *,
        rows: int | None = None,
        out: Path | None = None,
    ) -> ActivationStream:
        """The stream of the training split, or of the store.

        Args:
            model: the model if it is loaded already.
            rows: rows that will be served: a larger buffer would only be waited for.
            out: folder of the run; a run that is resumed keeps the buffer it began with.
        """
        config = self.stream
        if rows is not None and config.buffer > (enough := max(rows, 2 * config.batch)):
            begun = None if out is None else buffer_of(out)
            config = replace(config, buffer=enough if begun is None else begun)
        if self.store is not None:
            return ActivationStream.from_store(ActivationStore.open(self.store), sites=sites, config=config)
        model = model or self.source.open_model()
        return ActivationStream(model, self.source.open_corpus(model, split="train"), sites, config=config)


@dataclass(frozen=True)
class LoopOptions:
    """How the loop logs, checkpoints and continues.

    Raises:
        InputError: no steps between lines, no time between checkpoints, or a tracker that is unknown or not installed.
    """

    resume: bool = False
    """Continue the run in `out`; it ends in the same bytes as if it had never stopped."""
    allow_short: bool = False
    """Accept a run that gets fewer rows than --rows. Where the number is known beforehand (--store, or texts at hand
    with --stream.epochs), the learning rate falls over the rows there are; elsewhere it ends at its height."""
    log_every: int | None = None
    """Steps between lines of metrics.jsonl; by default 20, or fewer in a run that would have less than 20 lines."""
    checkpoint_minutes: float = 10.0
    """Minutes between checkpoints."""
    trackers: tuple[str, ...] = ()
    """Also send metrics to wandb, tensorboard or trackio."""

    def __post_init__(self) -> None:
        if self.log_every is not None and self.log_every < 1:
            raise InputError(f"log_every must be at least 1, got {self.log_every}")
        if not self.checkpoint_minutes > 0:
            raise InputError(f"checkpoint_minutes must be above 0, got {self.checkpoint_minutes:g}")
        for tracker in self.trackers:
            check_sink(tracker)

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `train` from these options."""
        return {
            "allow_short": self.allow_short,
            "log_every": self.log_every,
            "log_at_most": 20,
            "checkpoint_minutes": self.checkpoint_minutes,
            "trackers": self.trackers,
        }

    def require_rows(self, stream: ActivationStream | TokenStream, rows: int) -> None:
        """Refuse a stream that is known to have fewer rows, before a run is created.

        Raises:
            InputError: names both numbers, unless `allow_short`.
        """
        require_rows(stream, rows, self.allow_short)

    def train(
        self, stream: ActivationStream | TokenStream, consumers: Sequence[Consumer], run: Run, rows: int | None = None
    ) -> Run:
        """Run the loop.

        Args:
            rows: how many to serve, the last batch whole; by default as many as the consumers want.
        """
        steps = None if rows is None else -(-rows // stream.config.batch)
        return train(stream, consumers, run, steps=steps, **self.arguments())


def stream_counts(run: Run) -> dict[str, Any]:
    """Tokens read, rows kept, dropped and served over the whole finished run."""
    return (run.manifest or {})["counts"]


def tokens_per_second(run: Run) -> float:
    """Rows trained on per second of the loop, interruptions left out."""
    lines = [json.loads(line) for line in (run.folder / "timing.jsonl").read_text().splitlines()]
    return sum(line["rows"] for line in lines) / max(sum(line["seconds"] for line in lines), 1e-9)


def outcome(run: Run) -> dict[str, Any]:
    """Where a finished run and its dictionaries are, and what it read."""
    return {
        "run": str(run.folder),
        "dictionaries": {name: str(path) for name, path in run.dictionaries.items()},
        "tokens": stream_counts(run)["tokens"],
        "rows": stream_counts(run)["served"],
        **{name: (run.manifest or {}).get(name) for name in ("status", "asked_rows")},
        "tokens_per_second": tokens_per_second(run),
    }
