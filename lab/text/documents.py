"""`Source` yields `Document`s, each with a stable ordinal from which reading can start."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

from ..errors import InputError

Conversation = list[dict[str, Any]]
"""Chat messages, each with at least `role` and `content`."""


class Document(NamedTuple):
    """One document of a source."""

    id: int
    """Ordinal in the source: stable, increasing, not necessarily without gaps."""
    content: str | Conversation
    """Text, or a conversation for the tokenizer's chat template."""
    name: str
    """Location of the document, for error messages and cards: a path, or a path and a row."""


@runtime_checkable
class Source(Protocol):
    """An ordered collection of documents that can be read from any ordinal, again and again."""

    name: str
    """The text form, such as `docs:` or `jsonl:rows.jsonl#body`."""

    def read(self, start: int = 0) -> Iterator[Document]:
        """The documents whose id is at least `start`, in order, without the cost of those before."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """JSON values that change when the documents change; `hash` is one of the keys."""
        ...


def content_of(row: object, field: str | None, where: str) -> str | Conversation:
    """The text or conversation in one row of a data set.

    Args:
        row: text, a list of messages, or a mapping that holds one of them.
        field: the key in a mapping; None takes `messages` if there is one and `text` if not.
        where: names the row in errors.

    Raises:
        InputError: the field is missing (names those there are) or holds something else.
    """
    if isinstance(row, Mapping):
        key = field or ("messages" if "messages" in row else "text")
        if key not in row:
            there = ", ".join(map(repr, row)) or "none"
            raise InputError(f"{where} has no field {key!r}: the fields there are {there}; choose one after '#'")
        row, where = row[key], f"field {key!r} of {where}"
    if isinstance(row, str):
        try:
            row.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{where} holds half a character (a lone surrogate) at {error.start}: repair it") from None
        return row
    if isinstance(row, list | tuple):
        return _conversation(list(row), where)
    raise InputError(f"{where} holds {type(row).__name__}, not text or a list of messages")


def _conversation(messages: list[Any], where: str) -> Conversation:
    if not messages:
        raise InputError(f"{where} is an empty conversation: give at least one message")
    for number, message in enumerate(messages):
        if not (isinstance(message, Mapping) and {"role", "content"} <= set(message)):
            raise InputError(f"message {number} of {where} is not a mapping with 'role' and 'content': {message!r:.80}")
    return [dict(message) for message in messages]


def content_key(content: str | Conversation) -> str:
    """The text that identifies a content: conversations as canonical JSON, outer white space aside."""
    return content.strip() if isinstance(content, str) else json.dumps(content, sort_keys=True, default=str)


def is_heldout(content: str | Conversation, share: float) -> bool:
    """True if a document belongs to the held-out side: decided by a hash of its text and by nothing else.

    The same text is on the same side in every source, order and run, so copies of a held-out document cannot
    leak into training. `share` is the expected fraction of documents held out; a larger share keeps
    everything that a smaller one held out.
    """
    digest = hashlib.blake2b(content_key(content).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") < share * 2**64
