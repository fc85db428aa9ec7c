"""Labels: missing ones never become classes, equal numbers are one class, and files say which line is at fault."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from monosem.lab.errors import InputError
from monosem.probes.fitting.sparse import sparse_probe
from monosem.probes.labelled_files import open_texts
from monosem.probes.labels import Labels, labelled

NAN = float("nan")
MISSING = {"nan": NAN, "None": None, "NA": pd.NA, "NaT": pd.NaT, "inf": np.inf, "empty text": "", "a list": ["a"]}
HELD: dict[str, Callable[[list[Any]], Any]] = {
    "list": list,
    "objects": lambda values: np.fromiter(values, dtype=object, count=len(values)),
    "series": lambda values: pd.Series(values, dtype=object, index=range(len(values), 0, -1)),
}


def by_labels(values: Any) -> Any:
    return Labels.of(values)


def by_sparse_probe(values: Any) -> Any:
    rows = torch.randn(len(values), 4, generator=torch.Generator().manual_seed(0))
    return sparse_probe(rows, rows, values)


@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("missing", MISSING)
@pytest.mark.parametrize("use", [by_labels, by_sparse_probe])
def test_a_missing_label_is_refused_with_its_row(use: Callable[[Any], Any], missing: str, held: str) -> None:
    values = ["sea", "land"] * 10 + [MISSING[missing]] * 6
    with pytest.raises(InputError, match=r"row 20 of the labels is missing or cannot be used .*, 6 of 26 in all"):
        use(HELD[held](values))


@pytest.mark.parametrize(
    "values",
    [
        pd.Series(["a", "b"] * 6 + [None]), pd.Series([1, 2] * 6 + [None], dtype="Int64"),
        pd.Series(["a", "b"] * 6 + [None], dtype="category"), pd.Series([True, False] * 6 + [None], dtype="boolean"),
        np.array([1.0, 2.0] * 6 + [NAN]), torch.tensor([1.0, 2.0] * 6 + [NAN]),
        pd.to_datetime(pd.Series(["2020-01-01", "2021-01-01"] * 6 + [None])),
    ],
    ids=lambda values: f"{type(values).__name__} {values.dtype}",
)  # fmt: skip
def test_missing_values_of_typed_columns_are_refused(values: Any) -> None:
    with pytest.raises(InputError, match="row 12 of the labels is missing or cannot be used"):
        Labels.of(values)
    kept = labelled(values)
    assert kept.tolist() == list(range(12)) and len(Labels.of(list(values)[:12]).classes) == 2


def test_equal_numbers_are_one_class_and_sorted_as_numbers() -> None:
    labels = Labels.of([10, 9.0, 9, 10.0] * 4 + [True, 1, np.int8(1), torch.tensor(1.0), np.float32(1)])
    assert labels.classes == ("1", "9", "10") and labels.counts.tolist() == [5, 8, 8]
    assert Labels.of([0.5, 1] * 5).classes == ("0.5", "1")
    assert Labels.of([True, False] * 5).classes == ("False", "True")
    assert Labels.of(["nan", "None"] * 5).classes == ("None", "nan")  # texts like any other


def test_text_and_numbers_among_labels_are_refused() -> None:
    with pytest.raises(InputError, match=r"mix text \('1' in row 2\) and numbers \(1 in row 0\)"):
        Labels.of([1, 2, "1", 2] * 5)


def test_missing_groups_and_numbers_are_refused_with_their_row() -> None:
    with pytest.raises(InputError, match=r"row 1 of the groups is missing or cannot be used \(nan\), 5 of 10"):
        Labels.of(["a", "b"] * 5, groups=["x", NAN] * 5)
    for value in (None, NAN, pd.NA, np.inf):
        with pytest.raises(InputError, match="row 3 of the numbers to predict is missing"):
            Labels.numbers([1.0, 2.0, 3.0, value, 4.0, 5.0])
    with pytest.raises(InputError, match="row 1 of the numbers to predict is 'two', which is no number"):
        Labels.numbers([1.0, "two", 3.0])
    assert Labels.of([0, 1] * 5, groups=[1, 1.0, 2, 2.0, 3, 3, 4, 4, 5, 5]).groups.tolist() == [
        0,
        0,
        1,
        1,
        2,
        2,
        3,
        3,
        4,
        4,
    ]


def write(path: Path, labels: list[Any], groups: list[Any] | None = None) -> Path:
    rows = [{"text": f"text {row}", "label": label} for row, label in enumerate(labels)]
    for row, group in zip(rows, groups or [], strict=False):
        row["group"] = group
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_numbers_in_json_lines_are_classes_by_value(tmp_path: Path) -> None:
    found = open_texts(str(write(tmp_path / "a.jsonl", [10, 9.0, 9, 10.0] * 5)))
    assert found.labels.classes == ("9", "10") and found.labels.counts.tolist() == [10, 10]
    with pytest.raises(InputError, match=r"mix text \('1' in line 2 of .*b.jsonl\) and numbers \(1 in line 1 of"):
        open_texts(str(write(tmp_path / "b.jsonl", [1, "1"] * 10)))


def test_labels_of_a_table_are_numbers_if_all_are_written_so(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"t{i},{('1', '1.0', '2')[i % 3]}\n" for i in range(18)))
    assert open_texts(f"{tmp_path}/a.csv").labels.counts.tolist() == [12, 6]
    (tmp_path / "b.csv").write_text("text,label\n" + "".join(f"t{i},{('1', '1.0', 'x')[i % 3]}\n" for i in range(18)))
    assert open_texts(f"{tmp_path}/b.csv").labels.classes == ("1", "1.0", "x")


@pytest.mark.parametrize("numbers", [False, True])
@pytest.mark.parametrize("missing", [None, NAN, ""])
def test_lines_without_a_label_are_refused_or_dropped_and_counted(missing: Any, numbers: bool, tmp_path: Path) -> None:
    path = str(write(tmp_path / "a.jsonl", [1, 2] * 8 + [missing] + [1, 2] + [missing]))
    with pytest.raises(InputError, match=r"line 17 of .* has the label .*--drop-missing"):
        open_texts(path, numbers)
    found = open_texts(path, numbers, drop_missing=True)
    assert found.dropped == 2 and len(found.texts) == len(found.labels) == 18 and found.texts[16] == "text 17"


def test_lines_without_a_group_are_refused_or_dropped_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [1, 2] * 8, [*range(15), None])
    with pytest.raises(InputError, match=r"line 16 of .* in group None"):
        open_texts(f"{path}#text,label,group")
    assert open_texts(f"{path}#text,label,group", drop_missing=True).dropped == 1
