"""`Cells`: finished parts of a long benchmark, a JSON line each, so that a stopped command continues."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...checkpoints import require_same
from ...errors import InputError
from ...storage import append_line, atomic_path, read_json, write_json

LINES, ASKED = "cells.jsonl", "asked.json"


class Cells:
    """Results by key, kept in a folder where there is one.

    Args:
        folder: created, or continued where it holds cells; None keeps them in memory only.
        asked: options on which every cell depends; cells of other options are refused.

    Raises:
        InputError: the folder holds cells of other options, or a damaged line.
    """

    def __init__(self, folder: Path | None, asked: Mapping[str, Any]) -> None:
        self.path = None if folder is None else folder / LINES
        self.found: dict[str, Any] = {}
        if folder is None or self.path is None:
            return
        same = json.loads(json.dumps(asked))
        if (folder / ASKED).exists():
            require_same(read_json(folder / ASKED), same, f"the benchmark in {folder}")
        else:
            write_json(folder / ASKED, same)
        if self.path.exists():
            self._read(self.path)

    def _read(self, path: Path) -> None:
        lines = path.read_text().splitlines()
        for number, line in enumerate(lines, 1):
            try:
                cell = json.loads(line)
                self.found[_name(cell["key"])] = cell["value"]
            except (json.JSONDecodeError, KeyError, TypeError):
                if number < len(lines):
                    raise InputError(f"{path}, line {number}, is not a finished cell: remove the line") from None
                with atomic_path(path) as beside:  # a kill cut the last line
                    beside.write_text("".join(f"{whole}\n" for whole in lines[:-1]))

    def get(self, key: Mapping[str, Any], make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """The cell of a key; made, and kept, where it is not there yet."""
        if (name := _name(key)) not in self.found:
            value = json.loads(json.dumps(make()))
            if self.path is not None:
                append_line(self.path, json.dumps({"key": key, "value": value}))
            self.found[name] = value
        return self.found[name]


def _name(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)
