"""`Kept`: the best few entries of every group, over any number of blocks, each with its window of context.

Which entries are kept does not depend on how the tokens were cut into blocks: entries arrive in the order of the
corpus, the earlier wins a tie, and an entry that loses its place could never regain it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float64, Int64, UInt64

from ...lab.storage import State
from .blocks import OUTSIDE, Block, Windows
from .loops import insert_best

ARRAYS = ("filled", "rank", "context", "source")


def signed(array: np.ndarray) -> np.ndarray:
    """The same bytes as int64 where they are uint64, which no tensor file holds."""
    return array.view(np.int64) if array.dtype == np.uint64 else array


class Kept:
    """The `cap` best entries of each of `groups` groups, with `width` tokens of context each."""

    def __init__(self, groups: int, cap: int, width: int) -> None:
        self.filled = np.zeros(groups, np.int64)
        self.rank = np.zeros((groups, cap))
        self.context = np.zeros((groups, cap), np.uint64)
        self.source = np.zeros((groups, cap), np.int64)
        """Which row of `windows` belongs to the entry; within a merge, -1 - e stands for entry e of the block."""
        self.windows = Windows(
            value=np.zeros(0, np.float32),
            doc=np.zeros(0, np.int64),
            offset=np.zeros(0, np.int64),
            tokens=np.full((0, width), OUTSIDE, np.int32),
            acts=np.zeros((0, width), np.float32),
        )

    def merge(
        self,
        block: Block,
        entries: Int64[np.ndarray, " E"],
        group: Int64[np.ndarray, " E"],
        rank: Float64[np.ndarray, " E"],
        context: UInt64[np.ndarray, " E"],
    ) -> None:
        """Take in the entries of a block that deserve a place; windows are cut only for those.

        Args:
            entries: ascending places in the block's entries.
            rank: smaller is better.
            context: entries of one group with the same context count as one; the best stands for all.
        """
        self._insert(group, rank, context, entries, block.windows)

    def join(self, later: Kept) -> None:
        """Take in the entries kept of a later stretch of the corpus; `later` stays as it is."""
        group, place = later._there()
        rank, context, source = (table[group, place] for table in (later.rank, later.context, later.source))
        self._insert(group, rank, context, source, later.windows.take)

    def _insert(
        self,
        group: Int64[np.ndarray, " E"],
        rank: Float64[np.ndarray, " E"],
        context: UInt64[np.ndarray, " E"],
        entries: Int64[np.ndarray, " E"],
        windows: Callable[[np.ndarray], Windows],
    ) -> None:
        insert_best(self.rank, self.context, self.source, self.filled, group, rank, context, -1 - entries)
        there = self._there()
        source = self.source[there]
        old, new = source[source >= 0], -1 - source[source < 0]
        if not len(new):
            return
        cut = windows(new)
        stay = self.windows.take(old)
        self.windows = Windows(*(np.concatenate(columns) for columns in zip(stay, cut, strict=True)))
        renumbered = np.empty(len(source), np.int64)
        renumbered[source >= 0] = np.arange(len(old))
        renumbered[source < 0] = len(old) + np.arange(len(new))
        self.source[there] = renumbered

    def sorted(self) -> tuple[Int64[np.ndarray, " E"], UInt64[np.ndarray, " E"], Windows]:
        """Group, context and window of everything kept, by group, then rank."""
        group, place = self._there()
        return group, self.context[group, place], self.windows.take(self.source[group, place])

    def state_dict(self) -> State:
        """Every entry with its window."""
        arrays = {name: getattr(self, name) for name in ARRAYS} | self.windows._asdict()
        return {name: torch.from_numpy(signed(array).copy()) for name, array in arrays.items()}

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` gave."""
        arrays = {name: tensor.numpy().copy() for name, tensor in state.items()}
        for name in ARRAYS:
            setattr(self, name, arrays[name].view(getattr(self, name).dtype))
        self.windows = Windows(*(arrays[name] for name in Windows._fields))

    def _there(self) -> tuple[np.ndarray, np.ndarray]:
        """Groups and places that hold an entry, by group, then rank."""
        groups, places = np.nonzero(np.arange(self.rank.shape[1]) < self.filled[:, None])
        return groups, places
