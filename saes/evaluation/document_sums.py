"""`DocumentSums`: fp64 sums of named columns, kept apart by document so that ratios can be resampled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ...lab.evidence import bootstrap
from ...lab.storage import State

UNITS = 2048
"""Rows of a table. Each document has its own; from this many documents on, several share one."""

Formula = Callable[[Mapping[str, np.ndarray]], float]
"""From summed columns to a score."""


class DocumentSums:
    """Sums of columns, [rows] or [rows, width] at a time, over tokens of each document.

    A bootstrap unit is one document, or a fixed group of documents where there are more than `UNITS`.
    """

    def __init__(self) -> None:
        self._unit_of: dict[int, int] = {}
        self._tables: dict[str, Tensor] = {}

    def __len__(self) -> int:
        """Documents seen."""
        return len(self._unit_of)

    def add(self, doc: Int[Tensor, " rows"], columns: Mapping[str, Tensor]) -> None:
        """Add one value (or vector) a row to the row's document, in every column."""
        documents, place = doc.cpu().unique(return_inverse=True)
        units = [self._unit_of.setdefault(d, len(self._unit_of) % UNITS) for d in documents.tolist()]
        index = torch.tensor(units, dtype=torch.int64)[place]
        for name, values in columns.items():
            table = self._table(name, values)
            table.index_add_(0, index.to(values.device), values.double())

    def _table(self, name: str, values: Tensor) -> Tensor:
        needed, shape = min(len(self), UNITS), values.shape[1:]
        table = self._tables.get(name)
        if table is None:
            table = torch.zeros(0, *shape, dtype=torch.float64, device=values.device)
        if len(table) < needed:
            room = min(max(needed, 2 * len(table)), UNITS) - len(table)
            table = torch.cat([table, table.new_zeros(room, *shape)])
        self._tables[name] = table = table.to(values.device)
        return table

    @property
    def total(self) -> Mapping[str, np.ndarray]:
        """Every column summed over all documents."""
        return _Weighted(self._numpy(), np.ones(self._units))

    def interval(self, formula: Formula, *, seed: int = 0) -> tuple[float, float] | None:
        """95 % bootstrap interval of `formula` over documents; None for fewer than two."""
        tables = self._numpy()
        return bootstrap(lambda weights: formula(_Weighted(tables, weights)), self._units, seed=seed)

    @property
    def _units(self) -> int:
        return min(len(self), UNITS)

    def _numpy(self) -> dict[str, np.ndarray]:
        """The tables, units by their first document, so that the order of reading does not decide a draw."""
        order = np.argsort(list(self._unit_of)[: self._units])
        return {name: table.cpu().numpy()[order] for name, table in self._tables.items()}

    def merge(self, other: DocumentSums) -> None:
        """Add the sums of documents that were read after these; `other` stays as it is.

        Documents and their groups are those of one read of everything. Only where `other` has more than `UNITS`
        documents and shares some with these, groups differ: totals stay the same and intervals nearly so.
        """
        if not len(other):
            return
        theirs = list(other._unit_of)
        if len(other) <= UNITS:
            for document in theirs:
                self._unit_of.setdefault(document, len(self._unit_of) % UNITS)
            units = [self._unit_of[document] for document in theirs]
        else:
            first = len(self._unit_of)
            units = [(first + unit) % UNITS for unit in range(UNITS)]
            for document in theirs:
                self._unit_of.setdefault(document, len(self._unit_of) % UNITS)
        index = torch.tensor(units, dtype=torch.int64)
        for name, table in other._tables.items():
            values = table[: other._units]
            self._table(name, values).index_add_(0, index.to(values.device), values)

    def state_dict(self) -> State:
        """The documents in order of appearance, and the tables."""
        return {
            "documents": torch.tensor(list(self._unit_of), dtype=torch.int64),
            "tables": {name: table[: self._units].clone() for name, table in self._tables.items()},
        }

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` gave."""
        self._unit_of = {doc: i % UNITS for i, doc in enumerate(state["documents"].tolist())}
        self._tables = {name: table.clone() for name, table in state.get("tables", {}).items()}


class _Weighted(Mapping[str, np.ndarray]):
    """Weighted sums of the tables, each computed when it is asked for: most formulas read two or three."""

    def __init__(self, tables: Mapping[str, np.ndarray], weights: np.ndarray) -> None:
        self._tables, self._weights = tables, weights

    def __getitem__(self, name: str) -> np.ndarray:
        return self._weights @ self._tables[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tables)

    def __len__(self) -> int:
        return len(self._tables)


def ratio(numerator: float | np.ndarray, denominator: float | np.ndarray) -> float:
    """Their quotient; nan where the denominator is zero."""
    return float(numerator) / float(denominator) if denominator else float("nan")
