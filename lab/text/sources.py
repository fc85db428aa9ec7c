"""From a text form or a Python iterable to a `Source` of documents.

| form | documents |
| --- | --- |
| `docs:` or `docs:numpy,scipy` | docstrings and prose of installed packages, one per file; no download |
| `text:PATH` | a file, or each .txt and .md below a folder |
| `jsonl:PATH[#field]` | a row per line: `field` (default `text`), or a conversation under `messages` |
| `hf:NAME[:config][:split][#field]` | rows of a Hugging Face data set, streamed; the same fields |
| `chat:` or `chat:MODEL[:TOKENS[:TEMPERATURE]]` | questions about `docs:`, answered by it or by a model |
| a Python iterable | texts, lists of messages, or mappings with `text` or `messages` |

A new source is one file with a class like those here, and one line in `SCHEMES`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import InputError, unknown
from ..sequences import by_position
from .conversations import open_chats
from .docs import DocsSource
from .documents import Document, Source, content_key, content_of, readable
from .files import JsonLines, TextFiles, path_and_field
from .hub import HubSource


class Rows:
    """Documents given as Python values, read by position; a DataFrame gives a mapping a row.

    A data set of `datasets` stays where it is; a one-shot iterator is read into memory once, at the start.
    """

    name, at_hand = "rows:", True
    unreadable: dict[int, str] | None = None
    """Documents left out because they cannot be read, by position; None refuses them."""

    def __init__(self, rows: Iterable[object]) -> None:
        self._rows: Any = _indexed(rows)

    def read(self, start: int = 0) -> Iterator[Document]:
        """The rows from the `start`-th on."""
        for number in range(start, len(self._rows)):
            if (document := readable(number, partial(self._document, number), self.unreadable)) is not None:
                yield document

    def _document(self, number: int) -> Document:
        where = f"document {number}"
        return Document(number, content_of(self._rows[number], None, where), where)

    def fingerprint(self) -> dict[str, Any]:
        """The hash of every row's content."""
        digest = hashlib.sha256()
        for document in self.read():
            digest.update(json.dumps(content_key(document.content)).encode() + b"\n")
        return {"hash": digest.hexdigest(), "rows": len(self._rows)}


def _indexed(rows: Any) -> Any:
    """The rows as something that an integer indexes by position."""
    for method, arguments in {"to_dicts": (), "to_dict": ("records",)}.items():  # polars, pandas
        if hasattr(rows, "columns") and hasattr(rows, method) and {"text", "messages"} & set(rows.columns):
            return getattr(rows, method)(*arguments)
    column = any(hasattr(rows, name) for name in ("tolist", "to_pylist", "columns"))
    indexed = hasattr(rows, "__getitem__") and hasattr(rows, "__len__")
    return rows if indexed and not column else by_position(rows, "texts")


def _json_lines(rest: str) -> Source:
    return JsonLines(*path_and_field(rest))


def _hub(rest: str) -> Source:
    form, field = path_and_field(rest)
    name, *parts = form.split(":")
    if len(parts) > 2:
        raise InputError(f"hf:{rest} has too many parts: the form is hf:NAME[:config][:split][#field]")
    return HubSource(name, *parts, field=field)


SCHEMES: dict[str, Callable[[str], Source]] = {
    "docs": DocsSource,
    "chat": open_chats,
    "text": TextFiles,
    "jsonl": _json_lines,
    "hf": _hub,
}


def open_source(form: str | Source | Iterable[object]) -> Source:
    """The source that a text form names, or one around an iterable of documents.

    Raises:
        InputError: unknown scheme, a path without a scheme, a missing file, or a value of another type.
    """
    if isinstance(form, Source):
        return form
    if isinstance(form, str):
        scheme, colon, rest = form.partition(":")
        if scheme in SCHEMES and colon:
            return SCHEMES[scheme](rest)
        if not colon:
            raise InputError(
                f"{form!r:.80} names no text source: write text:{form:.60} for a file, or one of "
                + ", ".join(f"{name}:" for name in SCHEMES)
            )
        raise unknown("text source", f"{scheme}:", [f"{name}:" for name in SCHEMES])
    if isinstance(form, Path):
        raise InputError(f"a path alone names no text source: write 'text:{form}' or 'jsonl:{form}'")
    if isinstance(form, Iterable) and not isinstance(form, bytes | dict | set | frozenset):
        return Rows(form)
    raise InputError(f"{type(form).__name__} is no text source: give a form such as 'docs:' or an iterable of texts")
