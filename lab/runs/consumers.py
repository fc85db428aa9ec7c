"""Consumers: anything that is trained or measured on the batches of a stream.

    train(stream, consumers, run)    learn; metrics are logged, artefacts saved
    read(stream, consumers)          measure; any number of measures share one pass of the model

A consumer says what it needs of a stream:

    sites            activation rows `batch.acts[site]` with `batch.origin`: any stream serves those
    needs_text       whole token batches with the activations at every token, `batch.source`: a `TokenStream` serves
                     those, with logits or without. Splicing reads the tokens and runs the model itself

and a measure says how far it is (`progress`) and takes in what an equal one measured elsewhere (`merge`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, Self, runtime_checkable

import torch

from ..models.sites import Site
from ..storage import State
from ..streams.activation_stream import Batch


@runtime_checkable
class Consumer(Protocol):
    """One learner or measure on a stream; `train` and `read` step any number of them on the same batches.

    Between two steps the whole of it is in `state_dict`: restored from there, it continues to the same bytes,
    and `metrics` gives the same numbers. Optional attributes: `kind: str`, the folder of a run that its artefact
    goes to ("dictionaries" unless it says otherwise); `needs_text: bool`, true if `step` reads `batch.source`;
    `rows_wanted: int`, the rows after which it is done; `shorten(rows)`, which makes its schedules span the fewer rows
    there are; `halfway: bool`, False while a step has changed nothing yet, so that an error there loses nothing;
    `settings()`, JSON values that a continued run must share; and `attach(stream)`, which `train` calls before the
    first step.
    """

    name: str
    """Unique in its run; names its lines in the metrics and its artefact, so it is a plain file name."""
    sites: tuple[Site, ...]
    """The sites it reads."""

    @property
    def done(self) -> bool:
        """True once the consumer wants no more batches. Read on every step, so it must not wait for the device."""
        ...

    def step(self, batch: Batch) -> None:
        """Learn from one batch. The batch is shared with the other consumers: read it, never write it."""
        ...

    def metrics(self) -> dict[str, int | float]:
        """Numbers for the log. Called every so many steps, so it may wait for the device."""
        ...

    def state_dict(self) -> State:
        """Tensors and JSON values, nested in dicts with text keys."""
        ...

    def load_state_dict(self, state: State) -> None: ...

    def save(self, folder: Path) -> None:
        """Write the final artefact into `folder`, which is empty. Nothing to keep: write nothing."""
        ...


@runtime_checkable
class Measuring(Consumer, Protocol):
    """A consumer that measures: two of them that read two halves of a corpus merge into the measure of the whole.

    Sums are kept in fp64 and merge up to the order of summation; selections (strongest examples) merge exactly.
    Learners that depend on the order of rows, `ITDATrainer` for one, have no `merge`.
    """

    @property
    def progress(self) -> tuple[int, int | None]:
        """Units measured so far (rows, texts, predictions) and units wanted; None if the stream's end decides."""
        ...

    def merge(self, other: Self) -> None:
        """Take in the state of an equal measure that read later rows; `other` stays as it is.

        Raises:
            InputError: `other` measures something else.
        """
        ...


def optimizer_state(optimizer: torch.optim.Optimizer) -> State:
    """The state of an optimizer as a `State`: its moments and its options (learning rate and so on)."""
    packed = optimizer.state_dict()
    return {
        "moments": {str(index): dict(moments) for index, moments in packed["state"].items()},
        "groups": {str(index): dict(group) for index, group in enumerate(packed["param_groups"])},
    }


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: State) -> None:
    """Restore what `optimizer_state` gave."""
    groups = state["groups"]
    optimizer.load_state_dict(
        {
            "state": {int(index): moments for index, moments in state["moments"].items()},
            "param_groups": [groups[str(index)] for index in range(len(groups))],
        }
    )
