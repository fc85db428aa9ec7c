"""Files that are whole or absent: written beside their name, flushed, then renamed.

A state is a nested dict whose leaves are tensors or JSON values. It is stored as one safetensors file for
the tensors and one JSON file for the rest; nothing is ever pickled.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from .errors import InputError

State = dict[str, Any]
TENSORS, REST = "state.safetensors", "state.json"


@contextlib.contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`, on any error it is removed.

    Raises:
        InputError: the disk is full or the folder cannot be written; names the path.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if temporary.is_dir():
            if path.exists():
                shutil.rmtree(path)
        else:
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise _disk_error(path, error) from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            with contextlib.suppress(NotADirectoryError):  # where a folder should be is a file: nothing was written
                temporary.unlink(missing_ok=True)


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LONGEST_NAME = 200
"""Bytes of a file's name: file systems take 255 (eCryptfs 143), and a file is written under a longer one first."""


def _disk_error(path: Path, error: Exception) -> Exception:
    number = _system_error(error)
    if number is None:
        return error
    if number in FULL:
        return InputError(
            f"no space left to write {path}: free some disk and run again with --resume; "
            "what was there before is unchanged"
        )
    return InputError(
        f"cannot write {path}: {os.strerror(number)}; what was there before is unchanged, so mend that and run again"
    )


def _system_error(error: Exception) -> int | None:
    """The number of a system's error; safetensors passes only its message on, sometimes with the number."""
    if isinstance(error, OSError):
        return error.errno
    if found := re.search(r"os error (\d+)", str(error)):
        return int(found[1])
    return next((code for code in (*FULL, errno.EIO, errno.EROFS) if os.strerror(code) in str(error)), None)


def _cannot_read(path: Path, kind: str, error: OSError) -> InputError:
    return InputError(f"cannot read the {kind} {path}: {error.strerror or error}")


def short_name(name: str) -> str:
    """A name of at most `LONGEST_NAME` bytes: a longer one is cut, and ends in a hash of the whole."""
    data = name.encode("utf-8", "surrogateescape")
    if len(data) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(data).hexdigest()[:16]
    return data[: LONGEST_NAME - 17].decode("utf-8", "ignore") + "-" + digest


def append_line(path: Path, text: str) -> None:
    """Append one line; if it does not fit on the disk, the file stays as it was.

    Raises:
        InputError: the disk is full or the file cannot be written; names the path.
    """
    size = path.stat().st_size if path.exists() else 0
    try:
        with open(path, "a") as file:
            file.write(text + "\n")
    except OSError as error:
        if path.exists():
            os.truncate(path, size)
        raise _disk_error(path, error) from error


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all. NaN and infinities are refused."""
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text)


def read_json(path: Path | str, kind: str = "file", *, finite: bool = False) -> Any:
    """Read JSON, with or without a byte-order mark.

    Args:
        kind: names the kind of file in errors.
        finite: as `parse_json`.

    Raises:
        InputError: the file is missing or damaged, or as `parse_json`; names it.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"no such {kind}: {path}") from None
    except OSError as error:
        raise _cannot_read(path, kind, error) from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a {kind}: not valid JSON ({error})") from None
    return parse_json(text, f"{path} is not a {kind}:", finite=finite)


def parse_json(text: str, where: str, *, finite: bool = False) -> Any:
    """The value of a JSON text.

    Args:
        where: opens the sentence of an error, such as `line 3 of rows.jsonl is`.
        finite: numbers that are not finite become their text (`"NaN"`), so that the value can be written again.

    Raises:
        InputError: the text is not JSON, is nested too deeply, or holds a whole number of over 4,300 digits.
    """
    options: dict[str, Any] = {"parse_constant": str, "parse_float": _finite_or_text} if finite else {}
    try:
        return json.loads(text, **options)
    except json.JSONDecodeError as error:
        raise InputError(f"{where} not valid JSON ({error})") from None
    except RecursionError:
        raise InputError(f"{where} not readable: its lists or objects are nested too deeply; flatten them") from None
    except ValueError as error:
        reason = str(error).partition(";")[0]
        raise InputError(f"{where} not readable ({reason}): write the number as text") from None


def _finite_or_text(text: str) -> float | str:
    return value if math.isfinite(value := float(text)) else text


def write_tensors(path: Path | str, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors, whole or not at all. Those that share memory are each written."""
    apart: dict[str, torch.Tensor] = {}
    held: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        place = plain.untyped_storage().data_ptr()
        apart[name] = plain.clone() if place in held else plain
        held.add(place)
    with atomic_path(path) as temporary:
        save_file(apart, temporary, metadata=metadata)


def read_tensors(path: Path | str, kind: str = "safetensors file") -> dict[str, torch.Tensor]:
    """Read safetensors; a missing or damaged file is an `InputError` naming it."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no such {kind}: {path}")
    try:
        return load_file(path)
    except OSError as error:
        raise _cannot_read(path, kind, error) from None
    except SafetensorError as error:
        raise InputError(f"{path} is not a {kind}: {error}") from None


def file_sha256(path: Path | str) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flatten(state: State, prefix: str = "") -> tuple[dict[str, torch.Tensor], State]:
    """Split a nested state into tensors under '/'-joined keys and a JSON tree with the rest."""
    tensors: dict[str, torch.Tensor] = {}
    rest: State = {}
    for key, value in state.items():
        name = f"{prefix}{key}"
        if isinstance(value, torch.Tensor):
            tensors[name] = value
        elif isinstance(value, dict):
            inner, rest[key] = flatten(value, name + "/")
            tensors.update(inner)
        else:
            rest[key] = value
    return tensors, rest


def unflatten(tensors: dict[str, torch.Tensor], rest: State) -> State:
    """The inverse of `flatten`."""
    state = json.loads(json.dumps(rest))
    for name, tensor in tensors.items():
        *folders, key = name.split("/")
        node = state
        for folder in folders:
            node = node.setdefault(folder, {})
        node[key] = tensor
    return state


def save_state(folder: Path, state: State) -> None:
    """Write a state into `folder` (which exists). The JSON is written last."""
    tensors, rest = flatten(state)
    write_tensors(folder / TENSORS, tensors)
    write_json(folder / REST, rest)


def load_state(folder: Path) -> State:
    """Read what `save_state` wrote."""
    return unflatten(read_tensors(folder / TENSORS, "checkpoint"), read_json(folder / REST, "checkpoint"))
