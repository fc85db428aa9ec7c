"""`docs:`, the embedded corpus: docstrings and prose of the installed scientific Python packages.

Real technical English, no download. The packages are dependencies of this one, so
every installation has them; nothing is imported: modules are parsed with `ast`. Choices:

- One document is one file: a module's docstrings joined, or a whole .md, .rst or .txt file of prose.
- Files come in the order of a hash of their relative path, which mixes the packages evenly: every prefix is
  a fair sample. A document's id is the place of its file in that order, so reading can start anywhere.
- Tests, vendored code and licences are left out. So are copies: identical files, files that say they were
  generated or moved, and docstrings that transformers marks as copied. Left are 5,200 documents, 10.0 million
  SmolLM2 tokens; 8 documents have a twin, and 5 % of the text stands in paragraphs seen before.
"""

from __future__ import annotations

import ast
import csv
import hashlib
import warnings
from collections.abc import Iterator
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ..errors import InputError, unknown
from .documents import Document

PACKAGES = (
    *("datasets", "fsspec", "huggingface-hub", "joblib", "mpmath", "narwhals", "networkx", "numba", "numpy"),
    *("pandas", "pyarrow", "pydantic", "rich", "scikit-learn", "scipy", "sympy", "torch", "transformers"),
)
RULES = 1  # part of the hash: raise it when a change below changes the documents
MIN_DOCUMENT, MIN_DOCSTRING, MIN_FILE = 200, 80, 400  # characters, characters, bytes
PROSE = {".md", ".rst", ".txt"}
LEFT_OUT = {"tests", "test", "testing", "conftest.py", "vendor", "vendored", "_vendor", "externals", "extern"}
NOISE = (
    "license",
    "licence",
    "authors",
    "notice",
    "copying",
    "requirements",
    "cmakelists",
    "test_",
    "image_processing_pil_",
)
COPY_MARKS = (b"automatically generated from", b"in the process of migration")


class Entry(NamedTuple):
    """A file that an installed package lists, with the digest recorded at its installation."""

    path: str
    digest: str
    size: int
    file: Path


class DocsSource:
    """Documents from the docstrings and prose of installed packages; `docs:numpy,scipy` takes only these."""

    def __init__(self, packages: str = "") -> None:
        names = [name.strip() for name in packages.split(",") if name.strip()]
        for name in names:
            if name not in PACKAGES:
                raise unknown("package in docs:", name, PACKAGES)
        self.name = "docs:" + ",".join(names)
        self._packages = sorted(set(names)) or PACKAGES

    @cached_property
    def _distributions(self) -> list[metadata.Distribution]:
        distributions = []
        for name in self._packages:
            try:
                distributions.append(metadata.distribution(name))
            except metadata.PackageNotFoundError:
                if self.name != "docs:":
                    raise InputError(f"package {name!r} in {self.name} is not installed: pip install it") from None
        return distributions

    @cached_property
    def _entries(self) -> list[Entry]:
        entries = [entry for package in self._distributions for entry in _listed(package)]
        once = {entry.digest: entry for entry in sorted(entries, key=lambda e: e.path, reverse=True)}
        return sorted(once.values(), key=lambda e: hashlib.blake2b(e.path.encode()).digest())

    def read(self, start: int = 0) -> Iterator[Document]:
        """Parse files from the `start`-th on; a file without substantial text gives no document."""
        for number in range(start, len(self._entries)):
            entry = self._entries[number]
            text = _text(entry.file)
            if len(text) >= MIN_DOCUMENT:
                yield Document(number, text, entry.path)

    def fingerprint(self) -> dict[str, Any]:
        """The hash of the file list (path, recorded digest, size on disk) and the packages' versions."""
        digest = hashlib.sha256(f"rules {RULES}\n".encode())
        for entry in self._entries:
            digest.update(f"{entry.path} {entry.digest} {entry.size}\n".encode())
        versions = {package.name: package.version for package in self._distributions}
        return {"hash": digest.hexdigest(), "files": len(self._entries), "packages": versions}


def _listed(package: metadata.Distribution) -> Iterator[Entry]:
    """The readable files of one package, from the RECORD that its wheel installed."""
    rows = [row for row in csv.reader((package.read_text("RECORD") or "").splitlines()) if len(row) == 3]
    for name, digest, _ in rows:
        path = PurePosixPath(name)
        if not _wanted(path):
            continue
        file = Path(str(package.locate_file(name)))
        size = file.stat().st_size if file.is_file() else 0
        if size >= MIN_FILE:
            yield Entry(name, digest or name, size, file)


def _wanted(path: PurePosixPath) -> bool:
    if path.suffix not in {".py", *PROSE} or path.parts[0] == ".." or path.parts[0].endswith(".dist-info"):
        return False
    return not (LEFT_OUT.intersection(path.parts) or path.name.lower().startswith(NOISE))


@cache
def _text(file: Path) -> str:
    """The text of a file, parsed once a process: train, held-out and feature passes read the same files (40 MB)."""
    return prose(file) if file.suffix in PROSE else docstrings(file.read_bytes())


def prose(file: Path) -> str:
    """The text of a file of prose; empty for tables of numbers and for text that is not UTF-8."""
    text = file.read_bytes().decode("utf-8", "replace").strip()
    words = sum(character.isalpha() or character.isspace() for character in text)
    return text if words >= 0.75 * len(text) and "\ufffd" not in text else ""


def docstrings(source: bytes) -> str:
    """The substantial docstrings of a module in source order, each once, separated by blank lines.

    Counts as a docstring: that of the module, a class or a function, and a long string handed to a call at
    module level, which is how numpy and torch document what they implement in C.
    """
    undocumented = source.count(b'"""') + source.count(b"'''") < 2
    if undocumented or any(mark in source[:1500] for mark in COPY_MARKS):
        return ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            tree = ast.parse(source)
    except (SyntaxError, ValueError):  # a template or a file for another Python
        return ""
    lines = source.splitlines()
    texts = dict.fromkeys(text.strip() for text in _documented(tree, lines))
    joined = "\n\n".join(text for text in texts if len(text) >= MIN_DOCSTRING)
    return joined.encode(errors="ignore").decode()  # a docstring may spell out a lone surrogate


def _documented(node: Any, lines: list[bytes]) -> Iterator[str]:
    yield ast.get_docstring(node) or ""
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([child.lineno, *(decorator.lineno for decorator in child.decorator_list)])
            if not lines[first - 2].lstrip().startswith(b"# Copied from"):
                yield from _documented(child, lines)
        elif isinstance(node, ast.Module) and isinstance(child, ast.Expr) and isinstance(child.value, ast.Call):
            for argument in child.value.args:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield argument.value
