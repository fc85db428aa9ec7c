"""`TokenStream`: batches that keep their text, for consumers that train through the model.

stream = TokenStream(model, corpus, ["resid_post.6"])
for batch in stream:
    batch.acts[site]        # [rows, d]: every usable position of one token batch, in corpus order
    batch.source            # the tokens, where those rows lie, and the model's logits

Rows are not shuffled across batches, since a pass through the model needs whole texts. What reads an
`ActivationStream` reads this as well. The clean pass is run once for all consumers.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..errors import InputError
from ..models.hooked_model import HookedModel
from ..models.sites import Site
from ..storage import State
from ..text.corpus import Corpus
from ..text.packing import TokenBatch
from .activation_stream import ActivationStream, Batch, ForwardPass
from .harvest import NO_LIMIT


@dataclass(frozen=True)
class TokenStreamConfig:
    """How text is served."""

    batch: int
    """Tokens in a batch, those that give no row included."""
    epochs: int | None = None
    """Passes over the corpus; None goes round forever."""
    max_norm_multiple: float | None = 10.0
    """As in `StreamConfig`; plays no part where norm limits are given."""


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
        self.model, self.corpus = model, corpus
        self.config = TokenStreamConfig(corpus.config.batch_rows * corpus.config.context, epochs, max_norm_multiple)
        self.sites = tuple(dict.fromkeys((*read, *map(model.site, also))))
        self.widths = {site: model.width(site) for site in self.sites}
        limits = {model.site(site): limit for site, limit in (norm_limit or {}).items()}
        if limits and (missing := [str(site) for site in read if site not in limits]):
            raise InputError(f"norm_limit has no limit for {', '.join(missing)}: give one for every site")
        if not limits:
            calibration = ActivationStream(model, corpus, read, max_norm_multiple=max_norm_multiple, epochs=epochs)
            limits = calibration.norm_limit
            calibration.close()
        self.norm_limit = {site: NO_LIMIT if limit is None else limit for site, limit in limits.items()}
        """The largest norm kept at each site that rows are taken from."""
        self._position: State | None = None  # after the last batch served
        self._batches: Iterator[tuple[TokenBatch, State]] | None = None
        self._cancelled = threading.Event()
        self.counts: dict[str, Any] = {
            "tokens": 0, "kept": 0, "dropped_special": 0,
            "dropped_norm": {str(site): 0 for site in self.norm_limit}, "served": 0,
        }  # fmt: skip
        """As an `ActivationStream`'s."""

    @property
    def dtype(self) -> torch.dtype:
        """What rows are served in."""
        return self.model.dtype

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._cancelled.is_set():
            self.close()
            raise KeyboardInterrupt
        if self._batches is None:
            self._batches = self.corpus.iterate(self._position, epochs=self.config.epochs)
        for batch, position in self._batches:
            served = self._run(batch)
            self._position = position
            if len(served.origin):
                return served
        raise StopIteration

    def _run(self, batch: TokenBatch) -> Batch:
        """The clean pass, and the rows that it gives."""
        seen: dict[Site, torch.Tensor] = {}

        def reading(site: Site) -> Any:
            def read(x: torch.Tensor) -> torch.Tensor:
                seen[site] = x.detach().flatten(2)
                return x

            return read

        mask = None if bool(batch.attention.all()) else batch.attention
        with self.model.editing({site: reading(site) for site in self.sites}):
            logits = self.model.logits(batch.tokens, attention_mask=mask).detach()
        rows = usable = batch.usable.to(self.model.device)
        for site, limit in self.norm_limit.items():
            norms = torch.linalg.vector_norm(seen[site], dim=-1, dtype=torch.float32)
            if not bool(norms[usable].isfinite().all()):
                documents = ", ".join(map(str, batch.doc[batch.usable].unique().tolist()))
                raise InputError(
                    f"the model gives nan or inf at {site} in one of documents {documents}:"
                    " leave them out of the corpus, or load the model in float32 if it overflows in half precision"
                )
            self.counts["dropped_norm"][str(site)] += int((usable & (norms > limit)).sum())
            rows = rows & (norms <= limit)
        acts = {site: x[rows] for site, x in seen.items()}
        origin = torch.stack([batch.doc, batch.offset], -1)[rows.cpu()]
        self.counts["tokens"] += batch.tokens.numel()
        self.counts["dropped_special"] += int((~usable).sum())
        for name in ("kept", "served"):
            self.counts[name] += len(origin)
        return Batch(acts, origin, ForwardPass(batch, rows, logits))

    def metrics(self) -> dict[str, int | float]:
        """Counts, as numbers for a log."""
        dropped = self.counts["dropped_norm"]
        return {
            "dropped_special": self.counts["dropped_special"],
            **{f"dropped_norm.{site}": count for site, count in dropped.items()},
        }

    def cancel(self) -> None:
        """Let the next batch raise KeyboardInterrupt instead: for signal handlers."""
        self._cancelled.set()

    def close(self) -> None:
        """Let go of the corpus. Iterating again goes on where the stream stands."""
        self._cancelled.clear()
        self._batches = None

    def fingerprint(self) -> dict[str, Any]:
        """What decides the bytes served: model, corpus, sites, limits and options."""
        return {
            "model": self.model.fingerprint(),
            "corpus": self.corpus.fingerprint(),
            "sites": [str(site) for site in self.sites],
            "norm_limit": {str(site): limit for site, limit in self.norm_limit.items()},
            "stream": {"kind": "tokens", **asdict(self.config)},
        }

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
