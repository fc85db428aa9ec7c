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
from importlib.metadata import version
from pathlib import Path

Find = Callable[[str], object]


def lazily(package: str, file: str, hints: Mapping[str, str] | None = None) -> tuple[Find, Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of `package`, whose `__init__.py` is `file`; `__all__` is set.

    Sub-packages with a list of their own are offered too, and a name of theirs that is asked of `package` is an error
    that says where the name is. No module of the package may be called like one of the names: importing the module
    would put it in the name's place.

    Args:
        hints: advice for names of other libraries, by name: what to use in place of each.
    """
    homes = _typed_imports(Path(file))
    rooms = _rooms(Path(file).parent)
    vars(sys.modules[package])["__all__"] = sorted(homes)

    def find(name: str) -> object:
        if name in homes:
            return getattr(import_module(f".{homes[name]}", package), name)
        if name in rooms:
            return import_module(f".{name}", package)
        if name == "__version__":
            return version("monosem")
        raise AttributeError(f"module {package!r} has no {name!r}{_advice(name, package, homes, rooms, hints or {})}")

    return find, lambda: sorted([*homes, *rooms])


def _advice(
    name: str, package: str, homes: Mapping[str, str], rooms: Mapping[str, Path], hints: Mapping[str, str]
) -> str:
    """The rest of the sentence about a name that a package has not; empty where nothing is near."""
    if name.startswith("_"):
        return ""
    if name in hints:
        return f": {hints[name]}"
    for room, file in rooms.items():
        if name in _typed_imports(file):
            return f": it is {package}.{room}.{name}"
    near = difflib.get_close_matches(name, [*homes, *rooms], n=1)
    return f": did you mean {near[0]!r}?" if near else ""


def _rooms(folder: Path) -> dict[str, Path]:
    """The sub-packages that list public names: name to `__init__.py`."""
    files = sorted(folder.glob("*/__init__.py"))
    return {file.parent.name: file for file in files if _typed_imports(file)}


def _typed_imports(file: Path) -> dict[str, str]:
    """Name to module, from the public imports `X as X` of a file: those under `if TYPE_CHECKING`, and plain ones."""
    body = ast.parse(file.read_text(encoding="utf-8")).body
    blocks = [body, *(node.body for node in body if isinstance(node, ast.If))]
    lines = [line for block in blocks for line in block if isinstance(line, ast.ImportFrom)]
    return {alias.name: line.module or "" for line in lines for alias in line.names if alias.asname == alias.name}
