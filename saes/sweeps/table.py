"""The table of a sweep as cells, aligned text and HTML, from its rows alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...lab.evidence import mark
from ...lab.score_names import SCORES, null_label, score_label

SHOWN = ("l0", "fvu", "ce_recovered_zero", "kl", "dead")
"""Scores that are shown, where they are measured; their intervals stand beside them."""
BESIDE = "fvu"
"""The score whose nulls are shown."""
TRAINED = {"train_fvu": "FVU in training", "train_l0": "L0 in training", "train_dead": "Dead in training"}
"""Metrics that are shown of members that were not measured, with their headings."""

Row = Mapping[str, Any]


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """A heading and a line a member: its name, the settings in which members differ, its scores and nulls."""
    scores = [name for name in SHOWN if any(row.get(name) is not None for row in rows)]
    settings = dict.fromkeys(key for row in rows for key in list(row)[: list(row).index("train_fvu")])
    differing = [key for key in settings if key == "name" or len({str(row.get(key)) for row in rows}) > 1]
    trained = [] if scores else list(TRAINED)
    headings = [*(TRAINED[name] for name in trained), *map(score_label, scores)]
    lines = [[*differing, *headings, *([f"nulls of {score_label(BESIDE)}"] if scores else [])]]
    for row in rows:
        line = [_text(row.get(key)) for key in (*differing, *trained)]
        line += [_with_interval(row, score) for score in scores]
        lines.append([*line, *([_nulls(row)] if scores else [])])
    return lines


def _nulls(row: Row) -> str:
    nulls = _nulls_of(row, BESIDE).items()
    return ", ".join(f"{null_label(name)} {'not measured' if x is None else f'{x:.3g}'}" for name, x in nulls)


def _nulls_of(row: Row, score: str) -> dict[str, float | None]:
    """The nulls of a score by name; None for those that could not be measured."""
    start = f"{score}_null_"
    return {key.removeprefix(start): value for key, value in row.items() if key.startswith(start)}


def _with_interval(row: Row, score: str) -> str:
    low, high = row.get(f"{score}_low"), row.get(f"{score}_high")
    spread = f" [{_text(low)}, {_text(high)}]" if low is not None and low != high else ""
    name = SCORES[score]
    marked = mark(row.get(score), _nulls_of(row, score), name.better, (low, high)) if name.judged else ""
    return _text(row.get(score)) + spread + marked


def _text(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
