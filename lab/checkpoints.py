"""States kept as numbered folders, of which only the newest complete one stays.

A folder appears under its number by one rename, after everything in it is on disk; the older ones go only
then. A process killed at any moment leaves the newest complete state and perhaps litter for `sweep`.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from .errors import InputError
from .storage import State, atomic_path, load_state, save_state


def save_newest(folder: Path, number: int, state: State) -> None:
    """Write `state` as `folder/<number>` and drop the states before it.

    Raises:
        InputError: the disk is full or the folder cannot be written; the state before is untouched.
    """
    target = folder / f"{number:09d}"
    if not target.exists():
        with atomic_path(target) as temporary:
            temporary.mkdir(parents=True)
            save_state(temporary, state)
    for older in _numbered(folder)[:-1]:
        shutil.rmtree(older)


def load_newest(folder: Path) -> State | None:
    """The newest complete state in `folder`, or None.

    Raises:
        InputError: its files are damaged.
    """
    states = _numbered(folder)
    return load_state(states[-1]) if states else None


def sweep(folder: Path) -> None:
    """Remove what a killed process left half written in `folder`."""
    for litter in folder.glob(".*.tmp"):
        if litter.is_dir():
            shutil.rmtree(litter)
        else:
            litter.unlink()


def _numbered(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("[0-9]*") if path.is_dir())


SAME = "resume with the same value, or choose another folder"


def require_same(was: Any, now: Any, owner: str, key: str = "", fix: str = SAME) -> None:
    """Refuse to continue something that stands on other values, naming the first that differs.

    Raises:
        InputError: with the dotted key and both values.
    """
    if isinstance(was, dict) and isinstance(now, dict):
        for name in [*was, *(name for name in now if name not in was)]:
            require_same(was.get(name), now.get(name), owner, f"{key}.{name}" if key else name, fix)
    elif was != now:
        raise InputError(f"{owner} has {key} = {was!r} and this one {now!r}: {fix}")
