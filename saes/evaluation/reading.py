"""`EvaluationRows`: the rows of one evaluation, as a consumer: some to fit nulls on, then those that are measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...lab.errors import InputError
from ...lab.models.sites import Site
from ...lab.storage import State
from ...lab.streams.activation_stream import Batch
from .reconstruction import Reconstruction

Begin = Callable[[Float[Tensor, "rows d_in"] | None, Float[Tensor, "rows d_out"] | None], Mapping[str, Reconstruction]]
"""From the rows to fit nulls on (None where none are fitted) and their targets to everything that is measured."""


class EvaluationRows:
    """Fits nulls on the first rows of a corpus, then steps measures on rows of the documents that follow.

    It chooses rows by norm limits of its own, so that evaluations with different limits share one stream that serves
    every row.

    Args:
        sources: the sites that are read, and `targets` those that are predicted.
        limits: the largest norm of a row at each of these; None keeps all.
        fit_rows: rows to fit nulls on; 0 fits none, and measures begin with the first document.
        begin: makes the measures; called once, when the rows are there.
        dtype: of the activations, and `device` where measures take them.
        keep: keep the fitted rows in `state_dict`, which a continued read needs.
        name: of the consumer.
    """

    kind = "measures"
    needs_text = True

    def __init__(
        self,
        sources: Sequence[Site],
        targets: Sequence[Site],
        limits: Mapping[Site, float | None],
        fit_rows: int,
        begin: Begin,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
        keep: bool = False,
        name: str = "rows",
    ) -> None:
        self.sources, self.targets, self.limits = tuple(sources), tuple(targets), dict(limits)
        self.sites, self.name = tuple(self.limits), name
        self.start: State | None = None
        """The corpus's state where the measured documents begin."""
        self.fitted = torch.empty(0, dtype=torch.int64)
        """Documents that nulls were fitted on; one of them may go on after `start`."""
        self.counts = {"dropped_special": 0, "dropped_norm": 0}
        """Positions of the measured part that gave no row, and why."""
        self.measures: dict[str, Reconstruction] = {}
        self._fit_rows, self._begin, self._keep = fit_rows, begin, keep
        self._dtype, self._device = dtype, torch.device(device)
        self._fit: list[Batch] = []
        if not fit_rows:
            self.measures = dict(begin(None, None))

    @property
    def fit_rows(self) -> int:
        """Rows read so far to fit nulls on."""
        return sum(len(batch.origin) for batch in self._fit)

    @property
    def done(self) -> bool:
        """True once the first measure has its rows."""
        return bool(self.measures) and self._first.done

    @property
    def progress(self) -> tuple[int, int | None]:
        """Rows measured, and rows asked for."""
        return self._first.progress if self.measures else (0, None)

    @property
    def _first(self) -> Reconstruction:
        return next(iter(self.measures.values()))

    def step(self, batch: Batch) -> None:
        """Take the rows of one token batch, to fit on or to measure."""
        assert batch.source is not None, "served by a TokenStream"
        rows = self._within_limits(batch)
        if not self.measures:
            self._fit.append(rows)
            if self.fit_rows >= self._fit_rows:
                self.start = batch.source.position
                self._fit_nulls()
            return
        fresh = ~torch.isin(rows.origin[:, 0], self.fitted)
        acts = {site: x[fresh.to(x.device)] for site, x in rows.acts.items()}
        for measure in self.measures.values():
            measure.step(Batch(acts, rows.origin[fresh]))
        self.counts["dropped_special"] += batch.source.batch.tokens.numel() - len(batch.origin)
        self.counts["dropped_norm"] += len(batch.origin) - len(rows.origin)

    def merge(self, other: EvaluationRows) -> None:
        """Add what the same measures saw of later rows.

        Nulls are fitted once, on the first rows of all: measure later rows with the measures made there (`fit_rows=0`)
        and with the same `fitted`.

        Raises:
            InputError: the other reads other sites, has other measures, or left out other documents.
        """
        if (self.limits, list(self.measures)) != (other.limits, list(other.measures)) or not torch.equal(
            self.fitted, other.fitted
        ):
            raise InputError(f"{other.name} and {self.name} measure different dictionaries, nulls or documents: fit "
                             "the nulls once, and measure every part of the corpus with them")  # fmt: skip
        for key, measure in self.measures.items():
            measure.merge(other.measures[key])
        self.counts = {reason: count + other.counts[reason] for reason, count in self.counts.items()}

    def _within_limits(self, batch: Batch) -> Batch:
        acts = {site: batch.acts[site].to(self._dtype) for site in self.sites}
        too_long = torch.zeros(len(batch.origin), dtype=torch.bool)
        for site, limit in self.limits.items():
            if limit is not None:
                too_long |= (torch.linalg.vector_norm(acts[site], dim=-1, dtype=torch.float32) > limit).cpu()
        keep = (~too_long).nonzero().squeeze(1)
        chosen = {site: x.index_select(0, keep.to(x.device)).to(self._device) for site, x in acts.items()}
        return Batch(chosen, batch.origin[keep])

    def _fit_nulls(self) -> None:
        """Make the measures from the rows that are there; their documents are left out of what follows."""
        self.fitted = torch.cat([batch.origin[:, 0] for batch in self._fit]).unique()
        x, y = (self._columns(sites) if sites else None for sites in (self.sources, self.targets))
        self.measures = dict(self._begin(x, y))
        if not self._keep:
            self._fit = []

    def _columns(self, sites: Sequence[Site]) -> Float[Tensor, "rows d"]:
        """The activations of several sites side by side, fp32."""
        return torch.cat([torch.cat([batch.acts[site] for batch in self._fit]) for site in sites], 1).float()

    def require_rows(self, corpus: Any) -> None:
        """Refuse to go on without rows.

        Raises:
            InputError: the corpus ended before the nulls were fitted, or before a row was measured.
        """
        if not self.measures:
            raise InputError(
                f"{corpus!r} ends after {self.fit_rows} usable rows, and fitting the nulls takes {self._fit_rows} of "
                "its own: give more text, a smaller fit_tokens, or nulls fitted elsewhere"
            )
        if not self._first.rows:
            raise InputError(f"{corpus!r} has no usable row left to measure: give more text, or fewer fit_tokens")

    def metrics(self) -> dict[str, int | float]:
        """Rows measured so far."""
        return {"rows": self._first.rows if self.measures else 0}

    def state_dict(self) -> State:
        """The rows that nulls are fitted on, and the sums of every measure."""
        fit = {}
        if self._fit:
            fit = {"origin": torch.cat([batch.origin for batch in self._fit])}
            fit |= {str(site): torch.cat([batch.acts[site] for batch in self._fit]) for site in self.sites}
        measures = {key: measure.state_dict() for key, measure in self.measures.items()}
        return {"fit": fit, "start": self.start, "counts": dict(self.counts), "measures": measures}

    def load_state_dict(self, state: State) -> None:
        """Continue where `state_dict` was taken: nulls are fitted again, on the same rows."""
        if fit := state.get("fit", {}):
            acts = {site: fit[str(site)].to(self._device) for site in self.sites}
            self._fit = [Batch(acts, fit["origin"])]
        self.start, self.counts = state["start"], dict(state["counts"])
        if states := state.get("measures", {}):
            if self._fit:
                self._fit_nulls()
            for key, measure in self.measures.items():
                measure.load_state_dict(states[key])

    def save(self, folder: Path) -> None:
        """Write nothing: the evaluation is made of the measures."""
