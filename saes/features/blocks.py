"""`Block`: consecutive tokens with their codes sorted by latent, so that one latent's firings lie side by side.

A token lies in a cell; cells follow one another row after row. A segment is a stretch of one document in one
row: the context a reader needs, and the most the model saw of that document.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64, UInt64
from scipy.sparse import csr_array

from .loops import cut_windows

OUTSIDE = -1
"""Stands for a token id beyond the ends of a segment."""


class Piece(NamedTuple):
    """The part of one token batch in a block, as arrays over its cells."""

    tokens: Int64[np.ndarray, " cells"]
    doc: Int64[np.ndarray, " cells"]
    offset: Int64[np.ndarray, " cells"]
    row: Int64[np.ndarray, " cells"]
    measured: Bool[np.ndarray, " cells"]
    """True where the cell was encoded; others hold no codes."""
    codes: Int64[np.ndarray, " cells"]
    """How many codes the cell has."""
    latent: Int64[np.ndarray, " nnz"]
    value: Float32[np.ndarray, " nnz"]


class Windows(NamedTuple):
    """E entries of a code with the W tokens around each."""

    value: Float32[np.ndarray, " E"]
    """Activation of the latent at the token."""
    doc: Int64[np.ndarray, " E"]
    offset: Int64[np.ndarray, " E"]
    """The token's place in its document."""
    tokens: Int32[np.ndarray, "E W"]
    """Token ids around it; -1 beyond the ends of its segment."""
    acts: Float32[np.ndarray, "E W"]
    """Activation of the same latent at each of them; nan at tokens that were not measured."""

    def take(self, rows: Int64[np.ndarray, " F"]) -> Windows:
        """Some of the entries, in the given order."""
        return Windows(*(column[rows] for column in self))


class Block:
    """Joined pieces. Entries are sorted by latent, then by cell.

    Args:
        pieces: consecutive token batches, whole rows each.
        n_latents: latents of the dictionary.
        context: tokens shown before and after an entry's own.
    """

    def __init__(self, pieces: Sequence[Piece], n_latents: int, context: tuple[int, int]) -> None:
        joined = Piece(*(np.concatenate(column) for column in zip(*pieces, strict=True)))
        self.tokens, self.doc, self.offset, self.row, self.measured = joined[:5]
        self.before, self.after = context
        indptr = np.append(0, np.cumsum(joined.codes))
        by_cell = csr_array((joined.value, joined.latent, indptr), shape=(len(joined.tokens), n_latents))
        by_latent = by_cell.tocsc()  # a counting sort: linear in the number of entries
        self.counts = np.diff(by_latent.indptr).astype(np.int64)
        self.latent = np.repeat(np.arange(n_latents), self.counts)
        self.cell = by_latent.indices.astype(np.int64)
        self.value = by_latent.data
        new = (np.diff(self.row) != 0) | (np.diff(self.doc) != 0)
        self.segment = np.append(0, np.cumsum(new))

    def __len__(self) -> int:
        return len(self.tokens)

    def strongest_in_segments(self) -> Int64[np.ndarray, " E"]:
        """For every latent and segment in which it fires, the entry with the largest value (the first, if tied)."""
        if not len(self.value):
            return np.zeros(0, np.int64)
        starts = starts_of_runs(self.latent, self.segment[self.cell])
        run = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(self.cell))))
        hits = np.flatnonzero(self.value == np.maximum.reduceat(self.value, starts)[run])
        return hits[starts_of_runs(run[hits])]

    def contexts(self) -> UInt64[np.ndarray, " cells"]:
        """A hash of every cell's window of tokens."""
        state = np.zeros(len(self), np.uint64)
        cells = np.arange(len(self))
        for shift in range(-self.before, self.after + 1):
            near = (cells + shift).clip(0, len(self) - 1)
            inside = (near == cells + shift) & (self.segment[near] == self.segment)
            token = np.where(inside, self.tokens[near], OUTSIDE)
            state = scramble(state ^ (token + 2).astype(np.uint64))
        return state

    def windows(self, entries: Int64[np.ndarray, " E"]) -> Windows:
        """The given entries with their windows."""
        shape = (len(entries), self.before + 1 + self.after)
        tokens, acts = np.full(shape, OUTSIDE, np.int32), np.full(shape, np.nan, np.float32)
        cut_windows(
            entries,
            self.latent,
            self.cell,
            self.value,
            self.tokens,
            self.segment,
            self.measured,
            self.before,
            tokens,
            acts,
        )
        cell = self.cell[entries]
        return Windows(self.value[entries], self.doc[cell], self.offset[cell], tokens, acts)


def starts_of_runs(*keys: np.ndarray) -> Int64[np.ndarray, " runs"]:
    """Where runs of equal keys begin."""
    if not len(keys[0]):
        return np.zeros(0, np.int64)
    new = np.ones(len(keys[0]), bool)
    new[1:] = np.logical_or.reduce([key[1:] != key[:-1] for key in keys])
    return np.flatnonzero(new)


def scramble(x: UInt64[np.ndarray, ...]) -> UInt64[np.ndarray, ...]:
    """A bijection of 64-bit integers that looks random (splitmix64, Steele et al. 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
