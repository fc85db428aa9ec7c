"""`Evaluation`: the scores of one dictionary, as data first and as a table last."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...lab.errors import unknown
from ...lab.evidence import Evidence
from ...lab.markup import element
from ...lab.storage import write_json

SCHEMA = 1
"""Of the flat JSON form. Keys are only ever added under one number."""


@dataclass(frozen=True)
class Evaluation:
    """Every score an `Evidence`: value, interval over documents, nulls, n. Index it by score name."""

    dictionary: str
    """The evaluated dictionary, in one line."""
    model: str
    """Name of the model."""
    site: str
    """Where in the model."""
    held_out: str
    """A line about the measured documents: source, split and how many."""
    scores: dict[str, Evidence]
    """By name: see `metrics`, `splicing` and `core_metrics_weights`; sparse probing adds its own."""
    counts: dict[str, int] = field(default_factory=dict)
    """Tokens and documents measured, and positions left unedited, by reason."""
    references: dict[str, float] = field(default_factory=dict)
    """Quantities that scores are relative to: total variance a token, and cross-entropy in nats of every variant."""
    histograms: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """Distributions over latents: `density` (see `Reconstruction.density_histogram`)."""
    saebench: dict[str, float] = field(default_factory=dict)
    """SAEBench's own numbers, where they were asked for (see `core_metrics_saebench`)."""

    def __getitem__(self, name: str) -> Evidence:
        if name not in self.scores:
            raise unknown("score", name, self.scores)
        return self.scores[name]

    def to_json(self) -> dict[str, Any]:
        """One flat mapping of JSON values; a number that is not finite becomes None.

        A score `fvu` gives `fvu`, `fvu_low`, `fvu_high`, `fvu_n` and a `fvu_null_NAME` for each null, which is None
        where the null could not be measured; counts
        and references stand under `count_NAME` and `reference_NAME`, SAEBench's numbers under `saebench_NAME`. A
        `histogram_NAME` is the only mapping inside, of lists.
        """
        about = {"schema": SCHEMA, "model": self.model, "site": self.site, "dictionary": self.dictionary,
                 "held_out": self.held_out}  # fmt: skip
        counts = {f"count_{name}": value for name, value in self.counts.items()}
        references = {f"reference_{name}": _finite(value) for name, value in self.references.items()}
        published = {f"saebench_{name}": _finite(value) for name, value in self.saebench.items()}
        histograms = {f"histogram_{name}": histogram for name, histogram in self.histograms.items()}
        return {**about, **flat(self.scores), **references, **counts, **published, **histograms}

    def save(self, path: Path | str) -> Path:
        """Write the flat JSON form."""
        write_json(path, self.to_json())
        return Path(path)

    def table(self) -> list[list[str]]:
        """Rows of cells: score, value, 95 % interval, then every null; the first row is the heading."""
        nulls = list(dict.fromkeys(name for one in self.scores.values() for name in (*one.nulls, *one.missing)))
        rows = [["score", "value", "95 % interval", *nulls]]
        for name, evidence in self.scores.items():
            interval = evidence.interval
            spread = f"{interval[0]:.4g} to {interval[1]:.4g}" if interval else ""
            null_cells = (
                f"{evidence.nulls[null]:.4g}" if null in evidence.nulls
                else "not measured" if null in evidence.missing else "" for null in nulls
            )  # fmt: skip
            rows.append([name, f"{evidence.value:.4g}", spread, *null_cells])
        return rows

    def _footer(self) -> str:
        numbers = [f"{name} {value:,}" for name, value in self.counts.items()]
        numbers += [f"{name} {value:.4g}" for name, value in self.references.items()]
        return "; ".join([*numbers, self.held_out])

    def __repr__(self) -> str:
        rows = self.table()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
        title = f"Evaluation of {self.dictionary} in {self.model}"
        return "\n".join([title, *(line.rstrip() for line in lines), self._footer()])

    def _repr_html_(self) -> str:
        heading, *rows = self.table()
        head = element("tr", *(element("th", cell) for cell in heading))
        body = (element("tr", *(element("td", cell) for cell in row)) for row in rows)
        title = element("caption", f"{self.dictionary} in {self.model}")
        foot = element("tfoot", element("tr", element("td", self._footer(), colspan=len(heading))))
        return element("table", title, element("thead", head), element("tbody", *body), foot)


def flat(scores: Mapping[str, Evidence]) -> dict[str, float | int | None]:
    """Evidence by name as one level of JSON values (see `Evaluation.to_json`)."""
    level: dict[str, float | int | None] = {}
    for name, evidence in scores.items():
        low, high = evidence.interval or (None, None)
        level |= {name: _finite(evidence.value), f"{name}_low": _finite(low), f"{name}_high": _finite(high)}
        level |= {f"{name}_null_{null}": _finite(value) for null, value in evidence.nulls.items()}
        level |= {f"{name}_null_{null}": None for null in evidence.missing}
        level[f"{name}_n"] = evidence.n
    return level


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
