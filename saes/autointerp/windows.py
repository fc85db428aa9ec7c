"""Windows of text and what every latent does in each: what explanations are made from and judged on.

Half of the documents explain, the other half is scored. A scored window is also left out where its very tokens stand in
the explaining half, and where they stand in an earlier scored window: corpora repeat themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from scipy.sparse import coo_array, csr_array
from sklearn.feature_extraction.text import TfidfTransformer
from torch import Tensor
from tqdm import tqdm

from ...lab.errors import InputError
from ...lab.models.hooked_model import HookedModel
from ...lab.text.corpus import Corpus
from ...lab.text.packing import TokenBatch
from ..dictionary import Dictionary
from ..features.feature_set import Example
from ..features.token_text import token_texts


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


@torch.no_grad()
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
        length: tokens a window. Rows are cut from their second token on; a window with an unusable token, two
            documents or a row above the norm limit is left out.

    Raises:
        InputError: a dictionary is not of this model, or no window is whole.
    """
    first = next(iter(dictionaries.values()))
    place = first.check(model)
    site, limit = place.site, place.source.norm_limit
    found: list[Tensor] = []
    docs: list[Tensor] = []
    parts: dict[str, list[tuple[np.ndarray, ...]]] = {name: [] for name in dictionaries}
    count = 0
    with tqdm(total=tokens, unit="tok", desc="windows", disable=not progress) as bar:
        for batch, _ in corpus.iterate(None, epochs=1):
            mask = None if bool(batch.attention.all()) else batch.attention
            acts = model.capture(batch.tokens, [site], attention_mask=mask)[site].flatten(2).float()
            whole = _whole(batch, acts, length, limit)
            cells = _cut(torch.arange(batch.tokens.numel()).view_as(batch.tokens), length)[whole]
            rows = acts.flatten(0, 1)[cells.flatten().to(acts.device)]
            for name, dictionary in dictionaries.items():
                code = dictionary.encode(rows)
                entries = (t.cpu().numpy() for t in (code.indices, code.rows, code.values))
                latent, cell, value = (t[code.values.cpu().numpy() > 0] for t in entries)
                parts[name].append((latent, cell + count, value))
            found.append(batch.tokens.flatten()[cells])
            docs.append(batch.doc.flatten()[cells[:, 0]])
            count += cells.numel()
            bar.update(cells.numel())
            if count >= tokens:
                break
    if not count:
        raise InputError(
            f"no window of {length} usable tokens lies in one row of {corpus.config.context}: give shorter windows, "
            "or a corpus with longer documents"
        )
    codes = {name: _matrix(part, (dictionaries[name].n_latents, count)) for name, part in parts.items()}
    ids = torch.cat(found).numpy()
    return Windows(
        ids, torch.cat(docs).numpy(), token_texts(model.tokenizer or corpus.tokenizer, np.unique(ids)), codes
    )


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
