"""Text in files: `text:PATH` (a document per file), `jsonl:PATH` (a document per line), and tables of records.

Every command that reads a text file reads it here. A file is UTF-8, with or without a byte-order mark; `~` is the home
folder. Lines end at line feeds alone, so that U+2028 or U+0085 inside a text end no line. Fields may have any length.

| ending | records |
| --- | --- |
| .jsonl, .ndjson, .json | a JSON value per line |
| .csv, .tsv | a mapping per row, by the names in the first row; all values are text |
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import os
from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InputError, unknown
from .documents import Document, content_of, readable

SUFFIXES = (".txt", ".md")
LINES = ("jsonl", "ndjson", "json")
"""Endings of files with a JSON value per line."""
DELIMITERS = {"csv": ",", "tsv": "\t"}
"""Endings of tables, and the sign between two fields."""
MARK_EVERY = 4096  # lines between two remembered byte positions
LONGEST_FIELD = 2**31 - 1
"""Characters of a field in a table: all that the `csv` module can be set to everywhere."""


class Record(NamedTuple):
    """One record of a file, and its location for error messages."""

    where: str
    value: Any


def existing(path: Path | str, what: str) -> Path:
    """The path with `~` replaced.

    Raises:
        InputError: nothing is there; names the path.
    """
    found = Path(path).expanduser()
    if not str(path) or not found.exists():
        raise InputError(f"no such {what}: {str(path) or '(empty path)'}: give an existing path")
    return found


def path_and_field(text: str) -> tuple[str, str | None]:
    """Split `PATH#field`; a '#' that is part of an existing path stays in it."""
    path, sign, field = text.rpartition("#")
    if not sign or Path(text).expanduser().exists():
        return text, None
    return path, field or None


def read_records(path: Path | str, kind: str = "") -> Iterator[Record]:
    """Records of a file of JSON lines or of a table, in order; blank lines hold none.

    Args:
        kind: an ending such as `csv`, in place of the file's own.

    Raises:
        InputError: no such file, an unknown ending, or a record that cannot be read; names the line, from 1.
    """
    found = existing(path, "file of records")
    kind = kind or found.suffix.lower().lstrip(".")
    if kind not in (*LINES, *DELIMITERS):
        raise unknown("kind of file", found.name, [f".{name}" for name in (*LINES, *DELIMITERS)])
    if not found.is_file():
        raise InputError(f"{path} is a folder: give a file of records")
    return _json_records(found) if kind in LINES else iter(_table(found, DELIMITERS[kind]))


def _json_records(path: Path) -> Iterator[Record]:
    with _opened(path) as file:
        for number in itertools.count(1):
            raw = file.readline()
            if not raw:
                return
            if (record := json_record(raw, f"line {number} of {path}")) is not None:
                yield record


def json_record(raw: bytes, where: str) -> Record | None:
    """The value of one line, None if the line is blank. Control characters inside strings are let through.

    Raises:
        InputError: the line is not UTF-8, no JSON, nested too deeply, or holds a number with too many digits.
    """
    text = _decoded(raw, where).strip()
    if not text:
        return None
    try:
        return Record(where, json.loads(text, strict=False))
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise InputError(f"{where} is not valid JSON: {reason}") from None


def _table(path: Path, delimiter: str) -> list[Record]:
    """Rows by the names in the first one, each with the line it begins on."""
    text = _decoded(_bytes(path), str(path))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    before, rows, line = csv.field_size_limit(LONGEST_FIELD), [], 1
    try:
        for row in reader:
            rows.append((f"line {line} of {path}", row))
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"line {line} of {path} is no row of a table ({error}): correct its quotes") from None
    finally:
        csv.field_size_limit(before)
    rows = [(where, row) for where, row in rows if row]
    names = rows[0][1] if rows else []
    if again := [name for name in names if name and names.count(name) > 1]:
        raise InputError(f"two columns of {path} are called {again[0]!r}: rename one")
    for where, row in rows[1:]:
        if len(row) > len(names):
            raise InputError(
                f"{where} has {len(row)} fields and the first row names {len(names)}: quote fields with {delimiter!r}"
            )
    return [Record(where, dict(zip(names, row, strict=False))) for where, row in rows[1:]]


def _opened(path: Path) -> io.BufferedReader:
    try:
        return open(path, "rb")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def _bytes(path: Path) -> bytes:
    with _opened(path) as file:
        return file.read()


def _decoded(raw: bytes, where: str) -> str:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8 text (byte {error.start}): convert it to UTF-8 first") from None
    if "\0" in text:
        raise InputError(f"{where} is not text: it holds NUL bytes; give a text file")
    return text


def _text_of(number: int, path: Path) -> Document:
    return Document(number, _decoded(_bytes(path), str(path)), str(path))


class TextFiles:
    """One document per file: the file itself, or every .txt and .md below a folder, ordered by path."""

    at_hand = True
    unreadable: dict[int, str] | None = None
    """Documents left out because they cannot be read, by number, with the reason; None refuses them."""

    def __init__(self, path: str) -> None:
        self.name = f"text:{path}"
        self._root = existing(path, "file for text")
        if self._root.is_dir() and not self._files:
            raise InputError(
                f"folder {path} holds no {' or '.join(SUFFIXES)} file: give a folder that does, or one file"
            )

    @cached_property
    def _files(self) -> list[Path]:
        if self._root.is_file():
            return [self._root]
        return sorted(p for p in self._root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())

    def read(self, start: int = 0) -> Iterator[Document]:
        """The files from the `start`-th on; one that is not UTF-8 text is an `InputError`."""
        for number in range(start, len(self._files)):
            path = self._files[number]
            if (document := readable(number, partial(_text_of, number, path), self.unreadable)) is not None:
                yield document

    def fingerprint(self) -> dict[str, Any]:
        """The hash of every file's bytes and relative path."""
        digest = hashlib.sha256()
        for path in self._files:
            with _opened(path) as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
            digest.update(os.fsencode(path.relative_to(self._root).as_posix()))
        return {"hash": digest.hexdigest(), "files": len(self._files)}


class JsonLines:
    """One document per line of a JSON-lines file; blank lines count as numbers but hold no document."""

    at_hand = True
    unreadable: dict[int, str] | None = None
    """Documents left out because they cannot be read, by line; None refuses them."""

    def __init__(self, path: str, field: str | None = None) -> None:
        self.name = f"jsonl:{path}" + (f"#{field}" if field else "")
        self._path, self._field = existing(path, "file for jsonl"), field
        if not self._path.is_file():
            raise InputError(f"jsonl: needs a file, and {path} is a folder")
        self._marks = {0: 0}  # line number -> byte where it starts

    def read(self, start: int = 0) -> Iterator[Document]:
        """The rows from line `start` (from 0) on.

        Raises:
            InputError: a line is not JSON or lacks the field; names the line, counted from 1 as editors do.
        """
        for number, raw in self._lines(start):
            document = readable(number, partial(self._document, number, raw), self.unreadable)
            if document is not None:
                yield document

    def _document(self, number: int, raw: bytes) -> Document | None:
        record = json_record(raw, f"line {number + 1} of {self._path}")
        if record is None:
            return None
        return Document(number, content_of(record.value, self._field, record.where), f"{self._path}:{number + 1}")

    def _lines(self, start: int) -> Iterator[tuple[int, bytes]]:
        """Numbered raw lines from `start` on, sought from the nearest line whose byte position is known."""
        mark = max(line for line in list(self._marks) if line <= start)
        with _opened(self._path) as file:
            file.seek(self._marks[mark])
            for number in itertools.count(mark):
                if number % MARK_EVERY == 0:
                    self._marks[number] = file.tell()
                raw = file.readline()
                if not raw:
                    return
                if number >= start:
                    yield number, raw

    def fingerprint(self) -> dict[str, Any]:
        """The hash of the file's bytes and of the field read."""
        with _opened(self._path) as file:
            digest = hashlib.file_digest(file, "sha256")
        digest.update((self._field or "").encode())
        return {"hash": digest.hexdigest(), "files": 1}
