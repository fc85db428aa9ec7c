"""Rows of tokens out of tokenised documents, and batches out of rows.

A row ends at a `Position`: which document comes next and how many of its tokens are already used. From a
position the same rows follow again, so the state of a corpus is a few integers and no buffer is ever saved.

Inserted tokens (BOS at the start of a row, the separator between documents) carry document -1 and offset -1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from ..rng import generator

T = TypeVar("T")
NOWHERE = -1


class Position(NamedTuple):
    """Position of the next token of a corpus."""

    epoch: int = 0
    """Full passes over the source so far."""
    document: int = 0
    """Id of the document."""
    offset: int = 0
    """Tokens of that document already used."""
    read: int = 0
    """Documents of the source read in this epoch before that one, on both sides of the split."""


class TokenizedDocument(NamedTuple):
    """A document's tokens, and the position of its first one."""

    start: Position
    tokens: Int64[np.ndarray, " length"]


class Row(NamedTuple):
    """One row before padding."""

    tokens: Int64[np.ndarray, " length"]
    doc: Int64[np.ndarray, " length"]
    offset: Int64[np.ndarray, " length"]
    after: Position
    cut: int = 0
    """Tokens of the document left out by truncation."""


class TokenBatch(NamedTuple):
    """Tokens with what is needed to use them safely. R rows of T tokens."""

    tokens: Int64[Tensor, "R T"]
    attention: Bool[Tensor, "R T"]
    """False at padding, which is on the right."""
    usable: Bool[Tensor, "R T"]
    """True where an activation may be taken: a document's own token, by default not special, not first in its row."""
    doc: Int64[Tensor, "R T"]
    """The document's id in the source; -1 at inserted tokens and padding."""
    offset: Int64[Tensor, "R T"]
    """The token's place in its document; -1 at inserted tokens and padding."""


def packed_rows(
    documents: Iterable[TokenizedDocument],
    context: int,
    bos: int | None,
    separator: int | None,
    offset: int = 0,
) -> Iterator[Row]:
    """Documents end to end in rows of `context` tokens, a separator after each, BOS at the start of each row.

    Only the very last row may be shorter. A row whose first token is BOS anyway gets no second one.

    Args:
        documents: in the order of the source.
        context: length of a row, at least 2.
        bos: id to begin every row with, or None.
        separator: id to put after every document, or None.
        offset: tokens of the first document (its separator included) that earlier rows used.
    """
    cells = np.empty((3, context), dtype=np.int64)  # tokens, doc, offset
    filled = 0
    start = Position()
    for start, tokens in documents:
        body = np.stack([tokens, np.full(len(tokens), start.document), np.arange(len(tokens))])
        if separator is not None:
            body = np.concatenate([body, [[separator], [NOWHERE], [NOWHERE]]], axis=1)
        while offset < body.shape[1]:
            if filled == 0 and bos is not None and body[0, offset] != bos:
                cells[:, 0] = bos, NOWHERE, NOWHERE
                filled = 1
            piece = body[:, offset : offset + context - filled]
            cells[:, filled : filled + piece.shape[1]] = piece
            filled += piece.shape[1]
            offset += piece.shape[1]
            if filled == context:
                yield Row(*cells.copy(), after=start._replace(offset=offset))
                filled = 0
        offset = 0
    if filled > 1 or (filled and cells[1, 0] != NOWHERE):
        yield Row(*cells[:, :filled].copy(), after=Position(epoch=start.epoch + 1))


def document_rows(
    documents: Iterable[TokenizedDocument],
    context: int,
    bos: int | None,
    truncate: bool = False,
    offset: int = 0,
) -> Iterator[Row]:
    """One document per row, at most `context` tokens; the rest is cut off or continued in rows of its own.

    Args:
        documents: in the order of the source.
        context: longest row, at least 2.
        bos: id to begin every row with, or None.
        truncate: cut a long document off instead of splitting it.
        offset: tokens of the first document that earlier rows used.
    """
    for start, tokens in documents:
        while offset < len(tokens):
            room = context if bos is None or tokens[offset] == bos else context - 1
            piece = tokens[offset : offset + room]
            places = np.arange(offset, offset + len(piece))
            row = np.stack([piece, np.full(len(piece), start.document), places])
            if room < context:
                row = np.concatenate([[[bos], [NOWHERE], [NOWHERE]], row], axis=1)
            offset += len(piece)
            cut = len(tokens) - offset if truncate else 0
            yield Row(*row, after=start._replace(offset=offset + cut), cut=cut)
            offset += cut
        offset = 0


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` consecutive items; the last may be shorter."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def by_length(rows: Sequence[Row], size: int, seed: int, start: Position) -> list[list[Row]]:
    """Batches of `size` rows of similar length, in an order drawn from the seed and the window's start.

    The order is shuffled because short rows first would make every window a small curriculum.
    """
    ordered = sorted(rows, key=lambda row: len(row.tokens))
    batches = list(chunks(ordered, size))
    order = torch.randperm(len(batches), generator=generator(seed, "batches by length", *start))
    return [batches[i] for i in order.tolist()]


def collate(
    rows: Sequence[Row],
    padding: int,
    special: Int64[np.ndarray, " n"] | Sequence[int],
    width: int | None = None,
    *,
    keep_first: bool = False,
) -> tuple[TokenBatch, dict[str, int]]:
    """Pad rows to a batch and count every cell that is not usable, by the first reason that holds.

    Args:
        rows: at least one.
        padding: id for cells without a token.
        special: ids that are never usable.
        width: T; None takes the longest row.
        keep_first: a document's token in the first place of a row is usable.

    Returns:
        The batch, and tokens lost to `padding`, `special` (special and inserted tokens), `first` (a
        document's token in the first place of a row, where models keep an attention sink) and `truncated`.
    """
    shape = (3, len(rows), width or max(len(row.tokens) for row in rows))
    cells = np.full(shape, NOWHERE, dtype=np.int64)
    cells[0] = padding
    attention = np.zeros(shape[1:], dtype=bool)
    for number, row in enumerate(rows):
        length = len(row.tokens)
        cells[:, number, :length] = row.tokens, row.doc, row.offset
        attention[number, :length] = True
    tokens, doc, offset = cells
    content = attention & (offset != NOWHERE) & ~np.isin(tokens, special)
    usable = content.copy()
    usable[:, 0] &= keep_first
    dropped = {
        "padding": int((~attention).sum()),
        "special": int((attention & ~content).sum()),
        "first": int((content & ~usable).sum()),
        "truncated": sum(row.cut for row in rows),
    }
    return TokenBatch(*map(torch.from_numpy, (tokens, attention, usable, doc, offset))), dropped
