"""`AtomsReport`: what was found about every dictionary, as data and as a table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ....lab.errors import unknown
from ....lab.evidence import Evidence
from ...evaluation.results import flat
from .coherence import Coherence
from .inner_product import AtomicInnerProduct
from .uniqueness import Threshold, Uniqueness


@dataclass(frozen=True)
class AtomsOf:
    """The report on one dictionary."""

    name: str
    about: str
    """The dictionary in one line."""
    scores: dict[str, Evidence]
    """q_star, q_star_tenth, r2 with its variants (_seen, _with_sinks, ...), l0 and coherence quantiles."""
    verdict: Uniqueness
    threshold: Threshold | None
    """At the largest coherence, L0 and range of magnitudes; None where nothing was ever active."""
    coherence: Coherence
    trained_rows: int | None
    """Rows that the dictionary was trained on, by its provenance; None if it does not tell."""
    dead: float
    """Share of atoms never in use over the fresh rows."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "name": self.name, "dictionary": self.about, "trained_rows": self.trained_rows,
            "unique_by_maximum": self.verdict.by_maximum, "restricted_isometry": self.verdict.isometry,
            "coherence_limit": self.verdict.limit,
            "threshold": None if self.threshold is None else {**self.threshold._asdict(),
                                                             "feasible": self.threshold.feasible},
            "dead": self.dead, **flat(self.scores), "coherence": self.coherence.to_json(),
        }  # fmt: skip


@dataclass(frozen=True)
class AtomsReport:
    """Every dictionary's report, neurons first, and what they were measured with."""

    subjects: list[AtomsOf]
    site: str
    held_out: str
    product: AtomicInnerProduct
    counts: dict[str, int] = field(default_factory=dict)
    """Rows of the inner product, fresh, seen, and with massive activations."""

    def __getitem__(self, name: str) -> AtomsOf:
        for subject in self.subjects:
            if subject.name == name:
                return subject
        raise unknown("dictionary in the report", name, [subject.name for subject in self.subjects])

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "site": self.site, "held_out": self.held_out, "counts": self.counts, "ridge": self.product.ridge,
            "condition": self.product.condition, "subjects": [subject.to_json() for subject in self.subjects],
        }  # fmt: skip

    def table(self) -> list[list[str]]:
        """A heading and a line a dictionary; nulls in brackets, by `LEGEND`."""
        return [list(COLUMNS), *(_line(subject) for subject in self.subjects)]


COLUMNS = (
    "dictionary", "n", "rows trained", "L0", "R2 fresh", "R2 seen", "R2 refit", "R2 by dimension", "R2 whitened",
    "R2 with sinks", "q*", "q* of a tenth", "max coherence", "unique", "threshold",
)  # fmt: skip
LEGEND = (
    "In brackets: nulls. Of R2: untrained, pca, neurons with as many codes, and the rotated dictionary. Of q* and "
    "coherence: the rotated atoms, random atoms with the data's covariance, and random atoms under their own metric."
)


def _line(subject: AtomsOf) -> list[str]:
    def cell(name: str) -> str:
        evidence = subject.scores.get(name)
        if evidence is None:
            return ""
        nulls = " ".join(f"{value:.3f}" for value in evidence.nulls.values())
        marked = evidence.mark()
        return f"{evidence.value:.3f}" + (f" ({nulls})" if nulls else "") + marked

    shown = [cell(name) for name in ("r2", "r2_seen", "r2_refit", "r2_dimension", "r2_whitened", "r2_with_sinks",
                                     "q_star", "q_star_tenth", "coherence_max")]  # fmt: skip
    rows = "" if subject.trained_rows is None else f"{subject.trained_rows:,}"
    feasible = subject.threshold is not None and subject.threshold.feasible
    verdicts = ["yes" if subject.verdict.by_maximum else "no", "feasible" if feasible else "infeasible"]
    return [
        subject.name,
        str(subject.scores["coherence_max"].n),
        rows,
        f"{subject.scores['l0'].value:.1f}",
        *shown,
        *verdicts,
    ]
