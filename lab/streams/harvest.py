"""From token batches to activation rows: run the model, keep the rows worth training on, count the rest.

Two filters. Unusable tokens (special, padding, position 0) never become rows. Rows whose norm exceeds a
multiple of the site's median norm are attention sinks; they would dominate every squared error. The median is
taken once, over the first rows of the stream, and travels with the stream's state so that evaluation can use
the same limit. With several sites a row is dropped everywhere when it is too long anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import InputError
from ..models.sites import Site

CALIBRATION_ROWS = 4096
NO_LIMIT = torch.finfo(torch.float32).max
Limits = Mapping[Site, float]


class Chunk(NamedTuple):
    """Rows from one read of a source, in corpus order."""

    acts: dict[Site, Float[Tensor, "n d"]]
    origin: Int[Tensor, "n 2"]
    """(document, offset) of every row."""
    state: Any
    """The source's state after this chunk: JSON values."""
    limits: Limits
    """The norm limit each site was filtered with."""
    tokens: int
    special: int
    """Tokens dropped as special, padding or position 0."""
    too_long: dict[Site, int]
    """Rows over the norm limit at each site. A row may be over at several."""


@runtime_checkable
class RowSource(Protocol):
    """Where a stream's rows come from: a model reading a corpus, or a store on disk."""

    @property
    def widths(self) -> dict[Site, int]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def chunks(self, state: Any, limits: Limits) -> Iterator[Chunk]:
        """Chunks from `state` (None: the beginning) on; `limits` is empty when not calibrated yet."""
        ...

    def rows_at_most(self, enough: int) -> int | None:
        """Count the rows of the whole source, up to `enough`; None where counting would cost a read of all of it."""
        ...

    def fingerprint(self) -> dict[str, Any]: ...


class _Rows(NamedTuple):
    acts: dict[Site, Tensor]
    norms: dict[Site, Tensor]
    origin: Tensor
    state: Any
    tokens: int


@dataclass(frozen=True)
class Harvest:
    """A `RowSource` that runs a `HookedModel` over a `Corpus`, one token batch per chunk.

    Raises:
        InputError: while iterating, an activation is not finite: names the site, the document and the offset.
    """

    model: Any
    corpus: Any
    sites: tuple[Site, ...]
    dtype: torch.dtype
    device: torch.device
    """Where chunks are handed over: the buffer's device."""
    max_norm_multiple: float | None = 10.0
    epochs: int | None = None

    @property
    def widths(self) -> dict[Site, int]:
        try:
            return {site: self.model.width(site) for site in self.sites}
        except InputError:  # a module of one's own tells its widths once it has run
            batch, _ = next(self.corpus.iterate())
            self.model.capture(batch.tokens[:1].to(self.model.device), self.sites)
            return {site: self.model.width(site) for site in self.sites}

    def fingerprint(self) -> dict[str, Any]:
        return {"model": self.model.fingerprint(), "corpus": self.corpus.fingerprint()}

    def rows_at_most(self, enough: int) -> int | None:
        """Count usable tokens, as `usable_tokens`; rows over the norm limit are counted too."""
        return usable_tokens(self.corpus, self.epochs, enough)

    def chunks(self, state: Any, limits: Limits) -> Iterator[Chunk]:
        batches = self.corpus.iterate(state, **({} if self.epochs is None else {"epochs": self.epochs}))
        if not limits:
            needed = 0 if self.max_norm_multiple is None else CALIBRATION_ROWS
            held: list[_Rows] = []
            while sum(len(rows.origin) for rows in held) < needed and (batch := next(batches, None)):
                held.append(self._capture(*batch))
            limits = {site: self._limit([rows.norms[site] for rows in held]) for site in self.sites}
            while held:
                yield self._filter(held.pop(0), limits)
        for batch in batches:
            yield self._filter(self._capture(*batch), limits)

    def _capture(self, batch: Any, state: Any) -> _Rows:
        mask = None if bool(batch.attention.all()) else batch.attention.to(self.model.device)
        with torch.no_grad():
            captured = self.model.capture(batch.tokens.to(self.model.device), self.sites, attention_mask=mask)
        keep = batch.usable.flatten().nonzero().squeeze(1)
        origin = torch.stack([batch.doc, batch.offset], dim=-1).flatten(0, 1).long()[keep].cpu()
        acts = {}
        for site in self.sites:
            rows = captured[site].detach()
            require_tokenwise(site, rows, batch)
            acts[site] = rows.flatten(0, 1).flatten(1).index_select(0, keep.to(rows.device)).to(self.dtype)
        norms = {site: torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float32) for site, rows in acts.items()}
        for site in self.sites:
            if not bool(norms[site].isfinite().all()):
                refuse_non_finite(self.model, site, acts[site], batch, keep)
        return _Rows(acts, norms, origin, state, batch.tokens.numel())

    def _limit(self, norms: Sequence[Tensor]) -> float:
        if self.max_norm_multiple is None or not sum(map(len, norms)):
            return NO_LIMIT
        return float(torch.cat(list(norms)).median()) * self.max_norm_multiple or NO_LIMIT

    def _filter(self, rows: _Rows, limits: Limits) -> Chunk:
        too_long = {site: (rows.norms[site] > limits[site]).cpu() for site in self.sites}
        keep = torch.stack(list(too_long.values())).any(0).logical_not().nonzero().squeeze(1)
        kept = {site: acts.index_select(0, keep.to(acts.device)) for site, acts in rows.acts.items()}
        return Chunk(
            acts={site: _hand_over(acts, self.device) for site, acts in kept.items()},
            origin=rows.origin[keep],
            state=rows.state,
            limits=limits,
            tokens=rows.tokens,
            special=rows.tokens - len(rows.origin),
            too_long={site: int(mask.sum()) for site, mask in too_long.items()},
        )


def usable_tokens(corpus: Any, epochs: int | None, enough: int) -> int | None:
    """Count the usable tokens of texts that lie in a file or in memory, over all passes, without a model.

    Args:
        corpus: a `Corpus`.
        epochs: passes over the corpus; None has no end.
        enough: tokens after which counting stops, as there are at least so many.

    Returns:
        The count; None where the corpus has no end, or is streamed, generated or not a `Corpus`.
    """
    if epochs is None or not getattr(getattr(corpus, "source", None), "at_hand", False):
        return None
    rows = 0
    for batch, _ in corpus.iterate(epochs=epochs):
        rows += int(batch.usable.sum())
        if rows >= enough:
            break
    return rows


def require_tokenwise(site: Site, acts: Tensor, batch: Any) -> None:
    """Refuse activations that are not one row a token.

    Raises:
        InputError: names the site and the shape.
    """
    if acts.shape[:2] != batch.tokens.shape:
        raise InputError(
            f"site {site} gives shape {tuple(acts.shape)}, not one row per token: "
            "stream a site of the residual, attention or MLP instead"
        )


def refuse_non_finite(model: Any, site: Site, rows: Tensor, batch: Any, keep: Tensor) -> None:
    """Name the token that brings nan in: the last one of the shortest beginning of its row that has any.

    Attention spreads nan over the whole row (0 * nan is nan), so the first row of activations that has some
    may belong to an earlier document.

    Args:
        rows: [n, d], those of the usable positions `keep`, in order.

    Raises:
        InputError: a value is not finite; names the document and the offset.
    """
    bad = rows.isfinite().all(-1).logical_not().nonzero()  # a norm may overflow where every value is finite
    if not len(bad):
        return
    row, column = divmod(int(keep[int(bad[0])]), batch.tokens.shape[1])
    finite, failing = 0, batch.tokens.shape[1]
    end = failing
    while failing - finite > 1:
        tokens, mask = (part[row : row + 1, :end].to(model.device) for part in (batch.tokens, batch.attention))
        captured = model.capture(tokens, [site], attention_mask=None if bool(mask.all()) else mask)
        if not bool(captured[site].isfinite().all()):
            failing = end
        elif end == failing:  # it does not fail alone
            break
        else:
            finite = end
        end = (finite + failing) // 2
    else:
        column = failing - 1 if int(batch.doc[row, failing - 1]) >= 0 else column
    document, offset = int(batch.doc[row, column]), int(batch.offset[row, column])
    raise InputError(
        f"the model gives nan or inf at {site} for document {document}, offset {offset}: leave that "
        "document out of the corpus, or load the model in float32 if it overflows in half precision"
    )


def _hand_over(rows: Tensor, device: torch.device) -> Tensor:
    """Move rows to the buffer's device and wait for them there and where they come from: any stream may read them."""
    if not rows.is_cuda:
        return rows.to(device)
    source = rows.device
    if device.type == "cpu":
        rows = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True).copy_(rows, non_blocking=True)
    else:
        rows = rows.to(device)
        rows.record_stream(torch.cuda.default_stream(rows.device))
    for place in dict.fromkeys([source, rows.device]):
        if place.type == "cuda":
            torch.cuda.current_stream(place).synchronize()
    return rows
