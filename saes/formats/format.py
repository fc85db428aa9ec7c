"""`Format`: how one library's files are told from others, read and written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .losses import Losses
from .portable import Portable
from .table import Raw


@dataclass(frozen=True)
class Format:
    """One file format. Each lives in its own module as a `FORMAT` (or several)."""

    name: str
    """The name in `--to NAME`."""
    recognise: Callable[[Path], bool]
    """True if a path holds this format's files, judged by their names."""
    load: Callable[[Path], Raw]
    """Read the files."""
    parse: Callable[[Raw, Losses], Portable]
    """Their content in our terms."""
    files: tuple[str, ...] = ()
    """Names of the files in a folder of this format, for fetching it."""
    compose: Callable[[Portable, Losses], Raw] | None = None
    """Our content in their terms (`Raw.path` is empty); None where we only read the format."""
    store: Callable[[Raw, Path], None] | None = None
    """Write the files into a folder, which exists."""
