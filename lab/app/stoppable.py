"""Measuring that may be stopped: what is done stays in a folder, and the same command continues from there."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..checkpoints import require_same
from ..errors import InputError
from ..evidence import Evidence
from ..runs.run import Run
from ..storage import atomic_path, read_json


def check_stopped(folder: Path, asked: Mapping[str, Any]) -> None:
    """Refuse to continue what was stopped with other options.

    Raises:
        InputError: names the folder, and the first option that differs.
    """
    if not (folder / "config.json").is_file():
        return
    was, now = read_json(folder / "config.json", "stopped measurement")["config"], json.loads(json.dumps(asked))
    fix = "give the options it was begun with, or remove that folder"
    require_same(was, now, f"what was measured before a stop in {folder}", fix=fix)


@contextlib.contextmanager
def stoppable(folder: Path, asked: Mapping[str, Any]) -> Iterator[Run]:
    """A run that keeps what is measured, until everything is.

    Args:
        folder: of the run; removed at the end, and where nothing was measured.
        asked: options that decide the numbers, as JSON values.

    Raises:
        InputError: the folder holds a measurement with other options.
        KeyboardInterrupt: says that the same command continues.
    """
    check_stopped(folder, asked)
    continued = folder.exists()
    run = Run.create(folder, dict(asked), resume=True)
    try:
        yield run
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; the same command continues from what is kept in {folder}") from None
    except InputError:
        if not continued and run.latest() is None:
            shutil.rmtree(folder)
        raise
    shutil.rmtree(folder)


class KeptParts:
    """Results of finished parts in a folder, each a JSON file; without a folder nothing is kept."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder

    def inside(self, name: str) -> Path | None:
        """The folder in which a part keeps its own state."""
        return None if self.folder is None else self.folder / name

    def read(self, name: str) -> dict[str, Any] | None:
        """The result of a part; None where it is not finished. Scores are `Evidence` again."""
        path = None if self.folder is None else self.folder / f"{name}.json"
        if path is None or not path.is_file():
            return None
        kept = read_json(path, "finished part")
        return {**kept, "scores": {score: _evidence(values) for score, values in kept["scores"].items()}}

    def keep(self, name: str, scores: Mapping[str, Evidence], **more: Any) -> None:
        """Write the result of a part."""
        if self.folder is None:
            return
        written = {"scores": {score: asdict(evidence) for score, evidence in scores.items()}, **more}
        with atomic_path(self.folder / f"{name}.json") as temporary:
            temporary.write_text(json.dumps(written), encoding="utf-8")  # scores may be nan


def _evidence(values: dict[str, Any]) -> Evidence:
    interval = values["interval"]
    return Evidence(**{**values, "interval": None if interval is None else tuple(interval)})
