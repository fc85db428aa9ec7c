"""Labelled texts for `monosem probe`: JSON lines, a table, or a data set of sae-probes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..lab.errors import InputError, unknown
from ..lab.sequences import is_missing, require_whole
from ..lab.text.documents import field_of
from ..lab.text.files import DELIMITERS, LINES, existing, path_and_field, read_records
from .labels import Labels, classes_of, is_label
from .tasks.datasets import load_dataset

FIELDS = ("text", "label", "group")
"""What fields are called unless `#` says otherwise."""
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


class TextsToProbe(NamedTuple):
    """Texts, each with its label."""

    name: str
    texts: list[str]
    labels: Labels
    dropped: int = 0
    """Records left out because their label or their group is missing."""


class _Unit(NamedTuple):
    """A text with its label and its group."""

    where: str
    text: str
    label: Any
    group: Any


def open_texts(
    form: str, numbers: bool = False, limit: int | None = None, seed: int = 0, *, drop_missing: bool = False
) -> TextsToProbe:
    """The texts that a form names: `sae-probes:NAME`, or a .jsonl, .csv or .tsv file with `#text,label[,group]`.

    All values of a table are text; its labels are numbers if every one of them is written as a number.

    Args:
        numbers: labels are numbers to predict.
        limit: of texts: the first of a file, drawn half and half of a data set's classes.
        drop_missing: leave out records whose label or group is missing, and count them.

    Raises:
        InputError: a form or a file that cannot be read, a line without a field, or labels that cannot be learned.
    """
    if limit is not None and limit < 2:
        raise InputError(f"a probe needs more than {limit} texts: give a larger --texts")
    scheme, colon, name = form.partition(":")
    if scheme == "sae-probes" and colon:
        data = load_dataset(name)
        data = data if limit is None else data.take(limit, seed)
        told = [data.classes[label] for label in data.labels]
        return TextsToProbe(form, data.texts, Labels.of(told, groups=data.texts))
    units, dropped = _units(form, numbers, limit, drop_missing)
    labels, groups = [unit.label for unit in units], [unit.group for unit in units]
    if numbers:
        return TextsToProbe(form, [unit.text for unit in units], Labels.numbers(labels, groups=groups), dropped)
    classes_of(labels, lambda row: units[row].where)  # refused here, the line is named
    return TextsToProbe(form, [unit.text for unit in units], Labels.of(labels, groups=groups), dropped)


def _units(form: str, numbers: bool, limit: int | None, drop_missing: bool) -> tuple[list[_Unit], int]:
    """The texts of a file, and the number of records left out."""
    kind, colon, rest = form.partition(":")
    kind, rest = (kind, rest) if colon and kind in (*LINES, *DELIMITERS) else ("", form)
    path, named = path_and_field(rest)
    kind = kind or path.rpartition(".")[2].lower()
    if kind not in (*LINES, *DELIMITERS):
        forms = ["sae-probes:NAME", *(f"FILE.{name}#text,label" for name in ("jsonl", "csv", "tsv"))]
        raise unknown("form of labelled texts", form, forms)
    found = existing(path, "file of labelled texts")
    fields = [part.strip() for part in named.split(",")] if named else list(FIELDS[:2])
    if not 2 <= len(fields) <= 3 or not all(fields):
        raise InputError(
            f"after '#' come the fields of text and label, and of the group if there is one; got {named!r}"
        )
    units: list[_Unit] = []
    dropped = 0
    for where, row in read_records(found, kind):
        if limit is not None and len(units) == limit:
            break
        unit = _unit(row, fields, where)
        if is_label(unit.label) and not is_missing(unit.group):
            units.append(unit)
        elif drop_missing:
            dropped += 1
        else:
            raise InputError(
                f"{where} has the label {unit.label!r:.40} in group {unit.group!r:.40}: give a word or a number, or "
                "leave out lines without (--drop-missing)"
            )
    if not units:
        raise InputError(f"{path} holds no text: give one line for each, with fields {', '.join(fields)}")
    if kind in DELIMITERS and all(NUMBER.fullmatch(unit.label.strip()) for unit in units):
        units = [unit._replace(label=float(unit.label)) for unit in units]
    return [unit._replace(label=_number(unit)) for unit in units] if numbers else units, dropped


def _unit(row: Any, fields: Sequence[str], where: str) -> _Unit:
    text, label, *group = (field_of(row, field, where, "name them as FILE#text,label") for field in fields)
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{where}: field {fields[0]!r} holds {text!r:.40}, which is no text to read")
    own = (str(group[0]) if isinstance(group[0], Mapping) else group[0]) if group else text
    return _Unit(where, require_whole(text, f"{where}: field {fields[0]!r}"), label, own)


def _number(unit: _Unit) -> float:
    try:
        return float(unit.label)
    except ValueError:
        raise InputError(
            f"{unit.where} has the label {unit.label!r:.40}, which is no number: leave --numbers out"
        ) from None
