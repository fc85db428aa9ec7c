"""`TokenStream`: batches that keep their text, for consumers that train through the model or read whole texts.

stream = TokenStream(model, corpus, ["resid_post.6"])
for batch in stream:
    batch.acts[site]        # [rows, d]: every usable position of one token batch, in corpus order
    batch.source            # the tokens, where those rows lie, and the model's logits

Rows are not shuffled across batches, since a pass through the model needs whole texts. What reads an
`ActivationStream` reads this as well. The clean pass is run once for all consumers.

`TokenStream.reading(model, corpus, sites)` is the stream to measure on: one pass over the corpus that stops the model
at its last site and serves every token batch, those without a row included; without sites the model does not run.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from jaxtyping import Int64
from torch import Tensor

from ..errors import InputError
from ..models.hooked_model import HookedModel
from ..models.pairs import ModelPair
from ..models.sites import Site
from ..storage import State
from ..text.corpus import Corpus
from ..text.held import HeldText
from ..text.packing import TokenBatch
from .activation_stream import ActivationStream, Batch, ForwardPass
from .harvest import NO_LIMIT, refuse_non_finite, require_tokenwise, usable_tokens


@dataclass(frozen=True)
class TokenStreamConfig:
    """How text is served."""

    batch: int
    """Tokens in a batch, those that give no row included."""
    epochs: int | None = None
    """Passes over the corpus; None goes round forever."""
    max_norm_multiple: float | None = 10.0
    """Multiple of the median norm above which rows are dropped, like that of `StreamConfig`; unused where norm limits
    are given."""
    serves: Literal["passes", "activations"] = "passes"
    """`passes` runs the whole model and serves its logits; `activations` stops at the last site."""


class TokenStream:
    """Model x corpus x sites -> batches of rows with their forward pass; `state_dict` continues it exactly.

    Args:
        sites: where rows are taken. A position that is special, padding, first in its row, or longer than the
            site's limit at any of them, is no row.
        norm_limit: the largest norm at every site, such as a dictionary's own; calibrated as `ActivationStream` does
            if None.
        also: further sites to serve at the same positions, whatever the norm there.
        epochs: passes over the corpus; None goes round forever.
        max_norm_multiple: for the calibration; None keeps every row.

    Raises:
        InputError: no site, or limits for some sites only; while iterating, activations that are not finite.
    """

    def __init__(
        self,
        model: HookedModel,
        corpus: Corpus,
        sites: Sequence[Site | str] | Site | str,
        *,
        norm_limit: Mapping[Site | str, float | None] | None = None,
        also: Sequence[Site | str] = (),
        epochs: int | None = None,
        max_norm_multiple: float | None = 10.0,
    ) -> None:
        read = tuple(dict.fromkeys(model.site(s) for s in ([sites] if isinstance(sites, Site | str) else sites)))
        if not read:
            raise InputError("a stream needs at least one site, such as 'resid_post.12'")
        config = TokenStreamConfig(corpus.config.batch_rows * corpus.config.context, epochs, max_norm_multiple)
        limits = {model.site(site): limit for site, limit in (norm_limit or {}).items()}
        if limits and (missing := [str(site) for site in read if site not in limits]):
            raise InputError(f"norm_limit has no limit for {', '.join(missing)}: give one for every site")
        if not limits:
            calibration = ActivationStream(model, corpus, read, max_norm_multiple=max_norm_multiple, epochs=epochs)
            limits = calibration.norm_limit
            calibration.close()
        self._set_up(model, corpus, tuple(dict.fromkeys((*read, *map(model.site, also)))), limits, config)

    @classmethod
    def reading(
        cls,
        model: HookedModel | ModelPair,
        corpus: Corpus | HeldText,
        sites: Sequence[Site | str] | Site | str = (),
        *,
        norm_limit: Mapping[Site | str, float | None] | None = None,
        start: State | None = None,
        without: Int64[Tensor, " documents"] | None = None,
    ) -> TokenStream:
        """One pass over a corpus to measure on: no logits, every token batch served, rows of any norm.

        Args:
            sites: where activations are read; without any the model does not run and batches hold tokens alone.
            norm_limit: leave out rows above these norms; sites that are not named keep all.
            start: the corpus's state to begin at, `batch.source.position` of an earlier batch.
            without: documents whose tokens are not usable; token rows that hold nothing else are left out.

        Raises:
            InputError: a site the model has not; while iterating, activations that are not finite.
        """
        read = dict.fromkeys(model.site(s) for s in ([sites] if isinstance(sites, Site | str) else sites))
        config = TokenStreamConfig(corpus.config.batch_rows * corpus.config.context, 1, None, "activations")
        limits = {model.site(site): limit for site, limit in (norm_limit or {}).items()}
        stream = cls.__new__(cls)
        stream._set_up(model, corpus, tuple(read), limits, config)
        stream._start, stream._without = start, without
        return stream

    def _set_up(
        self,
        model: HookedModel | ModelPair,
        corpus: Corpus | HeldText,
        sites: tuple[Site, ...],
        limits: Mapping[Site, float | None],
        config: TokenStreamConfig,
    ) -> None:
        self.model, self.corpus, self.config, self.sites = model, corpus, config, sites
        self.norm_limit = {site: NO_LIMIT if limit is None else limit for site, limit in limits.items()}
        """The largest norm kept at each site that rows are taken from."""
        self._start: State | None = None
        self._without: Tensor | None = None
        self._position: State | None = None  # after the last batch served
        self._batches: Iterator[tuple[TokenBatch, State]] | None = None
        self._cancelled = threading.Event()
        self.counts: dict[str, Any] = {
            "tokens": 0, "kept": 0, "dropped_special": 0,
            "dropped_norm": {str(site): 0 for site in self.norm_limit}, "served": 0,
        }  # fmt: skip
        """As an `ActivationStream`'s."""

    @property
    def widths(self) -> dict[Site, int]:
        """Width of every site, heads flattened."""
        return {site: self.model.width(site) for site in self.sites}

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of served rows."""
        return self.model.dtype

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._cancelled.is_set():
            self.close()
            raise KeyboardInterrupt
        if self._batches is None:
            self._batches = self.corpus.iterate(self._position or self._start, epochs=self.config.epochs)
        reads_texts = self.config.serves == "activations"
        try:
            for batch, position in self._batches:
                batch = self._usable(batch)
                served = self._rows(batch, position, *(self._read if reads_texts else self._run)(batch))
                self._position = position
                if len(served.origin) or (reads_texts and len(batch.tokens)):
                    return served
        except BaseException:
            self._batches = None  # the next call reads the failed batch again
            raise
        raise StopIteration

    def _usable(self, batch: TokenBatch) -> TokenBatch:
        """The batch without the documents that are left out."""
        if self._without is None:
            return batch
        usable = batch.usable & ~torch.isin(batch.doc, self._without)
        rows = usable.any(1)
        return TokenBatch(*(field[rows] for field in batch._replace(usable=usable)))

    def _read(self, batch: TokenBatch) -> tuple[dict[Site, Tensor], None]:
        """The activations of every token, up to the last site."""
        if not self.sites or not len(batch.tokens):
            return {}, None
        mask = None if bool(batch.attention.all()) else batch.attention.to(self.model.device)
        with torch.no_grad():
            captured = self.model.capture(batch.tokens.to(self.model.device), self.sites, attention_mask=mask)
        for site in self.sites:
            require_tokenwise(site, captured[site], batch)
        return {site: captured[site].detach().flatten(2) for site in self.sites}, None

    def _run(self, batch: TokenBatch) -> tuple[dict[Site, Tensor], Tensor]:
        """The activations and logits of a whole pass."""
        assert isinstance(self.model, HookedModel), "logits come from one model"
        seen: dict[Site, torch.Tensor] = {}

        def reading(site: Site) -> Any:
            def read(x: torch.Tensor) -> torch.Tensor:
                seen[site] = x.detach().flatten(2)
                return x

            return read

        mask = None if bool(batch.attention.all()) else batch.attention
        with self.model.editing({site: reading(site) for site in self.sites}):
            logits = self.model.logits(batch.tokens, attention_mask=mask).detach()
        return seen, logits

    def _rows(self, batch: TokenBatch, position: State, seen: dict[Site, Tensor], logits: Tensor | None) -> Batch:
        """The positions that are rows, counted."""
        rows = usable = batch.usable.to(self.model.device)
        too_long: dict[str, int] = {}
        for site, x in seen.items():
            norms = torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32)
            if not bool(norms[usable.to(norms.device)].isfinite().all()):
                keep = batch.usable.flatten().nonzero().squeeze(1)
                refuse_non_finite(self.model, site, x.flatten(0, 1)[keep.to(x.device)], batch, keep)
            if site in self.norm_limit:
                limit = self.norm_limit[site]
                too_long[str(site)] = int((usable & (norms > limit)).sum())
                rows = rows & (norms <= limit)
        acts = {site: x[rows.to(x.device)] for site, x in seen.items()}
        origin = torch.stack([batch.doc, batch.offset], -1)[rows.cpu()]
        for name, count in too_long.items():  # once every site is finite: a batch that fails counts for nothing
            self.counts["dropped_norm"][name] += count
        self.counts["tokens"] += batch.tokens.numel()
        self.counts["dropped_special"] += int((~usable).sum())
        for name in ("kept", "served"):
            self.counts[name] += len(origin)
        return Batch(acts, origin, ForwardPass(batch, rows, seen, position, logits))

    def metrics(self) -> dict[str, int | float]:
        """Counts, as numbers for a log."""
        dropped = self.counts["dropped_norm"]
        return {
            "dropped_special": self.counts["dropped_special"],
            **{f"dropped_norm.{site}": count for site, count in dropped.items()},
        }

    def rows_at_most(self, enough: int) -> int | None:
        """Count the rows that the whole stream can serve, as `ActivationStream.rows_at_most`."""
        return usable_tokens(self.corpus, self.config.epochs, enough)

    def cancel(self) -> None:
        """Let the next batch raise KeyboardInterrupt instead: for signal handlers."""
        self._cancelled.set()

    def close(self) -> None:
        """Let go of the corpus. Iterating again goes on where the stream stands."""
        self._cancelled.clear()
        self._batches = None

    def fingerprint(self) -> dict[str, Any]:
        """Everything that decides the bytes served: model, corpus, sites, limits and options."""
        return {
            "model": self.model.fingerprint(),
            "corpus": self.corpus.fingerprint(),
            "sites": [str(site) for site in self.sites],
            "norm_limit": {str(site): limit for site, limit in self.norm_limit.items()},
            "stream": {"kind": "tokens", **self._decides()},
        }

    def _decides(self) -> dict[str, Any]:
        config = asdict(self.config)
        if config.pop("serves") == "passes":
            return config
        without = [] if self._without is None else self._without.tolist()
        return {**config, "serves": "activations", "start": self._start, "without": without}

    def state_dict(self) -> State:
        """Everything needed to continue to the byte."""
        counts = {**self.counts, "dropped_norm": dict(self.counts["dropped_norm"])}
        return {"position": self._position, "counts": counts}

    def load_state_dict(self, state: State) -> None:
        """Continue where `state_dict` was taken."""
        self.close()
        self._position = state["position"]
        self.counts = {**state["counts"], "dropped_norm": dict(state["counts"]["dropped_norm"])}

    def __repr__(self) -> str:
        sites = ", ".join(f"{site} [{width}]" for site, width in self.widths.items())
        return f"TokenStream({sites}; {self.config.batch} tokens a batch of {self.corpus!r})"
