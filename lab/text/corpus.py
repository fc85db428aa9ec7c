"""`Corpus`: where tokens come from, each knowing its document, its place there and whether it may be used.

Choices:

- A corpus holds no state of an iteration. Every batch comes with a small JSON dict from which exactly the
  batches after it follow, so a prefetching thread may run ahead of its consumer.
- Tokens are dropped by mask, never by luck, and every drop is counted by its reason.
- Train and held-out are split by document, by a hash of the text alone.
- Nothing is random but the order of length-sorted batches, drawn from `seed`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from ..errors import InputError, unknown
from ..markup import facts_table
from .documents import Document, Source, content_key, is_heldout
from .filters import Deduplicated
from .packing import (
    Position,
    Row,
    TokenBatch,
    TokenizedDocument,
    by_length,
    chunks,
    collate,
    document_rows,
    packed_rows,
)
from .sources import open_source
from .tokenization import TextTokenizer

log = logging.getLogger(__name__)

LITTLE = 10_000
"""Tokens of a whole text below which it is said that the text is read again."""

State = dict[str, Any]
SPLITS, LONG = ("all", "train", "heldout"), ("split", "truncate")
FIRST_GROUP, GROUP, GROUP_CHARACTERS = 8, 64, 200_000  # documents tokenised in one call: few at first
REMEMBERED = 32  # documents kept tokenised for `window`


@dataclass(frozen=True)
class TextConfig:
    """Settings by which a corpus cuts documents into batches of tokens."""

    context: int = 128
    """Tokens in a row, BOS included."""
    pack: bool = True
    """Documents end to end in full rows; False gives every document rows of its own, padded on the right."""
    batch_rows: int = 16
    """Rows in a batch."""
    bos: bool | None = None
    """Begin every row with BOS: True, False, or None for whenever the tokenizer has one."""
    separator: bool = True
    """With pack=True, end every document with EOS (BOS where there is none)."""
    keep_special: bool = False
    """Use the activations of a document's own special tokens too, such as those of a chat template. Inserted tokens
    (BOS, separators) and padding are never used."""
    keep_first: bool = False
    """Use the first position of a row too, where models keep an attention sink. The stream drops sinks by their norm
    besides: max_norm_multiple=None keeps them."""
    split: Literal["all", "train", "heldout"] = "all"
    """Side of the split to read. The side of a document depends on its text only."""
    heldout: float = 0.05
    """Expected share of documents on the held-out side."""
    limit: int | None = None
    """Use only the first documents of the source, this many, counted before the split."""
    long: Literal["split", "truncate"] = "split"
    """With pack=False, documents longer than a row continue in further rows or are cut off."""
    document_tokens: int | None = None
    """Read only the first tokens of a document, this many, so that long documents do not crowd out the others."""
    chat: bool = False
    """Put plain text through the chat template as one user turn; conversations always go through it."""
    dedup: int | None = None
    """Leave out a document if any so many words in a row of it stood in an earlier one (FAST: 20). Comes before the
    chat template, the limit and the split."""
    skip_unreadable: bool = False
    """Leave out documents that cannot be read (a broken line, no text where text should be), and count them."""
    sort_by_length: bool = True
    """With pack=False, batch rows of similar length together, to waste less on padding."""
    lookahead: int = 16
    """Batches in the window within which rows are sorted by length."""
    seed: int = 0
    """Order of the batches within a length-sorted window."""

    def sequential(self) -> TextConfig:
        """For instruct models: one conversation a row, cut off at `context`, never packed; template tokens are used.

        How FAST reads (arXiv 2506.07691, section 3). Whether position 0 is used stays as it is.
        """
        return replace(self, pack=False, long="truncate", keep_special=True)

    def blocks(self) -> TextConfig:
        """Its counterpart: documents end to end with nothing inserted; their own special tokens are used.

        Over conversations this is BT(F) of arXiv 2506.07691, over pre-training text BT(P). The first position of a
        block holds a document's own token, so `keep_first` means the same as in `sequential`.
        """
        return replace(self, pack=True, bos=False, separator=False, keep_special=True)

    def settings(self) -> dict[str, Any]:
        """JSON values of all fields; `skip_unreadable` only where it is on, since runs of before know nothing of it."""
        values = asdict(self)
        return values if self.skip_unreadable else {k: v for k, v in values.items() if k != "skip_unreadable"}

    def __post_init__(self) -> None:
        optional = ("limit", "document_tokens", "dedup")
        for name in ("context", "batch_rows", "lookahead", *optional):
            least = 2 if name == "context" else 1
            value = getattr(self, name)
            possible = isinstance(value, int) and not isinstance(value, bool) and value >= least
            if not possible and not (value is None and name in optional):
                raise InputError(f"{name}={value!r} is not possible: give a whole number of at least {least}")
        if not 0 < self.heldout < 1:
            raise InputError(f"heldout={self.heldout!r} is not a share: give a number between 0 and 1, such as 0.05")
        if self.split not in SPLITS:
            raise unknown("split", self.split, SPLITS)
        if self.long not in LONG:
            raise unknown("treatment of long documents", self.long, LONG)


class Corpus:
    """Batches of tokens from a text source, restartable after every batch.

    Args:
        source: `docs:`, `chat:[MODEL]`, `text:PATH`, `jsonl:PATH[#field]`, `hf:NAME[:config][:split][#field]`, or
            an iterable of texts or conversations (see `monosem.lab.text.sources`).
        tokenizer: a Hugging Face tokenizer, or an object like one.
        config: how to cut rows; its defaults if None.
        **fields: fields of `TextConfig` to set, over `config`.

    Raises:
        InputError: the source, the tokenizer or a field cannot be used.

    >>> corpus = Corpus("docs:", tokenizer, context=256, split="train")
    >>> for batch, state in corpus.iterate(epochs=1):
    ...     batch.tokens, batch.usable  # [R, T], and `state` continues after this batch
    """

    def __init__(
        self,
        source: str | Source | Iterable[object],
        tokenizer: Any,
        config: TextConfig | None = None,
        **fields: Any,
    ) -> None:
        for name in fields:
            if name not in (allowed := TextConfig.__dataclass_fields__):
                raise unknown("text option", name, allowed)
        self.config = replace(config or TextConfig(), **fields)
        found = open_source(source)
        self._unreadable: dict[int, str] = {}
        if self.config.skip_unreadable:
            if not hasattr(found, "unreadable"):
                raise InputError(f"skip_unreadable is for documents in files or in memory, not for {found.name}")
            found.unreadable = self._unreadable  # pyright: ignore[reportAttributeAccessIssue]
        self.source = found if self.config.dedup is None else Deduplicated(found, self.config.dedup)
        self.tokenizer = TextTokenizer(tokenizer)
        if self.config.bos and self.tokenizer.bos is None:
            raise InputError(f"bos=True, but {self.tokenizer.label} has no BOS token: use bos=None or bos=False")
        self._bos = None if self.config.bos is False else self.tokenizer.bos
        self.dropped: dict[str, int] = {}
        self._recent: dict[int, np.ndarray] = {}

    def __iter__(self) -> Iterator[TokenBatch]:
        return self.batches()

    def batches(self, state: State | None = None, *, epochs: int | None = 1) -> Iterator[TokenBatch]:
        """The batches alone; see `iterate`."""
        return (batch for batch, _ in self.iterate(state, epochs=epochs))

    def iterate(self, state: State | None = None, *, epochs: int | None = None) -> Iterator[tuple[TokenBatch, State]]:
        """Batches, each with the state after it.

        Args:
            state: continue after the batch that came with this state; None starts at the first document.
            epochs: passes over the source, those before `state` included; None goes round forever.

        Yields:
            A batch, and a dict of JSON values: the position, and `dropped`, tokens left out so far by reason
            (`padding`, `special`, `first`, `truncated`). The attribute `dropped` holds the latest of these.

        Raises:
            InputError: `state` comes from another corpus, or no document has a token.
        """
        state = self._checked(state) if state else self._state(Position(), 0, {})
        if epochs is not None and epochs < 1:
            raise InputError(f"epochs={epochs} is not possible: give at least 1, or None for no end")
        return self._iterate(state, epochs)

    def _iterate(self, state: State, epochs: int | None) -> Iterator[tuple[TokenBatch, State]]:
        config = self.config
        start = Position(*(state[name] for name in Position._fields))
        emitted, dropped = state["block"], dict(state["dropped"])
        sort = config.sort_by_length and not config.pack
        for rows in chunks(self._rows(start, epochs), config.batch_rows * (config.lookahead if sort else 1)):
            block = by_length(rows, config.batch_rows, config.seed, start) if sort else [rows]
            for number in range(emitted, len(block)):
                batch, lost = collate(
                    block[number],
                    self.tokenizer.padding,
                    () if config.keep_special else self.tokenizer.special_ids,
                    config.context if config.pack else None,
                    keep_first=config.keep_first,
                )
                dropped = {reason: dropped.get(reason, 0) + count for reason, count in lost.items()}
                self.dropped = dropped
                done = number + 1 == len(block)
                yield (
                    batch,
                    self._state(rows[-1].after if done else start, 0 if done else number + 1, dropped),
                )
            start, emitted = rows[-1].after, 0

    def _rows(self, start: Position, epochs: int | None) -> Iterator[Row]:
        documents, config = self._tokenized(start, epochs), self.config
        if config.pack:
            separator = self.tokenizer.separator if config.separator else None
            return packed_rows(documents, config.context, self._bos, separator, start.offset)
        return document_rows(documents, config.context, self._bos, config.long == "truncate", start.offset)

    def _tokenized(self, start: Position, epochs: int | None) -> Iterator[TokenizedDocument]:
        """Documents with at least one token from `start` on, one epoch after another."""
        position = start
        while epochs is None or position.epoch < epochs:
            empty, whole = position.document == 0, position == Position()
            documents = tokens_read = 0
            for group in self._groups(position):
                tokenized = self.tokenizer.encode([text for _, text in group])
                for (begins, _), tokens in zip(group, tokenized, strict=True):
                    if len(tokens):
                        empty = False
                        documents, tokens_read = documents + 1, tokens_read + len(tokens)
                        yield TokenizedDocument(begins, tokens[: self.config.document_tokens])
            if empty:
                raise self._empty()
            if whole and epochs is None and tokens_read < LITTLE:
                log.warning(
                    "%s ends after %d documents with %d tokens and is read again: what is trained learns so little text"
                    " by heart, so give more of it", self.source.name, documents, tokens_read,
                )  # fmt: skip
            position = Position(epoch=position.epoch + 1)

    def _groups(self, start: Position) -> Iterator[list[tuple[Position, str]]]:
        """Texts of the chosen side from `start` to the end of the epoch, in groups to tokenise at once."""
        group, characters, size = [], 0, FIRST_GROUP
        limit = self.config.limit
        left = None if limit is None else max(0, limit - start.read)
        for read, document in enumerate(itertools.islice(self.source.read(start.document), left), start.read):
            if not self._chosen(document):
                continue
            text = self._text(document)
            group.append((Position(start.epoch, document.id, 0, read), text))
            characters += len(text)
            if len(group) == size or characters > GROUP_CHARACTERS:
                yield group
                group, characters, size = [], 0, min(2 * size, GROUP)
        if group:
            yield group

    def _chosen(self, document: Document) -> bool:
        side = self.config.split
        return side == "all" or is_heldout(document.content, self.config.heldout) == (side == "heldout")

    def _text(self, document: Document) -> str:
        content = document.content
        if isinstance(content, str):
            if not self.config.chat:
                return content
            content = [{"role": "user", "content": content}]
        return self.tokenizer.render(content, document.name)

    def _empty(self) -> InputError:
        filled = (document for document in self.source.read() if content_key(document.content))
        if self.config.split == "all" or next(filled, None) is None:
            return InputError(f"{self.source.name} has no document with a token: give a source with text")
        return InputError(
            f"{self.source.name} has no document on its {self.config.split} side: give more documents or "
            f"another share than heldout={self.config.heldout}"
        )

    def _state(self, position: Position, block: int, dropped: dict[str, int]) -> State:
        return {"corpus": self._identity, **position._asdict(), "block": block, "dropped": dropped}

    def _checked(self, state: State) -> State:
        expected = self._state(Position(), 0, {})
        if not isinstance(state, dict) or set(state) != set(expected):
            raise InputError("this is no state of a corpus: give the dict that `iterate` returned with a batch")
        if state["corpus"] != self._identity:
            raise InputError(
                f"this state belongs to another corpus than {self!r}: use the same source, tokenizer and settings"
            )
        return state

    @cached_property
    def _identity(self) -> str:
        """A short hash of what decides the batches, apart from the documents' content."""
        parts = [self.source.name, self.config.settings(), self.tokenizer.fingerprint()["hash"]]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def check(self) -> None:
        """Read every document once, if they lie in a file or in memory, and of every order of roles one conversation.

        The fingerprint begins with this check, so that training on the corpus does not begin with a bad document
        ahead. Documents that are streamed or generated are checked when they are read.

        Raises:
            InputError: a document that cannot be read, or a conversation that the chat template refuses; names it.
        """
        if not getattr(self.source, "at_hand", False):
            return
        known: set[tuple[str, ...]] = set()
        for document in itertools.islice(self.source.read(), self.config.limit):
            content = document.content
            roles = tuple(message["role"] for message in content) if not isinstance(content, str) else ("user",)
            if roles not in known and (self.config.chat or not isinstance(content, str)):
                self._text(document)
                known.add(roles)
        if self._unreadable:
            first = next(iter(self._unreadable.values()))
            log.warning("%d documents of %s cannot be read and are left out. The first: %s",
                        len(self._unreadable), self.source.name, first)  # fmt: skip

    @cached_property
    def _source_fingerprint(self) -> dict[str, Any]:
        self.check()
        return self.source.fingerprint()

    @property
    def content_hash(self) -> str:
        """A hash over the source's identity and its documents, whatever the settings and the tokenizer."""
        return self._source_fingerprint["hash"]

    def fingerprint(self) -> dict[str, Any]:
        """JSON values for a run's manifest: source and its hash, settings, tokenizer and its hash."""
        known = self._source_fingerprint
        return {
            "source": self.source.name,
            **known,
            **({"unreadable": self.unreadable} if self.config.skip_unreadable else {}),
            "settings": self.config.settings(),
            "tokenizer": self.tokenizer.fingerprint(),
        }

    @property
    def unreadable(self) -> int:
        """Documents left out so far because they cannot be read (`skip_unreadable`)."""
        return len(self._unreadable)

    @property
    def repeats(self) -> int:
        """Documents left out so far because they repeat an earlier one (`dedup`)."""
        return len(self.source.repeats) if isinstance(self.source, Deduplicated) else 0

    def tokens(self, doc: int) -> np.ndarray:
        """All token ids of a document `[length]`, whole and without inserted tokens; the last few are kept.

        Raises:
            InputError: the source has no document with this id.
        """
        if doc not in self._recent:
            document = next(self.source.read(doc), None) if doc >= 0 else None
            if document is None or document.id != doc:
                raise InputError(f"{self.source.name} has no document {doc}: take ids from a batch's `doc`, not -1")
            while len(self._recent) >= REMEMBERED:
                self._recent.pop(next(iter(self._recent)))
            self._recent[doc] = self.tokenizer.encode([self._text(document)])[0]
        return self._recent[doc]

    def window(self, doc: int, offset: int, before: int = 20, after: int = 8) -> tuple[list[int], int]:
        """The token at `offset` of a document with its neighbours there.

        Returns:
            Token ids, at most `before + 1 + after`, fewer at the document's ends; and the index of the token
            asked for among them.

        Raises:
            InputError: no such document, or `offset` is outside it.
        """
        tokens = self.tokens(doc)
        if not 0 <= offset < len(tokens):
            raise InputError(f"offset {offset} is outside document {doc}, which has {len(tokens)} tokens (from 0)")
        first = max(0, offset - before)
        return tokens[first : offset + after + 1].tolist(), offset - first

    def text(self, doc: int, start: int = 0, end: int | None = None) -> str:
        """The text of tokens `start` to `end` (exclusive) of a document."""
        return self.decode(self.tokens(doc)[start:end].tolist())

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of token ids."""
        return self.tokenizer.decode(tokens)

    def strings(self, tokens: Sequence[int]) -> list[str]:
        """The text that each token adds to its row, for showing tokens one by one."""
        return self.tokenizer.strings(tokens)

    def __repr__(self) -> str:
        config = self.config
        form = "packed" if config.pack else "one document per row"
        return f"Corpus({self.source.name!r}, {form}, context={config.context}, split={config.split!r})"

    def _repr_html_(self) -> str:
        facts = {"source": self.source.name, "tokenizer": self.tokenizer.label, **self.config.settings()}
        if self.repeats:
            facts["repeats left out so far"] = self.repeats
        if self.unreadable:
            facts["unreadable, left out so far"] = self.unreadable
        if self.dropped:
            facts["dropped so far"] = ", ".join(f"{count:,} {reason}" for reason, count in self.dropped.items())
        return facts_table(facts, "Corpus")
