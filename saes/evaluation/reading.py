"""One read of held-out text for an evaluation: rows that nulls are fitted on, then what is measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from ...lab.errors import InputError
from ...lab.models.hooked_model import HookedModel
from ...lab.models.pairs import ModelPair
from ...lab.models.sites import Site
from ...lab.streams.activation_stream import Batch
from ...lab.streams.harvest import NO_LIMIT, Chunk, Harvest
from ...lab.text.corpus import Corpus
from ...lab.text.packing import TokenBatch
from ..dictionary import Dictionary
from .clt.replacement import replace_outputs
from .reconstruction import Reconstruction
from .splicing import SpliceLosses, splice

if TYPE_CHECKING:
    from ..architectures.clt.cross_layer import CrossLayer


@dataclass
class Reading:
    """One read of the corpus: first the rows that nulls are fitted on, then the rows that are measured."""

    model: HookedModel | ModelPair
    corpus: Corpus
    limits: dict[Site, float | None]
    """The sites that are read, those a transcoder predicts last, and the largest norm of a row at each."""
    start: dict[str, Any] | None = None
    """The corpus's state where the measured documents begin."""
    fitted: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    """Documents that nulls were fitted on; one of them may go on after `start`."""
    counts: dict[str, int] = field(default_factory=lambda: {"dropped_special": 0, "dropped_norm": 0})
    """Positions read by `feed` that gave no row, and why."""

    def _chunks(self) -> Iterator[Chunk]:
        model = self.model
        harvest = Harvest(model, self.corpus, tuple(self.limits), model.dtype, torch.device(model.device), epochs=1)
        limits = {site: NO_LIMIT if limit is None else limit for site, limit in self.limits.items()}
        return harvest.chunks(self.start, limits)

    def first_rows(
        self, n: int, sources: Sequence[Site], targets: Sequence[Site]
    ) -> tuple[Float[Tensor, "rows d_in"], Float[Tensor, "rows d_out"] | None]:
        """At least n rows, unless the corpus ends, and their targets; their documents are left out of what follows."""
        acts, documents, rows = [], [], 0
        for chunk in self._chunks():
            acts.append(chunk.acts)
            documents.append(chunk.origin[:, 0])
            self.start = chunk.state
            rows += len(chunk.origin)
            if rows >= n:
                self.fitted = torch.cat(documents).unique()
                return _columns(acts, sources), _columns(acts, targets) if targets else None
        raise InputError(
            f"{self.corpus!r} ends after {rows} usable rows, and fitting the nulls takes {n} of its own: "
            "give more text, a smaller fit_tokens, or nulls fitted elsewhere"
        )

    def feed(self, consumers: Sequence[Reconstruction], progress: bool) -> None:
        """Step every consumer on every chunk until all are done or the corpus ends."""
        first = consumers[0]
        with tqdm(total=first.limit, unit="tok", desc="reconstruct", disable=not progress) as bar:
            for chunk in self._chunks():
                fresh = ~torch.isin(chunk.origin[:, 0], self.fitted)
                acts = {site: rows[fresh.to(rows.device)] for site, rows in chunk.acts.items()}
                batch = Batch(acts, chunk.origin[fresh])
                for consumer in consumers:
                    consumer.step(batch)
                self.counts["dropped_special"] += chunk.special
                self.counts["dropped_norm"] += chunk.tokens - chunk.special - len(chunk.origin)
                bar.update(first.rows - bar.n)
                if first.done:
                    return
        if not first.rows:
            raise InputError(f"{self.corpus!r} has no usable row left to measure: give more text, or fewer fit_tokens")

    def splice(
        self,
        model: HookedModel,
        dictionaries: Mapping[str, Dictionary],
        mean: Float[Tensor, " d"],
        tokens: int,
        progress: bool,
    ) -> SpliceLosses:
        """Losses with each dictionary spliced in at the last site, from what it reads at the first."""
        *read, site = self.limits
        return splice(
            model, self.batches(), site, dictionaries, mean, tokens=tokens, norm_limit=self.limits[site],
            reads={source: self.limits[source] for source in read}, progress=progress,
        )  # fmt: skip

    def replace(
        self, model: HookedModel, dictionaries: Mapping[str, CrossLayer], mean: Float[Tensor, " d_out"], tokens: int,
        progress: bool,
    ) -> SpliceLosses:  # fmt: skip
        """Losses with every output that a cross-layer transcoder predicts replaced at once."""
        return replace_outputs(model, self.batches(), dictionaries, mean, tokens=tokens, progress=progress)

    def batches(self) -> Iterator[TokenBatch]:
        """The measured part again, as tokens; what nulls were fitted on is unusable, or left out by the row."""
        for batch, _ in self.corpus.iterate(self.start, epochs=1):
            usable = batch.usable & ~torch.isin(batch.doc, self.fitted)
            rows = usable.any(1)
            if rows.any():
                yield TokenBatch(*(field[rows] for field in batch._replace(usable=usable)))


def _columns(chunks: Sequence[Mapping[Site, Tensor]], sites: Sequence[Site]) -> Float[Tensor, "rows d"]:
    """The activations of several sites side by side, fp32."""
    return torch.cat([torch.cat([acts[site] for acts in chunks]) for site in sites], 1).float()
