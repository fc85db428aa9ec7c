"""Tokens of two tokenizers made comparable: a token is where its last character stands in the document.

Byte-level and word-piece tokenizers disagree about where a token begins (with the space before it or after), less
about where it ends. A place is (document, end), with end the number of characters up to and with the token's last;
two models have the same place where both have a token that ends there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from ....lab.errors import InputError
from ....lab.text.corpus import Corpus


class Spans:
    """Ends of tokens in characters, by document; a document is tokenised once.

    Args:
        corpus: plain text; what a chat template adds has no place in it.
        tokenizer: the corpus' own, as Hugging Face gives it, since it must tell offsets.

    Raises:
        InputError: the tokenizer tells no offsets, or the corpus goes through a chat template.
    """

    def __init__(self, corpus: Corpus, tokenizer: Any) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise InputError(
                f"{type(tokenizer).__name__} tells no character offsets: comparing tokenizers needs a fast one"
            )
        if corpus.config.chat:
            raise InputError("text that goes through a chat template has no character offsets: use chat=False")
        self.corpus, self.tokenizer = corpus, tokenizer
        self._ends: dict[int, np.ndarray] = {}

    def ends(self, document: int) -> Int64[np.ndarray, " tokens"]:
        """The end of every token of a document.

        Raises:
            InputError: no such document, or a conversation.
        """
        if document not in self._ends:
            read = next(self.corpus.source.read(document), None)
            if read is None or read.id != document or not isinstance(read.content, str):
                raise InputError(f"{self.corpus.source.name} has no document {document} of plain text")
            options = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
            offsets = self.tokenizer(read.content, **options)["offset_mapping"]
            self._ends[document] = np.array([end for _, end in offsets], dtype=np.int64)
        return self._ends[document]

    def places(self, origin: Int64[Tensor, "n 2"]) -> Int64[Tensor, "n 2"]:
        """(document, offset) of tokens as (document, end)."""
        pairs = origin.tolist()
        ends = [int(self.ends(document)[offset]) for document, offset in pairs]
        documents = [document for document, _ in pairs]
        return torch.tensor([documents, ends], dtype=torch.int64).T.reshape(-1, 2)


def shared_places(
    first: Int64[Tensor, "n 2"], second: Int64[Tensor, "m 2"]
) -> tuple[Int64[Tensor, " common"], Int64[Tensor, " common"]]:
    """Rows of both that have the same place, in the order of the first.

    Of several tokens that end at one place (pieces of one character) the last counts.
    """
    at = {place: row for row, place in enumerate(map(tuple, second.tolist()))}
    ours = {place: row for row, place in enumerate(map(tuple, first.tolist()))}
    pairs = sorted((row, at[place]) for place, row in ours.items() if place in at)
    rows = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
    return rows[:, 0], rows[:, 1]
