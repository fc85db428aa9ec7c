"""Sweeps: many dictionaries off one stream, each a member of a grid, all trained by the one loop.

    members = grid(site="resid_post.12", architecture=["topk", "jumprelu"], n_latents=4096, k=[16, 32], seed=[0, 1])
    result = sweep(stream, members, Run.create("runs/sweep")).evaluate(model, held_out)
    result                                  # a table; result.plot("fvu") draws it against L0

One forward of the model feeds all members. Where they do not fit in memory together, `at_once` trains them in
several passes over the same stream, with the same bytes as a result.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from ...kernels.chunks import chunk_rows
from ...kernels.dispatch import choose
from ...lab.checkpoints import require_same
from ...lab.errors import InputError
from ...lab.memory import available_memory
from ...lab.models.sites import Site
from ...lab.runs.loop import train
from ...lab.runs.run import Run
from ...lab.storage import flatten, read_json, write_json
from ...lab.streams.activation_stream import ActivationStream
from ..place import CROSS_LAYER
from ..training.clt.trainer import CrossLayerTrainer
from ..training.gradient_trainer import GradientTrainer
from ..training.on_stream import require_streamed
from ..training.trainer import Trainer
from .grid import Member, require_distinct
from .results import PASSES, SweepResult

if TYPE_CHECKING:
    from ..architectures.clt.cross_layer import CrossLayer
    from ..architectures.sae import SparseAutoencoder

log = logging.getLogger(__name__)

MEMBERS = "members.json"
SPARED = 0.1
"""Share of the available memory that a sweep leaves to everything else."""
SHADOW_BYTES = {"fp32": 0, "int8": 1, "bf16": 2}
"""Of each weight in the copies that propose codes."""


def member_trainer(
    stream: ActivationStream, member: Member, device: torch.device | str = "cpu"
) -> Trainer | CrossLayerTrainer:
    """A new dictionary for the sites of a member, with the trainer of its kind.

    Raises:
        InputError: a site is not streamed, or the sites of a cross-layer transcoder have different widths.
    """
    sizes = {"n_latents": member.n_latents, "k": member.k, **member.own}
    trainer = Trainer.on(
        stream, member.place, member.architecture,
        dictionary=sizes, training=member.training, name=member.name, device=device,
    )  # fmt: skip
    return cast("Trainer | CrossLayerTrainer", trainer)


def held_bytes(member: Member, widths: Mapping[Site, int], device: torch.device | str = "cpu") -> int:
    """Bytes that one member holds while it is trained: weights, moments, counters and low-precision copies.

    Args:
        widths: of its sites.
    """
    place = member.place
    with torch.device("meta"):
        dictionary = member.build(widths)
        if place.kind == CROSS_LAYER:
            trainer = CrossLayerTrainer(cast("CrossLayer", dictionary), place.reads, place.predicts, member.training)
            layers: Sequence[GradientTrainer] = trainer.layers
        else:
            trainer = Trainer(cast("SparseAutoencoder", dictionary), place, member.training)
            layers = [trainer]
    tensors, _ = flatten(trainer.state_dict())
    copies = SHADOW_BYTES[choose(torch.device(device), member.training.precision).encode]
    weights = sum(layer.weights.W_enc.numel() + layer.weights.W_dec.numel() for layer in layers)
    return sum(tensor.nbytes for tensor in tensors.values()) + copies * weights


def plan(
    stream: ActivationStream,
    members: Sequence[Member],
    at_once: int | None = None,
    *,
    available: int | None = None,
    device: torch.device | str = "cpu",
) -> list[list[Member]]:
    """The members that are trained together, in order: one group unless `at_once` says otherwise.

    Args:
        stream: what they are trained on; its buffer takes memory too.
        at_once: the most members of a group.
        available: bytes there are; by default what the device has left. Where that is not known nothing is refused.

    Raises:
        InputError: no members, one twice, a site that is not streamed, or a group that does not fit: names what it
            takes, what there is, and how many would fit.
    """
    require_distinct(members)
    if at_once is not None and at_once < 1:
        raise InputError(f"at_once must be at least 1, got {at_once}")
    most = min(at_once or len(members), len(members))
    groups = [list(members[start : start + most]) for start in range(0, len(members), most)]
    for member in members:
        require_streamed(member.place, stream)
    sizes = {member.name: held_bytes(member, stream.widths, device) for member in members}
    buffer = stream.config.buffer * sum(stream.widths.values()) * stream.dtype.itemsize
    place = torch.device(device)
    work = max(4 * member.n_latents * chunk_rows(member.n_latents, place.type) for member in members) + buffer
    needed = max(sum(sizes[member.name] for member in group) for group in groups) + work
    available = available_memory(place) if available is None else available
    log.info("%d dictionaries in %d pass(es), %.2f GB at most", len(members), len(groups), needed / 1e9)
    if available is not None and needed > (1 - SPARED) * available:
        raise _too_large(list(sizes.values()), most, needed, work, available)
    return groups


def _too_large(sizes: Sequence[int], most: int, needed: int, work: int, available: int) -> InputError:
    room, count, held = (1 - SPARED) * available - work, 0, 0
    for size in sorted(sizes, reverse=True):
        held += size
        count += held <= room
    fewer = f"train {count} at once (--at-once {count}), or give" if count else "give"
    return InputError(
        f"{most} dictionaries at once take {needed / 1e9:.2f} GB (weights, moments, copies, and the stream's buffer) "
        f"and {available / 1e9:.2f} GB are available, a tenth of it spared: {fewer} fewer or smaller dictionaries"
    )


class _Pass(Run):
    """One of several passes: a run inside the sweep's, whose dictionaries go into the sweep's own folder."""

    def artefact(self, name: str, kind: str = "dictionaries") -> Path:
        """Where the artefact goes: where it would be had there been one pass."""
        return self.folder.parent.parent / kind / name


def sweep(
    stream: ActivationStream | Callable[[], ActivationStream],
    members: Sequence[Member],
    run: Run,
    *,
    at_once: int | None = None,
    device: torch.device | str = "cpu",
    **options: Any,
) -> SweepResult:
    """Train every member on the same rows; a run that was stopped is continued, to the same bytes.

    Args:
        stream: fresh, with the site of every member; or what opens one, which several passes need.
        run: a new run, or one of the same sweep (`Run.create(folder, resume=True)`).
        at_once: the most members that are trained together; each further group is another pass over the stream.
        device: where dictionaries are.
        **options: of `lab.loop.train`: allow_short, log_every, checkpoint_minutes, progress,
            trackers.

    Raises:
        InputError: a member twice, a site that is not streamed, a run of another sweep, several passes over a stream
            that cannot be read again, or more than the memory holds.
    """
    if at_once is not None and at_once < len(members) and isinstance(stream, ActivationStream):
        raise InputError("several passes (at_once) read the stream again: give a function that opens it")
    first = stream if isinstance(stream, ActivationStream) else stream()
    groups = plan(first, members, at_once, device=device)
    _remember(run, members)
    for number, group in enumerate(groups, 1):
        part = run if len(groups) == 1 else _pass(run, number, group)
        if part is run or part.manifest is None or part.manifest["status"] == "short":
            source = first if number == 1 or isinstance(stream, ActivationStream) else stream()
            trainers = [member_trainer(source, member, device) for member in group]
            longest = max(member.training.rows for member in group)
            train(source, trainers, part, steps=-(-longest // source.config.batch), **options)
        if part is not run:
            facts = ("status", "steps", "asked_rows", "rows", "counts")
            run.finish(**{key: (part.manifest or {}).get(key) for key in facts}, passes=number)
    return SweepResult(tuple(members), run)


def _pass(run: Run, number: int, group: Sequence[Member]) -> _Pass:
    config = {"members": [member.name for member in group]}
    return _Pass.create(run.folder / PASSES / str(number), config, run.fingerprints, resume=True)  # type: ignore[return-value]


def _remember(run: Run, members: Sequence[Member]) -> None:
    """Write down what the sweep consists of, or refuse to continue another one."""
    now = {member.name: {**asdict(member), "own": dict(member.own)} for member in members}
    path = run.folder / MEMBERS
    if path.exists():
        require_same(read_json(path), _plain(now), f"the sweep in {run.folder}")
    else:
        write_json(path, now)


def _plain(value: Any) -> Any:
    """The value as a round trip through JSON returns it: lists for tuples."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value
