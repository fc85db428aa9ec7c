"""`Source` yields `Document`s, each with a stable ordinal from which reading can start.

Every source takes its content through `content_of`, so that texts and conversations are checked alike everywhere: a
text is a whole string, and the content of a message is one text, its text parts joined.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

from ..errors import InputError
from ..sequences import is_missing, require_whole

Conversation = list[dict[str, Any]]
"""Chat messages, each with at least `role` and `content`, both text."""
TEXT_PARTS = ("text", "input_text", "output_text")
"""Types of the parts of a message that hold text."""


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
    # at_hand: bool, True where a source has it and all documents lie in a file or in memory (see `Corpus.check`)

    def read(self, start: int = 0) -> Iterator[Document]:
        """The documents whose id is at least `start`, in order, without the cost of those before."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """JSON values that change when the documents change; `hash` is one of the keys."""
        ...


def readable(number: int, make: Callable[[], Document | None], unreadable: dict[int, str] | None) -> Document | None:
    """A document; None where it cannot be read and such documents are left out, which is noted.

    Args:
        number: of the document.
        make: reads it.
        unreadable: reasons by number; None refuses a document that cannot be read.

    Raises:
        InputError: as `make`, with the option that leaves such documents out.
    """
    try:
        return make()
    except InputError as error:
        if unreadable is None:
            error.add_note("skip_unreadable=True (--text.skip-unreadable) leaves such documents out")
            raise
        unreadable[number] = str(error)
        return None


def content_of(row: object, field: str | None, where: str) -> str | Conversation:
    """The text or conversation in one row of a data set; text parts of a message are joined.

    Args:
        row: text, a list of messages, or a mapping that holds one of them.
        field: the key in a mapping; None takes `messages` if there is one and `text` if not.
        where: names the row in errors.

    Raises:
        InputError: the field is missing (names those there are) or holds something else; a text with half a character;
            a message without a role, without content, or with a part that is no text.
    """
    if isinstance(row, Mapping):
        key = field or ("messages" if "messages" in row else "text")
        row, where = field_of(row, key, where), f"field {key!r} of {where}"
    if isinstance(row, str):
        return require_whole(row, where)
    if hasattr(row, "tolist"):  # conversations in the cells of a table that was read from parquet
        row = row.tolist()  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(row, list | tuple):
        return _conversation(list(row), where)
    if is_missing(row):
        raise InputError(f"{where} is missing ({row!r}): leave that document out, or give it text")
    raise InputError(f"{where} holds {type(row).__name__}, not text or a list of messages")


def field_of(row: object, field: str, where: str, hint: str = "choose one after '#'") -> Any:
    """The value of a field in a record.

    Args:
        where: names the record in errors.
        hint: names the way to choose another field.

    Raises:
        InputError: the record has no fields, or not this one (names those there are).
    """
    if not isinstance(row, Mapping):
        raise InputError(f"{where} is {type(row).__name__} {row!r:.40} and no object with fields: write one a text")
    if field not in row:
        there = ", ".join(map(repr, row)) or "none"
        raise InputError(f"{where} has no field {field!r}: the fields there are {there}; {hint}")
    return row[field]


def _conversation(messages: list[Any], where: str) -> Conversation:
    if not messages:
        raise InputError(f"{where} is an empty conversation: give at least one message")
    for number, message in enumerate(messages):
        if not (isinstance(message, Mapping) and {"role", "content"} <= set(message)):
            raise InputError(f"message {number} of {where} is not a mapping with 'role' and 'content': {message!r:.80}")
    return [_message(message, f"message {number} of {where}") for number, message in enumerate(messages)]


def _message(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A message with one text as its content; without any, where it calls tools instead."""
    role, content = message["role"], message["content"]
    if not isinstance(role, str) or not role.strip():
        raise InputError(f"{where} has the role {role!r:.40}: give text, such as 'user'")
    if hasattr(content, "tolist"):
        content = content.tolist()
    if is_missing(content) and message.get("tool_calls"):
        content = ""
    elif isinstance(content, list | tuple):
        content = "".join(_part(part, f"part {number} of {where}") for number, part in enumerate(content))
    elif not isinstance(content, str):
        held = "no content" if is_missing(content) else f"content of type {type(content).__name__}"
        raise InputError(f"{where} has {held} ({content!r:.40}): give text, or leave the conversation out")
    return {**message, "role": require_whole(role, where), "content": require_whole(content, where)}


def _part(part: object, where: str) -> str:
    if isinstance(part, Mapping):
        kind = part.get("type", "text")
        if kind not in TEXT_PARTS:
            raise InputError(f"{where} is of type {kind!r:.40}, and only text is read: leave the conversation out")
        part = part.get("text")
    if not isinstance(part, str):
        raise InputError(f"{where} holds {part!r:.40}, which is no text: leave the part out")
    return part


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
