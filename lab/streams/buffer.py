"""A shuffle buffer with constant cost per row, whatever its size.

The rows live in one preallocated block per site. A permutation of all slots is drawn and its first half is
served in batches; arriving rows are written straight into the slots that were served; then a new permutation
is drawn. Each row costs one gather and one scatter, and a batch mixes rows from the whole buffer. With
`reuse` above one only every `reuse`-th served slot takes a new row (those served first), so a row is served
`reuse` times on average and the model runs that much less often. When the source is exhausted, what is left
is served `reuse` times over.

Memory is `rows * width * itemsize` per site, plus 24 bytes per row for origins and the permutation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import InputError
from ..models.sites import Site
from ..rng import generator
from ..storage import State

SAMPLE = 65536  # rows that stand for a larger buffer when its mixing is measured


class Mixing(NamedTuple):
    """Share of row pairs that come from the same document: 0 to 1, nan while there are no two rows."""

    observed: float
    """Within the last batch served."""
    expected: float
    """Within the whole buffer, which is what a uniformly drawn batch would have."""


class ShuffleBuffer:
    """Rows of activations at one or more sites, written in order and taken out shuffled.

    Write with `put` while there is `room`, then `take` a batch; call `finish` once nothing more will come.

    Raises:
        InputError: `rows` is less than two batches, or `reuse` is less than one.
    """

    def __init__(
        self,
        rows: int,
        widths: Mapping[Site, int],
        batch: int,
        *,
        seed: int = 0,
        reuse: int = 1,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        pin: bool = False,
    ):
        if batch < 1 or rows < 2 * batch:
            raise InputError(
                f"a buffer of {rows} rows cannot shuffle batches of {batch}: "
                "it needs at least two batches, so raise buffer= or lower batch="
            )
        if reuse < 1:
            raise InputError(f"reuse={reuse} would serve no rows: it must be 1 or more")
        self.rows, self.batch, self.reuse, self.pin = rows, batch, reuse, pin
        self._acts = {site: torch.empty(rows, width, dtype=dtype, device=device) for site, width in widths.items()}
        self._origin = torch.empty(rows, 2, dtype=torch.int64)
        self._generator = generator(seed, "shuffle")
        self._fill = 0  # slots that have ever been written
        self._order = torch.empty(0, dtype=torch.int64)  # slots in serving order
        self._cursor = self._stop = 0  # order[cursor:stop] is still to be served
        self._refilled = 0  # order[:refilled] were served and hold new rows
        self._passes: int | None = None  # once finished: permutations of the rest still to draw
        self._last = torch.empty(0, 2, dtype=torch.int64)  # origins of the last batch

    @property
    def room(self) -> int:
        """Number of rows that `put` accepts now. `take` wants this to be 0, unless the buffer is finished."""
        if self._passes is not None:
            return 0
        if self._fill < self.rows:
            return self.rows - self._fill
        return self._cursor // self.reuse - self._refilled

    @property
    def empty(self) -> bool:
        """Finished, and every row has been served."""
        return self._passes == 0 and self._cursor == self._stop

    def put(self, acts: Mapping[Site, Float[Tensor, "n d"]], origin: Int[Tensor, "n 2"], start: int = 0) -> int:
        """Copy rows `start:` of a chunk into free slots, as many as there is room for; returns how many."""
        count = min(self.room, len(origin) - start)
        if count <= 0:
            return 0
        rows = slice(start, start + count)
        if self._fill < self.rows:
            slots = slice(self._fill, self._fill + count)
            for site, block in self._acts.items():
                block[slots].copy_(acts[site][rows])
            self._origin[slots] = origin[rows]
            self._fill += count
        else:
            slots = self._order[self._refilled : self._refilled + count]
            for site, block in self._acts.items():
                block.index_copy_(0, slots.to(block.device), acts[site][rows].to(block))
            self._origin[slots] = origin[rows]
            self._refilled += count
        return count

    def finish(self) -> None:
        """Nothing more will arrive: from now on `take` serves what is left until the buffer is `empty`."""
        if self._passes is not None:
            return
        if self._fill < self.rows or not len(self._order):
            self._order = torch.arange(self._fill)
        else:
            self._order = torch.cat([self._order[: self._refilled], self._order[self._cursor // self.reuse :]])
        self._cursor = self._stop = 0
        self._passes = self.reuse if len(self._order) else 0

    def take(self) -> tuple[dict[Site, Float[Tensor, "b d"]], Int[Tensor, "b 2"]]:
        """The next batch: fresh tensors that later batches never overwrite. Only the last may be short."""
        if self.empty or self.room:
            raise RuntimeError("take() needs a buffer that is full or finished, and not empty")
        if self._cursor == self._stop:
            self._draw()
        slots = self._order[self._cursor : min(self._cursor + self.batch, self._stop)]
        self._cursor += len(slots)
        acts = {site: self._gather(block, slots) for site, block in self._acts.items()}
        self._last = self._origin.index_select(0, slots)
        return acts, self._last

    def _draw(self) -> None:
        if self._passes is None:
            self._order = torch.randperm(self.rows, generator=self._generator)
            self._stop = self.rows // 2 // self.batch * self.batch
            self._refilled = 0
        else:
            self._order = self._order[torch.randperm(len(self._order), generator=self._generator)]
            self._stop = len(self._order)
            self._passes -= 1
        self._cursor = 0

    def _gather(self, block: Tensor, slots: Tensor) -> Tensor:
        shape = (len(slots), block.shape[1])
        pin = self.pin and block.device.type == "cpu"
        out = torch.empty(shape, dtype=block.dtype, device=block.device, pin_memory=pin)
        return torch.index_select(block, 0, slots.to(block.device), out=out)

    def mixing(self) -> Mixing:
        """Mixing of documents in the last batch: the observed share should be near the expected one."""
        if len(self._order) > SAMPLE:  # the tail of a permutation is a fair sample: none of it is refilled
            rest = self._origin[self._order[-SAMPLE:]]
        else:
            rest = self._origin[: self._fill] if self._passes is None else self._origin[self._order]
        return Mixing(_same_document(self._last), _same_document(rest))

    def state_dict(self) -> State:
        """All that is needed to continue exactly. The tensors are the buffer's own: write or clone them."""
        return {
            "acts": {str(site): block[: self._fill] for site, block in self._acts.items()},
            "origin": self._origin[: self._fill],
            "order": self._order,
            "last": self._last,
            "generator": self._generator.get_state(),
            "cursor": self._cursor,
            "stop": self._stop,
            "refilled": self._refilled,
            "passes": self._passes,
        }

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` gave.

        Raises:
            InputError: the state is of a buffer with other sites, widths, size or dtype.
        """
        ours = {str(site): (block.shape[1], block.dtype) for site, block in self._acts.items()}
        theirs = {name: (block.shape[1], block.dtype) for name, block in state["acts"].items()}
        fill = len(state["origin"])
        if ours != theirs or fill > self.rows:
            raise InputError(
                f"the saved buffer has {fill} rows of {theirs} and this one {self.rows} of {ours}: "
                "open the stream with the options it was saved with"
            )
        for site, block in self._acts.items():
            block[:fill].copy_(state["acts"][str(site)])
        self._origin[:fill] = state["origin"]
        self._fill = fill
        self._order, self._last = state["order"].clone(), state["last"].clone()
        self._generator.set_state(state["generator"])
        self._cursor, self._stop = state["cursor"], state["stop"]
        self._refilled, self._passes = state["refilled"], state["passes"]


def rows_served(rows: int, buffer: int, batch: int, reuse: int) -> int:
    """Count the rows that a `ShuffleBuffer` serves of a source with so many rows, from the first to the last.

    Args:
        rows: rows that the source has.
        buffer: rows in the buffer.
        batch: rows per batch.
        reuse: as in `ShuffleBuffer`.
    """
    if rows < buffer:
        return rows * reuse
    permutation = buffer // 2 // batch * batch  # served before the next permutation is drawn
    replaced = permutation // reuse
    if not replaced:
        return rows * reuse
    rounds, left = divmod(rows - buffer, replaced)
    batches = next(n for n in range(permutation // batch + 1) if n * batch // reuse > left)
    return rounds * permutation + batches * batch + (buffer + left - batches * batch // reuse) * reuse


def _same_document(origin: Int[Tensor, "n 2"]) -> float:
    n = len(origin)
    if n < 2:
        return float("nan")
    counts = origin[:, 0].unique(return_counts=True)[1]
    return int((counts * (counts - 1)).sum()) / (n * (n - 1))
