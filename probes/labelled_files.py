"""Labelled texts for `monosem probe`: JSON lines, CSV, or a data set of sae-probes."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..lab.errors import InputError, unknown
from .labels import Labels
from .tasks.datasets import load_dataset

FIELDS = ("text", "label", "group")
"""What fields are called unless `#` says otherwise."""


class TextsToProbe(NamedTuple):
    """Texts, each with its label."""

    name: str
    texts: list[str]
    labels: Labels


def open_texts(form: str, numbers: bool = False, limit: int | None = None, seed: int = 0) -> TextsToProbe:
    """The texts that a form names: `sae-probes:NAME`, `PATH.jsonl` or `PATH.csv`, with `#text,label[,group]`.

    Args:
        numbers: labels are numbers to predict.
        limit: of texts: the first of a file, drawn half and half of a data set's classes.

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
    place, _, named = form.removeprefix("csv:").removeprefix("jsonl:").partition("#")
    path = Path(place)
    reader = (
        "csv" if form.startswith("csv:") else "jsonl" if form.startswith("jsonl:") else path.suffix.lower().lstrip(".")
    )
    if reader not in READERS:
        raise unknown(
            "form of labelled texts", form, ["sae-probes:NAME", "FILE.jsonl#text,label", "FILE.csv#text,label"]
        )
    if not path.is_file():
        raise InputError(f"no such file of labelled texts: {path}")
    fields = [part.strip() for part in named.split(",")] if named else list(FIELDS[:2])
    if not 2 <= len(fields) <= 3 or not all(fields):
        raise InputError(
            f"after '#' come the fields of text and label, and of the group if there is one; got {named!r}"
        )
    texts, labels, groups = [], [], []
    for where, row in READERS[reader](path):
        if limit is not None and len(texts) == limit:
            break
        values = [_value(row, field, where) for field in fields]
        texts.append(_text(values[0], fields[0], where))
        labels.append(_number(values[1], where) if numbers else _label(values[1], where))
        groups.append(str(values[2]) if len(fields) == 3 else texts[-1])
    if not texts:
        raise InputError(f"{path} holds no text: give one line for each, with fields {', '.join(fields)}")
    make = Labels.numbers if numbers else Labels.of
    return TextsToProbe(form, texts, make(labels, groups=groups))


def _json_lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if line.strip():
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise InputError(f"line {number} of {path} is no JSON object: write one for each text")
                yield f"line {number} of {path}", row
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a file of JSON lines: {error}") from None


def _csv(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            for row in reader:
                yield f"line {reader.line_num} of {path}", row
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a CSV file: {error}") from None


READERS: dict[str, Callable[[Path], Iterator[tuple[str, Mapping[str, Any]]]]] = {"jsonl": _json_lines, "csv": _csv}
"""By file name suffix."""


def _value(row: Mapping[str, Any], field: str, where: str) -> Any:
    if row.get(field) is None:
        there = ", ".join(repr(name) for name, value in row.items() if name and value is not None) or "none"
        raise InputError(f"{where} has no field {field!r}: the fields there are {there}; name them as FILE#text,label")
    return row[field]


def _text(value: Any, field: str, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where}: field {field!r} holds {value!r:.40}, which is no text to read")
    return value


def _label(value: Any, where: str) -> str:
    if isinstance(value, dict | list) or value != value or value == "":
        raise InputError(f"{where} has the label {value!r:.40}: give a word or a number, or leave the line out")
    return str(value)


def _number(value: Any, where: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise InputError(f"{where} has the label {value!r:.40}, which is no number: leave --numbers out") from None
