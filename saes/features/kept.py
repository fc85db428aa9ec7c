"""`Kept`: the best few entries of every group, over any number of blocks, each with its window of context.

Which entries are kept does not depend on how the tokens were cut into blocks: entries arrive in the order of the
corpus, the earlier wins a tie, and an entry that loses its place could never regain it.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int64, UInt64

from .blocks import OUTSIDE, Block, Windows
from .loops import insert_best


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
        insert_best(self.rank, self.context, self.source, self.filled, group, rank, context, -1 - entries)
        there = self._there()
        source = self.source[there]
        old, new = source[source >= 0], -1 - source[source < 0]
        if not len(new):
            return
        cut = block.windows(new)
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

    def _there(self) -> tuple[np.ndarray, np.ndarray]:
        """Groups and places that hold an entry, by group, then rank."""
        groups, places = np.nonzero(np.arange(self.rank.shape[1]) < self.filled[:, None])
        return groups, places
