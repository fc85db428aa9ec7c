"""Documents in files: `text:PATH` (a document per file) and `jsonl:PATH` (a document per line)."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import InputError
from .documents import Document, content_of

SUFFIXES = (".txt", ".md")
MARK_EVERY = 4096  # lines between two remembered byte positions


def _existing(path: str, scheme: str) -> Path:
    found = Path(path).expanduser()
    if not path or not found.exists():
        raise InputError(
            f"no such file for {scheme}: {path or '(empty path)'!s}: give an existing path after '{scheme}:'"
        )
    return found


def _decoded(raw: bytes, where: str) -> str:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8 text (byte {error.start}): convert it to UTF-8 first") from None
    if "\0" in text:
        raise InputError(f"{where} is not text: it holds NUL bytes; give a text file")
    return text


class TextFiles:
    """One document per file: the file itself, or every .txt and .md below a folder, ordered by path."""

    def __init__(self, path: str) -> None:
        self.name = f"text:{path}"
        self._root = _existing(path, "text")
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
            yield Document(number, _decoded(path.read_bytes(), str(path)), str(path))

    def fingerprint(self) -> dict[str, Any]:
        """The hash of every file's bytes and relative path."""
        digest = hashlib.sha256()
        for path in self._files:
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
            digest.update(path.relative_to(self._root).as_posix().encode())
        return {"hash": digest.hexdigest(), "files": len(self._files)}


class JsonLines:
    """One document per line of a JSON-lines file; blank lines count as numbers but hold no document."""

    def __init__(self, path: str, field: str | None = None) -> None:
        self.name = f"jsonl:{path}" + (f"#{field}" if field else "")
        self._path, self._field = _existing(path, "jsonl"), field
        if not self._path.is_file():
            raise InputError(f"jsonl: needs a file, and {path} is a folder")
        self._marks = {0: 0}  # line number -> byte where it starts

    def read(self, start: int = 0) -> Iterator[Document]:
        """The rows from line `start` (from 0) on.

        Raises:
            InputError: a line is not JSON or lacks the field; names the line, counted from 1 as editors do.
        """
        for number, raw in self._lines(start):
            where = f"line {number + 1} of {self._path}"
            text = _decoded(raw, where).strip()
            if not text:
                continue
            try:
                row = json.loads(text)
            except json.JSONDecodeError as error:
                raise InputError(f"{where} is not valid JSON: {error}") from None
            yield Document(number, content_of(row, self._field, where), f"{self._path}:{number + 1}")

    def _lines(self, start: int) -> Iterator[tuple[int, bytes]]:
        """Numbered raw lines from `start` on, sought from the nearest line whose byte position is known."""
        mark = max(line for line in list(self._marks) if line <= start)
        with open(self._path, "rb") as file:
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
        with open(self._path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        digest.update((self._field or "").encode())
        return {"hash": digest.hexdigest(), "files": 1}
