"""Windows of text and what every latent does in each: what explanations are made from and judged on.

Half of the documents explain, the other half is scored. A scored window is also left out where its very tokens stand in
the explaining half, and where they stand in an earlier scored window: corpora repeat themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
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


class _Part(NamedTuple):
    """The windows of one token batch."""

    tokens: Int64[Tensor, "W T"]
    doc: Int64[Tensor, " W"]
    codes: dict[str, tuple[Tensor, Tensor, Tensor]]
    """By dictionary: latent, cell (of W * T) and value of every activation above 0."""


class WindowCollector:
    """A consumer that cuts token batches into windows and encodes them, until there are enough; made for `read`.

    Rows are cut from their second token on. A window with an unusable token, two documents or a row above the norm
    limit is left out.

    Args:
        dictionaries: by name, all of one site; the first one's norm limit holds.
        tokens: whole batches are read until their windows hold so many tokens.
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
        self.sites, self.norm_limit = (place.site,), place.source.norm_limit
        self.dictionaries, self.limit, self.length, self.name = dict(dictionaries), tokens, length, name
        self._parts: list[_Part] = []

    @property
    def done(self) -> bool:
        """True once the windows hold the tokens asked for."""
        return self.progress[0] >= self.limit

    @property
    def progress(self) -> tuple[int, int | None]:
        """Tokens in windows, and tokens asked for."""
        return sum(part.tokens.numel() for part in self._parts), self.limit

    @torch.no_grad()
    def step(self, batch: Batch) -> None:
        """Cut and encode one token batch."""
        assert batch.source is not None, "served by a TokenStream"
        text, acts = batch.source.batch, batch.source.acts[self.sites[0]].float()
        whole = _whole(text, acts, self.length, self.norm_limit)
        cells = _cut(torch.arange(text.tokens.numel()).view_as(text.tokens), self.length)[whole]
        rows = acts.flatten(0, 1)[cells.flatten().to(acts.device)]
        codes = {}
        for name, dictionary in self.dictionaries.items():
            code = dictionary.encode(rows)
            latent, cell, value = (t.cpu() for t in (code.indices, code.rows, code.values))
            codes[name] = tuple(t[value > 0] for t in (latent, cell, value))
        if len(cells):
            self._parts.append(_Part(text.tokens.flatten()[cells], text.doc.flatten()[cells[:, 0]], codes))

    def merge(self, other: WindowCollector) -> None:
        """Append the windows of later batches until there are enough; exact.

        Raises:
            InputError: the other cuts windows of another length, or reads another site or other dictionaries.
        """
        if (self.sites, self.length, list(self.dictionaries)) != (other.sites, other.length, list(other.dictionaries)):
            raise InputError(f"{other!r} do not continue windows of {self!r}: merge equal measures")
        for part in other._parts:
            if not self.done:
                self._parts.append(part)

    def windows(self, tokenizer: Any) -> Windows:
        """Everything collected.

        Args:
            tokenizer: gives the text of every token (see `token_texts`).

        Raises:
            InputError: no window was whole.
        """
        count = self.progress[0]
        if not count:
            raise InputError(f"{self.name} has found no window of {self.length} usable tokens: give shorter windows")
        begins = np.cumsum([0, *(part.tokens.numel() for part in self._parts)])
        codes = {}
        for name, dictionary in self.dictionaries.items():
            columns = [(latent.numpy(), cell.numpy() + begin, value.numpy())
                       for begin, (latent, cell, value) in zip(begins, (part.codes[name] for part in self._parts),
                                                               strict=False)]  # fmt: skip
            codes[name] = _matrix(columns, (dictionary.n_latents, count))
        ids = torch.cat([part.tokens for part in self._parts]).numpy()
        doc = torch.cat([part.doc for part in self._parts]).numpy()
        return Windows(ids, doc, token_texts(tokenizer, np.unique(ids)), codes)

    def __repr__(self) -> str:
        return f"windows of {self.length} tokens at {self.sites[0]} with {', '.join(self.dictionaries)}"

    def metrics(self) -> dict[str, int | float]:
        """Tokens in windows so far."""
        return {"tokens": self.progress[0]}

    def state_dict(self) -> State:
        """Every window and its codes, batch by batch."""
        return {
            "parts": {
                str(number): {"tokens": part.tokens, "doc": part.doc,
                              "codes": {name: dict(zip(("latent", "cell", "value"), code, strict=True))
                                        for name, code in part.codes.items()}}
                for number, part in enumerate(self._parts)
            }
        }  # fmt: skip

    def load_state_dict(self, state: State) -> None:
        """Continue where `state_dict` was taken."""
        parts = sorted(state.get("parts", {}).items(), key=lambda item: int(item[0]))
        self._parts = [
            _Part(part["tokens"], part["doc"],
                  {name: (code["latent"], code["cell"], code["value"]) for name, code in part["codes"].items()})
            for _, part in parts
        ]  # fmt: skip

    def save(self, folder: Path) -> None:
        """Write nothing: windows are for whoever asked for them."""


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
        length: tokens a window; see `WindowCollector`.

    Raises:
        InputError: a dictionary is not of this model, no window is whole, or activations are not finite.
    """
    for dictionary in dictionaries.values():
        dictionary.check(model)
    collector = WindowCollector(dictionaries, tokens=tokens, length=length)
    read(TokenStream.reading(model, corpus, collector.sites), collector, description="windows", progress=progress)
    if not collector.progress[0]:
        raise InputError(
            f"no window of {length} usable tokens lies in one row of {corpus.config.context}: give shorter windows, "
            "or a corpus with longer documents"
        )
    return collector.windows(model.tokenizer or corpus.tokenizer)


def _matrix(parts: list[tuple[np.ndarray, ...]], shape: tuple[int, int]) -> csr_array:
    latent, cell, value = (np.concatenate(column) for column in zip(*parts, strict=True))
    matrix = coo_array((value, (latent, cell)), shape=shape).tocsr()
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
