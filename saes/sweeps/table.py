"""The table of a sweep as cells, aligned text and HTML, from its rows alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SHOWN = ("l0", "fvu", "ce_recovered_zero", "kl", "dead")
"""Scores that are shown, where they are measured; their intervals stand beside them."""
BESIDE = "fvu"
"""The score whose nulls are shown."""
TRAINED = ("train_fvu", "train_l0", "train_dead")
"""What is shown of members that were not measured."""

Row = Mapping[str, Any]


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """A heading and a line a member: its name, the settings in which members differ, its scores and nulls."""
    scores = [name for name in SHOWN if any(row.get(name) is not None for row in rows)]
    settings = dict.fromkeys(key for row in rows for key in list(row)[: list(row).index(TRAINED[0])])
    differing = [key for key in settings if key == "name" or len({str(row.get(key)) for row in rows}) > 1]
    told = [] if scores else list(TRAINED)
    found = [[*differing, *told, *scores, *([f"nulls of {BESIDE}"] if scores else [])]]
    for row in rows:
        line = [_text(row.get(key)) for key in (*differing, *told)]
        line += [_with_interval(row, score) for score in scores]
        found.append([*line, *([_nulls(row)] if scores else [])])
    return found


def _nulls(row: Row) -> str:
    start = f"{BESIDE}_null_"
    found = {key.removeprefix(start): value for key, value in row.items() if key.startswith(start)}
    return ", ".join(f"{name} {value:.3g}" for name, value in found.items() if value is not None)


def _with_interval(row: Row, score: str) -> str:
    low, high = row.get(f"{score}_low"), row.get(f"{score}_high")
    spread = f" [{_text(low)}, {_text(high)}]" if low is not None and low != high else ""
    return _text(row.get(score)) + spread


def _text(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
