"""Sources with some documents left out: repeats by shared n-grams, or ids that something else needs for itself."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from typing import Any

from .documents import Document, Source


class Deduplicated:
    """A source without the documents that repeat an earlier one: any n words in a row of theirs were seen before.

    Greedy and in the order of the source (FAST, arXiv 2506.07691, with n = 20): of two documents that share an
    n-gram the first stays, and what only a dropped one holds counts as not seen. Conversations are compared
    by the words of each message, before any template adds words that all of them share. Reading from the middle
    first reads what comes before it, once. About 100 bytes of memory a word.
    """

    def __init__(self, source: Source, n: int) -> None:
        self.name, self._source, self._n = source.name, source, n
        self._seen: set[bytes] = set()
        self.at_hand = getattr(source, "at_hand", False)
        self._undecided = 0  # the smallest id that has not been looked at
        self.repeats: set[int] = set()
        """Ids of the documents left out so far."""

    def read(self, start: int = 0) -> Iterator[Document]:
        """The documents that repeat none, from `start` on."""
        for document in self._source.read(min(start, self._undecided)):
            if document.id >= self._undecided:
                self._decide(document)
            if document.id >= start and document.id not in self.repeats:
                yield document

    def _decide(self, document: Document) -> None:
        grams = ngrams(document, self._n)
        if self._seen.isdisjoint(grams):
            self._seen |= grams
        else:
            self.repeats.add(document.id)
        self._undecided = document.id + 1

    def fingerprint(self) -> dict[str, Any]:
        """Fingerprint of the source, and n."""
        found = self._source.fingerprint()
        return {**found, "hash": f"{found['hash']}/without repeated {self._n}-grams"}


def ngrams(document: Document, n: int) -> set[bytes]:
    """8-byte digests of every n words in a row, within one message where the document is a conversation."""
    content = document.content
    texts = [content] if isinstance(content, str) else [str(message["content"]) for message in content]
    found = set()
    for text in texts:
        words = text.split()
        for first in range(len(words) - n + 1):
            found.add(hashlib.blake2b(" ".join(words[first : first + n]).encode(), digest_size=8).digest())
    return found


class Without:
    """A source without the documents of some ids."""

    def __init__(self, source: Source, ids: Collection[int]) -> None:
        self.name, self._source, self._ids = source.name, source, frozenset(ids)
        self.at_hand = getattr(source, "at_hand", False)

    def read(self, start: int = 0) -> Iterator[Document]:
        """The other documents, from `start` on."""
        return (document for document in self._source.read(start) if document.id not in self._ids)

    def fingerprint(self) -> dict[str, Any]:
        """Fingerprint of the source, and a hash of the ids."""
        found = self._source.fingerprint()
        ids = hashlib.sha256(repr(sorted(self._ids)).encode()).hexdigest()[:16]
        return {**found, "hash": f"{found['hash']}/without {len(self._ids)} documents {ids}"}
