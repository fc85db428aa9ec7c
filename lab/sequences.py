"""Sequences of any library as plain values, in their order.

| function | gives | for |
| --- | --- | --- |
| `by_position` | a list of Python values | labels, groups, rows |
| `texts_of` | a list of whole strings | texts, names, entities |
| `numbers_of` | an fp64 array | coordinates, numbers to predict |
| `integers_of` | an int64 tensor | classes as numbers, ids of documents, blocks |
| `flags_of` | a boolean tensor of the same shape | attributes, truth values |
| `positions_of` | the same, of a mask too | rows to take, latents |

A pandas Series is read from its first row to its last; its index plays no part. The same holds for columns of a
DataFrame, of Arrow, polars and `datasets`, for arrays, tensors, tuples and iterators.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from .errors import InputError

TO_LIST = ("to_pylist", "tolist", "to_list")
"""Methods by which libraries give a column as a list: Arrow; NumPy, PyTorch and pandas; polars."""
SHOWN = 40
"""Characters of a value that an error repeats."""


def by_position(given: Any, what: str = "values") -> list[Any]:
    """Python values of a sequence, from the first to the last.

    Rows of a table of numbers become lists. A DataFrame with one column stands for that column.

    Args:
        what: names the values in errors, in the plural.

    Raises:
        InputError: a text, a mapping, a set, one number, or a DataFrame with several columns.
    """
    if hasattr(given, "iloc") and hasattr(given, "columns"):
        if len(given.columns) != 1:
            raise InputError(f"{what} are one column, and a table of {len(given.columns)} was given: choose one, such "
                             f"as table[{next(iter(given.columns), 'name')!r}]")  # fmt: skip
        given = given.iloc[:, 0]
    if isinstance(given, str | bytes | Mapping | set | frozenset):
        raise InputError(f"{what} are a sequence, such as a list, got {type(given).__name__} {given!r:.{SHOWN}}")
    if isinstance(given, Tensor):
        given = given.detach().cpu()
    listed = next((getattr(given, name) for name in TO_LIST if hasattr(given, name)), None)
    found = given if listed is None else listed()
    if not isinstance(found, Iterable):
        raise InputError(f"{what} are a sequence, such as a list, got the single value {given!r:.{SHOWN}}")
    return [_plain(value) for value in found]


def _plain(value: Any) -> Any:
    """The Python value of a NumPy scalar or of a tensor with one number."""
    one = isinstance(value, np.generic) or (isinstance(value, Tensor) and value.ndim == 0)
    return value.item() if one else value


def is_missing(value: object) -> bool:
    """True for None, nan, pandas' NA and NaT, and NumPy's NaT; a text is never missing."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    if isinstance(value, str | bytes | list | tuple | dict):
        return False
    different = value != value
    return isinstance(different, bool | np.bool_) and bool(different)


def texts_of(given: Any, what: str = "texts") -> list[str]:
    """Texts from the first to the last, every one a whole string.

    Raises:
        InputError: as `by_position`; or a value is missing, is no text, or holds half a character; names its row.
    """
    found = by_position(given, what)
    for row, text in enumerate(found):
        if not isinstance(text, str):
            missing = is_missing(text)
            kind = "is missing" if missing else f"is of type {type(text).__name__}"
            raise InputError(
                f"row {row} of the {what} {kind} ({text!r:.{SHOWN}}): "
                + (f"leave out the {what} that are missing" if missing else "give text")
            )
        require_whole(text, f"row {row} of the {what}")
    return found


def require_whole(text: str, where: str) -> str:
    """The text, if it can be written as UTF-8.

    Raises:
        InputError: the text holds half a character; names `where` and the place.
    """
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{where} holds half a character (a lone surrogate) at {error.start}: repair it, for example with "
                "text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')"
            ) from None
    return text


def numbers_of(given: Any, what: str = "numbers") -> Float64[np.ndarray, ...]:
    """Numbers as an fp64 array of the same shape; missing ones become nan. A table with one column is that column.

    Raises:
        InputError: a value is no number; names its row, from 0.
    """
    if isinstance(given, Tensor):
        return given.detach().cpu().double().numpy()
    if hasattr(given, "columns") and hasattr(given, "to_numpy") and len(given.columns) != 1:
        given = np.ascontiguousarray(given.to_numpy())  # sums in the order of rows, as for arrays
    if isinstance(given, np.ndarray) and given.dtype.kind in "biuf":
        return given.astype(np.float64, copy=not given.flags.writeable)
    rows = by_position(given, what)
    try:
        return np.array([_number(value) for value in rows], dtype=np.float64)
    except (TypeError, ValueError):
        for row, value in enumerate(rows):
            try:
                np.array(_number(value), dtype=np.float64)
            except (TypeError, ValueError):
                raise InputError(f"row {row} of the {what} is {value!r:.{SHOWN}}, which is no number: correct it"
                                 ) from None  # fmt: skip
        raise InputError(f"rows of the {what} differ in length: give as many numbers in each") from None


def _number(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_number(part) for part in value]
    if isinstance(value, Tensor):
        return value.detach().cpu().double().numpy()
    return float("nan") if is_missing(value) else value


def integers_of(given: Any, what: str = "numbers") -> Int64[Tensor, " n"]:
    """Whole numbers as a tensor on the CPU; True counts as 1.

    Raises:
        InputError: a value is not a whole number; names its row, from 0.
    """
    if isinstance(given, Tensor) and given.ndim == 1 and not given.is_floating_point():
        return given.detach().cpu().long()
    values = by_position(given, what)
    for row, value in enumerate(values):
        if not (isinstance(value, int) or (isinstance(value, float) and value.is_integer())):
            raise InputError(f"row {row} of the {what} is {value!r:.{SHOWN}}, which is no whole number: correct it")
    return torch.tensor([int(value) for value in values], dtype=torch.int64)


def flags_of(given: Any, what: str = "flags") -> Bool[Tensor, ...]:
    """Values that are true or false, or 1 or 0, as booleans on the CPU.

    Raises:
        InputError: a value is missing or something else; names its row, from 0.
    """
    found = numbers_of(given, what)
    wrong = np.argwhere((found != 0) & (found != 1))
    if len(wrong):
        raise InputError(
            f"row {wrong[0][0]} of the {what} holds {found[tuple(wrong[0])]:g}: give true or false for each"
        )
    return torch.from_numpy(found.astype(bool))


def positions_of(given: Any, what: str = "positions") -> Int64[Tensor, " n"]:
    """Positions from 0 as a tensor on the CPU; a mask of booleans stands for the places that are true.

    Raises:
        InputError: as `integers_of`.
    """
    given = given if isinstance(given, Tensor) else by_position(given, what)
    dtypes = {given.dtype} if isinstance(given, Tensor) else {type(value) for value in given}
    found = integers_of(given, what)
    return found.nonzero()[:, 0] if dtypes in ({torch.bool}, {bool}) else found
