"""Public names of a package that are imported on first use, so that importing the package stays quick.

A package lists its names once, as imports under `if TYPE_CHECKING:` in its `__init__.py`. Type checkers and editors
read that list as it stands; `lazily` reads the same lines for `__getattr__`, `__dir__` and `__all__`.
"""

from __future__ import annotations

import ast
import difflib
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path

Find = Callable[[str], object]


def lazily(package: str, file: str, hints: Mapping[str, str] | None = None) -> tuple[Find, Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of `package`, whose `__init__.py` is `file`; `__all__` is set.

    No module of the package may be called like one of the names: importing it would put the module in the name's place.

    Args:
        hints: what to use in place of a name of another library, by that name.
    """
    homes = _typed_imports(Path(file))
    vars(sys.modules[package])["__all__"] = sorted(homes)

    def find(name: str) -> object:
        if name in homes:
            return getattr(import_module(f".{homes[name]}", package), name)
        told = f"module {package!r} has no {name!r}"
        if hints and name in hints:
            raise AttributeError(f"{told}: {hints[name]}")
        if near := difflib.get_close_matches(name, homes, n=1):
            raise AttributeError(f"{told}: did you mean {near[0]!r}?")
        raise AttributeError(told)

    return find, lambda: sorted(homes)


def _typed_imports(file: Path) -> dict[str, str]:
    """Name to module, from the imports under `if TYPE_CHECKING` of a file."""
    blocks = [node for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, ast.If)]
    lines = [line for block in blocks for line in block.body if isinstance(line, ast.ImportFrom)]
    return {alias.name: line.module or "" for line in lines for alias in line.names}
