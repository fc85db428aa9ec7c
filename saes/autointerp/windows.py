"""Windows of text and what every latent does in each: what explanations are made from and judged on.

Half of the documents explain, the other half is scored. A scored window is also left out where its very tokens stand in
the explaining half, and where they stand in an earlier scored window: corpora repeat themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from scipy.sparse import coo_array, csr_array
from sklearn.feature_extraction.text import TfidfTransformer
from torch import Tensor

from ...lab.errors import InputError
from ...lab.models.hooked_model import HookedModel
from ...lab.runs.read import read
from ...lab.storage import State
from ...lab.streams.activation_stream import Batch
from ...lab.streams.token_stream import TokenStream
from ...lab.text.corpus import Corpus
from ...lab.text.packing import TokenBatch
from ...lab.text.token_text import token_texts
from ..dictionary import Dictionary
from ..features.feature_set import Example
from ..sparse_code import SparseCode


class Window(NamedTuple):
    """A stretch of one document, and what one latent does in it."""

    strings: tuple[str, ...]
    """The text of every token."""
    acts: tuple[float, ...]
    """The latent's activation at every token; 0 where it is silent."""
    doc: int

    @property
    def text(self) -> str:
        """The window as one string."""
        return "".join(self.strings)

    @classmethod
    def of_example(cls, example: Example) -> Window:
        """An example of a `Features` as a window."""
        return cls(example.strings, tuple(act or 0.0 for act in example.acts), example.doc)


@dataclass(frozen=True)
class Windows:
    """W windows of T tokens, and the codes of one or more dictionaries in them."""

    tokens: Int64[np.ndarray, "W T"]
    doc: Int64[np.ndarray, " W"]
    texts: dict[int, str]
    """Text of every token id."""
    codes: dict[str, csr_array]
    """By dictionary: activations above 0, [n_latents, W * T]."""

    def __len__(self) -> int:
        return len(self.tokens)

    def peaks(self, name: str, latent: int) -> Float32[np.ndarray, " W"]:
        """The largest activation of a latent in every window."""
        return self._acts(name, latent).max(1)

    def read(self, name: str, latent: int, chosen: Int64[np.ndarray, " n"]) -> list[Window]:
        """Some windows, with what the latent does there."""
        acts = self._acts(name, latent)
        return [
            Window(tuple(self.texts[token] for token in self.tokens[w].tolist()), tuple(acts[w].tolist()),
                   int(self.doc[w]))
            for w in chosen.tolist()
        ]  # fmt: skip

    def firing(self, name: str, among: Bool[np.ndarray, " W"]) -> Int64[np.ndarray, " n_latents"]:
        """In how many of some windows every latent fires."""
        codes, length = self.codes[name], self.tokens.shape[1]
        latent = np.repeat(np.arange(len(codes.indptr) - 1), np.diff(codes.indptr))
        window = codes.indices // length
        pairs = np.unique(latent[among[window]] * len(self) + window[among[window]])
        return np.bincount(pairs // len(self), minlength=len(codes.indptr) - 1)

    def halves(self, rng: np.random.Generator) -> tuple[Bool[np.ndarray, " W"], Bool[np.ndarray, " W"]]:
        """Windows to explain from and windows to score: no document and no text is on both sides."""
        documents = rng.permutation(np.unique(self.doc))
        explaining = np.isin(self.doc, documents[: len(documents) // 2])
        seen = {row.tobytes() for row in self.tokens[explaining]}
        scored = np.zeros(len(self), bool)
        for w in np.flatnonzero(~explaining):
            key = self.tokens[w].tobytes()
            scored[w] = key not in seen
            seen.add(key)
        return explaining, scored

    @cached_property
    def tfidf(self) -> csr_array:
        """Unit rows [W, used]: tf-idf of the tokens that occur."""
        used, column = np.unique(self.tokens, return_inverse=True)
        row = np.repeat(np.arange(len(self)), self.tokens.shape[1])
        counts = coo_array((np.ones(row.size), (row, column.ravel())), shape=(len(self), len(used)))
        return TfidfTransformer().fit_transform(counts.tocsr())

    def _acts(self, name: str, latent: int) -> Float32[np.ndarray, "W T"]:
        codes = self.codes[name]
        first, end = codes.indptr[latent : latent + 2].tolist()
        acts = np.zeros(self.tokens.size, np.float32)
        acts[codes.indices[first:end]] = codes.data[first:end]
        return acts.reshape(self.tokens.shape)


def read_windows(
    model: HookedModel,
    corpus: Corpus,
    dictionaries: Mapping[str, Dictionary],
    *,
    tokens: int,
    length: int,
    progress: bool = False,
) -> Windows:
    """Cut a corpus into windows and encode them with every dictionary, in one pass over the model.

    Args:
        dictionaries: by name, all of one site; the first one's norm limit holds.
        tokens: how many tokens to read; fewer if the corpus ends.
        length: tokens a window.

    Raises:
        InputError: a dictionary is not of this model, or no window is whole.
    """
    for dictionary in dictionaries.values():
        dictionary.check(model)
    collector = WindowCollector(dictionaries, tokens=tokens, length=length)
    read(TokenStream.reading(model, corpus, collector.sites), collector, description="windows", progress=progress)
    if not collector.cells:
        raise InputError(
            f"no window of {length} usable tokens lies in one row of {corpus.config.context}: give shorter windows, "
            "or a corpus with longer documents"
        )
    return collector.windows(model.tokenizer or corpus.tokenizer)


class WindowCollector:
    """Cuts token batches into windows and encodes the whole ones: a consumer of a `TokenStream`.

    Rows are cut from their second token on. A window with an unusable token, two documents or a row above the norm
    limit is left out.

    Args:
        dictionaries: by name, all of one site; the first one's norm limit holds.
        tokens: read this many tokens, up to the end of the batch, then be done.
        length: tokens a window.

    Raises:
        InputError: `tokens` or `length` is below 1.
    """

    kind = "measures"
    needs_text = True

    def __init__(
        self, dictionaries: Mapping[str, Dictionary], *, tokens: int, length: int, name: str = "windows"
    ) -> None:
        if min(tokens, length) < 1:
            raise InputError(f"windows of {length} tokens, {tokens} tokens in all: both must be at least 1")
        place = next(iter(dictionaries.values())).place
        self.sites, self._limit = (place.site,), place.source.norm_limit
        self.dictionaries, self.length, self.limit, self.name = dict(dictionaries), length, tokens, name
        self.cells = 0
        """Tokens of whole windows so far."""
        self._tokens, self._docs = [torch.empty(0, length, dtype=torch.int64)], [torch.empty(0, dtype=torch.int64)]
        self._codes: dict[str, list[Entries]] = {name: [] for name in dictionaries}

    @property
    def done(self) -> bool:
        """True once the tokens asked for have been read."""
        return self.cells >= self.limit

    @property
    def progress(self) -> tuple[int, int | None]:
        """Tokens read, and tokens asked for."""
        return self.cells, self.limit

    @torch.no_grad()
    def step(self, batch: Batch) -> None:
        """Encode the whole windows of one token batch."""
        assert batch.source is not None, "served by a TokenStream"
        text = batch.source.batch
        acts = batch.source.acts[self.sites[0]].float()
        whole = _whole(text, acts, self.length, self._limit)
        cells = _cut(torch.arange(text.tokens.numel()).view_as(text.tokens), self.length)[whole]
        rows = acts.flatten(0, 1)[cells.flatten().to(acts.device)]
        codes = {name: Entries.of(dictionary.encode(rows)) for name, dictionary in self.dictionaries.items()}
        self._append(text.tokens.flatten()[cells], text.doc.flatten()[cells[:, 0]], codes)

    def _append(self, tokens: Tensor, docs: Tensor, codes: Mapping[str, Entries]) -> None:
        for name, entries in codes.items():
            self._codes[name].append(entries._replace(cell=entries.cell + self.cells))
        self._tokens.append(tokens)
        self._docs.append(docs)
        self.cells += tokens.numel()

    def merge(self, other: WindowCollector) -> None:
        """Append the windows of a later stretch of the corpus; exact.

        Raises:
            InputError: the other has windows of another length, site or other dictionaries.
        """
        mine, theirs = ((w.sites, w.length, list(w.dictionaries)) for w in (self, other))
        if mine != theirs:
            raise InputError(f"windows of {theirs} do not continue windows of {mine}")
        self._append(torch.cat(other._tokens), torch.cat(other._docs), other._joined())

    def _joined(self) -> dict[str, Entries]:
        return {name: Entries.join(parts) for name, parts in self._codes.items()}

    def windows(self, tokenizer: Any) -> Windows:
        """The windows, with the text of every token."""
        ids = torch.cat(self._tokens).numpy()
        codes = {
            name: entries.matrix((self.dictionaries[name].n_latents, self.cells))
            for name, entries in self._joined().items()
        }
        return Windows(ids, torch.cat(self._docs).numpy(), token_texts(tokenizer, np.unique(ids)), codes)

    def metrics(self) -> dict[str, int | float]:
        """Tokens read so far."""
        return {"tokens": self.cells}

    def state_dict(self) -> State:
        """Tokens, documents and codes of the windows."""
        codes = {name: entries._asdict() for name, entries in self._joined().items()}
        return {"cells": self.cells, "tokens": torch.cat(self._tokens), "docs": torch.cat(self._docs), "codes": codes}

    def load_state_dict(self, state: State) -> None:
        """Continue where `state_dict` was taken."""
        self.cells, self._tokens, self._docs = state["cells"], [state["tokens"]], [state["docs"]]
        self._codes = {name: [Entries(**entries)] for name, entries in state["codes"].items()}

    def save(self, folder: Path) -> None:
        """Write nothing: windows are for whoever asked for them."""


class Entries(NamedTuple):
    """Codes above 0 as entries of a matrix [n_latents, cells]."""

    latent: Int64[Tensor, " nnz"]
    cell: Int64[Tensor, " nnz"]
    value: Float32[Tensor, " nnz"]

    @classmethod
    def of(cls, code: SparseCode) -> Entries:
        """The entries above 0, on the CPU."""
        active = code.values > 0
        columns = (code.indices.long(), code.rows.long(), code.values)
        latent, cell, value = (column[active].cpu() for column in columns)
        return cls(latent, cell, value)

    @classmethod
    def join(cls, parts: Sequence[Entries]) -> Entries:
        """Entries of several parts, one after another."""
        if not parts:
            return cls(torch.empty(0).long(), torch.empty(0).long(), torch.empty(0))
        return cls(*(torch.cat(columns) for columns in zip(*parts, strict=True)))

    def matrix(self, shape: tuple[int, int]) -> csr_array:
        """The matrix, its columns in order."""
        matrix = coo_array((self.value.numpy(), (self.latent.numpy(), self.cell.numpy())), shape=shape).tocsr()
        matrix.sort_indices()
        return matrix


def _cut(cells: Tensor, length: int) -> Tensor:
    """Windows [rows * per_row, length] of a table of cells, without the first column and what does not fill one."""
    n = (cells.shape[1] - 1) // length
    return cells[:, 1 : 1 + n * length].reshape(-1, length)


def _whole(batch: TokenBatch, acts: Tensor, length: int, limit: float | None) -> Tensor:
    """Which windows are usable throughout, of one document and within the norm limit."""
    usable = batch.usable
    if limit is not None:
        usable = usable & (acts.norm(dim=2) <= limit).cpu()
    doc = _cut(batch.doc, length)
    return _cut(usable, length).all(1) & (doc == doc[:, :1]).all(1)
