"""`FeatureExamples`: a consumer of tokens in context order, all latents at once, never tokens x latents.

Kept of every latent: how often it fires, its largest activation and a histogram of activations. Kept of chosen
latents, as examples with their context:

- the strongest: at most one from a stretch of a document in one row, its strongest token;
- a random few of every octave of activation, drawn by a hash of latent and context, so that the draw depends
  on the seed and on nothing else.

Equal contexts are kept once, with the number of tokens of the pass that stand in that context. The result is
the same for every way of cutting the corpus into batches, and for two halves that are read apart and merged.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int32, Int64
from torch import Tensor

from ...lab.checkpoints import require_same
from ...lab.errors import InputError
from ...lab.models.sites import Site
from ...lab.rng import derive_seed
from ...lab.storage import State
from ...lab.streams.activation_stream import Batch
from ...lab.text.packing import TokenBatch
from ..dictionary import Dictionary
from .blocks import Block, Piece, Windows, scramble
from .kept import Kept

OCTAVES = 40
LOWEST = -20
"""Activations are binned by powers of two from 2**-20; the first and last bins are open."""
BINS_PER_OCTAVE = 4
BLOCK_CELLS = 1 << 15
"""Cells merged at a time: fewer cost more windows that are thrown away again, more cost memory."""


ARRAYS = ("count", "maximum", "histogram", "l0")
COUNTERS = ("measured", "unusable", "too_long", "usable", "_rows")


class ExampleTable(NamedTuple):
    """Examples sorted by latent, then octave (highest first), then rank."""

    latent: Int64[np.ndarray, " E"]
    octave: Int64[np.ndarray, " E"]
    """Exponent of the octave the example was drawn from; no meaning in the table of the strongest."""
    copies: Int64[np.ndarray, " E"]
    """Tokens of the pass in the very same context, this one included."""
    windows: Windows


class Logits(NamedTuple):
    """The ends of every direction's effect on the logits, strongest first: [F, 10] each."""

    top_tokens: Int32[np.ndarray, "F m"]
    top_values: Float32[np.ndarray, "F m"]
    bottom_tokens: Int32[np.ndarray, "F m"]
    bottom_values: Float32[np.ndarray, "F m"]


class FeatureExamples:
    """Accumulates over token batches; see the module's text for what is kept.

    A consumer of `read` where its site is known; without one, feed it through `update`.

    Args:
        dictionary: encodes the activations; rows longer than its place's norm limit are left out, as in training.
        latents: which latents get examples.
        top: strongest examples a latent.
        per_octave: random examples a latent and octave of activation.
        context: tokens shown before and after.
        seed: of the random examples.
        site: where the activations come from.
        tokens: read this many usable tokens, then be done; None goes on to the end of the stream.
        name: of the consumer.

    Raises:
        InputError: a latent outside the dictionary, or a size that is not possible.
    """

    needs_text = True
    kind = "features"

    def __init__(
        self,
        dictionary: Dictionary,
        latents: Int64[np.ndarray, " F"],
        *,
        top: int = 12,
        per_octave: int = 3,
        context: tuple[int, int] = (20, 8),
        seed: int = 0,
        site: Site | None = None,
        tokens: int | None = None,
        name: str = "features",
    ) -> None:
        n = dictionary.n_latents
        if tokens is not None and tokens < 1:
            raise InputError(f"tokens={tokens} reads nothing: give at least 1")
        for name, size in {"top": top, "per_octave": per_octave}.items():
            if size < 1:
                raise InputError(f"{name}={size} keeps nothing: give at least 1")
        if min(context) < 0:
            raise InputError(f"context={context} is not possible: give two sizes from 0, as in (20, 8)")
        if len(latents) and not (latents.min() >= 0 and latents.max() < n):
            wrong = latents.min() if latents.min() < 0 else latents.max()
            raise InputError(f"latent {wrong} is outside the dictionary: latents go from 0 to {n - 1}")
        self.dictionary, self.context, self.seed = dictionary, context, seed
        self.name, self.limit = name, tokens
        self.sites: tuple[Site, ...] = () if site is None else (site,)
        self.latents = np.unique(latents).astype(np.int64)
        self.slot = np.full(n, -1)
        self.slot[self.latents] = np.arange(len(self.latents))
        width = sum(context) + 1
        self.strongest = Kept(len(self.latents), top, width)
        self.sampled = Kept(len(self.latents) * OCTAVES, per_octave, width)
        self.count: Int64[np.ndarray, " n"] = np.zeros(n, np.int64)
        self.maximum: Float32[np.ndarray, " n"] = np.zeros(n, np.float32)
        self.histogram: Int32[np.ndarray, "n bins"] = np.zeros((n, OCTAVES * BINS_PER_OCTAVE), np.int32)
        self.l0: Int64[np.ndarray, " most+1"] = np.zeros(1, np.int64)
        """Tokens by how many latents fire on them."""
        self.measured = self.unusable = self.too_long = self.usable = 0
        self._pieces: list[Piece] = []
        self._waiting = self._rows = 0
        self._contexts: list[np.ndarray] = []

    @property
    def done(self) -> bool:
        """True once the tokens asked for have been read."""
        return self.limit is not None and self.usable >= self.limit

    @property
    def progress(self) -> tuple[int, int | None]:
        """Usable tokens read, and tokens asked for."""
        return self.usable, self.limit

    def step(self, batch: Batch) -> None:
        """Take in a token batch of the stream; of the last one, only as many usable tokens as are missing."""
        if batch.source is None or not self.sites:
            raise InputError(f"{self.name} reads the texts of one site: give site=, and read a TokenStream")
        tokens, acts = batch.source.batch, batch.source.acts[self.sites[0]]
        order = tokens.usable.flatten().cumsum(0).reshape(tokens.usable.shape)
        if self.limit is not None:
            tokens = tokens._replace(usable=tokens.usable & (order <= self.limit - self.usable))
        self.usable += int(order[-1, -1])
        self.update(acts, tokens)

    @torch.no_grad()
    def update(self, acts: Float[Tensor, "R T d"], batch: TokenBatch) -> None:
        """Take in the activations of one token batch."""
        flat = acts.flatten(0, 1).flatten(1)
        usable = batch.usable.flatten()
        rows = flat[usable.to(flat.device)].to(self.dictionary.W_dec.device)
        limit = self.dictionary.place.source.norm_limit
        if limit is not None:
            kept = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float32) <= limit
            self.too_long += int((~kept).sum())
            usable = usable.clone()
            usable[usable.nonzero()[~kept.cpu(), 0]] = False
            rows = rows[kept]
        measured = usable.numpy()
        self.measured += int(measured.sum())
        self.unusable += batch.usable.numel() - int(batch.usable.sum())
        code = self.dictionary.encode(rows)
        indptr, latent, value = (part.cpu().numpy() for part in (code.indptr, code.indices, code.values))
        fires = value > 0
        codes = np.zeros(len(measured), np.int64)
        codes[measured] = np.diff(np.append(0, np.cumsum(fires))[indptr])
        l0 = np.bincount(codes[measured], minlength=len(self.l0))
        l0[: len(self.l0)] += self.l0
        self.l0 = l0
        R, T = batch.tokens.shape
        self._pieces.append(
            Piece(
                tokens=batch.tokens.flatten().numpy(),
                doc=batch.doc.flatten().numpy(),
                offset=batch.offset.flatten().numpy(),
                row=self._rows + np.repeat(np.arange(R), T),
                measured=measured,
                codes=codes,
                latent=latent[fires],
                value=value[fires].astype(np.float32),
            )
        )
        self._rows += R
        self._waiting += R * T
        if self._waiting >= BLOCK_CELLS:
            self._fold()

    def _fold(self) -> None:
        """Fold the waiting batches into everything kept."""
        if not self._pieces:
            return
        block = Block(self._pieces, self.dictionary.n_latents, self.context)
        self._pieces, self._waiting = [], 0
        bins = bin_of(block.value)
        fired = np.flatnonzero(block.counts)
        self.count += block.counts
        first = np.append(0, np.cumsum(block.counts))[fired]
        if len(fired):
            self.maximum[fired] = np.maximum(self.maximum[fired], np.maximum.reduceat(block.value, first))
        flat = block.latent * self.histogram.shape[1] + bins
        self.histogram += (
            np.bincount(flat, minlength=self.histogram.size).reshape(self.histogram.shape).astype(np.int32)
        )

        contexts = block.contexts()
        self._contexts.append(contexts[block.measured])
        slot, context = self.slot[block.latent], contexts[block.cell]
        entry = block.strongest_in_segments()
        entry = entry[slot[entry] >= 0]
        rank = -block.value[entry].astype(np.float64)
        self.strongest.merge(block, entry, slot[entry], rank, context[entry])
        entry = np.flatnonzero(slot >= 0)
        group = slot[entry] * OCTAVES + (OCTAVES - 1 - bins[entry] // BINS_PER_OCTAVE)
        rank = self._lot(block.latent[entry], context[entry])
        self.sampled.merge(block, entry, group, rank, context[entry])

    def merge(self, other: FeatureExamples) -> None:
        """Take in what an equal measure kept of a later stretch of the corpus; exact, examples included.

        Raises:
            InputError: the other was made for other latents, sizes or another seed.
        """
        if self._options() != other._options():
            raise InputError(f"{other.name} keeps {other._options()} and {self.name} {self._options()}: use the same")
        self._fold()
        other._fold()
        self.count += other.count
        np.maximum(self.maximum, other.maximum, out=self.maximum)
        self.histogram += other.histogram
        longest = max(len(self.l0), len(other.l0))
        self.l0 = sum(np.pad(l0, (0, longest - len(l0))) for l0 in (self.l0, other.l0))  # type: ignore[assignment]
        for counter in COUNTERS:
            setattr(self, counter, getattr(self, counter) + getattr(other, counter))
        self._contexts += other._contexts
        self.strongest.join(other.strongest)
        self.sampled.join(other.sampled)

    def _options(self) -> dict[str, Any]:
        """Sizes and choices that two measures must share to be merged."""
        return {
            "latents": zlib.crc32(self.latents.tobytes()),
            "n_latents": len(self.count),
            "context": list(self.context),
            "top": self.strongest.rank.shape[1],
            "per_octave": self.sampled.rank.shape[1],
            "seed": self.seed,
            "sites": [str(site) for site in self.sites],
        }

    def metrics(self) -> dict[str, int | float]:
        """Tokens measured so far, and latents that fired on some."""
        self._fold()
        return {"tokens": self.measured, "alive": int((self.count > 0).sum())}

    def state_dict(self) -> State:
        """Counts, histograms, examples with their windows, and a hash of every context seen."""
        self._fold()
        arrays = {name: torch.from_numpy(getattr(self, name).copy()) for name in ARRAYS}
        contexts = np.concatenate([*self._contexts, np.zeros(0, np.uint64)])
        return {
            **arrays,
            "contexts": torch.from_numpy(contexts.view(np.int64)),
            "strongest": self.strongest.state_dict(),
            "sampled": self.sampled.state_dict(),
            "counters": {name: getattr(self, name) for name in COUNTERS},
            "options": self._options(),
        }

    def load_state_dict(self, state: State) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            InputError: it was taken with other latents, sizes or another seed.
        """
        require_same(state["options"], self._options(), f"the state of {self.name}")
        for name in ARRAYS:
            setattr(self, name, state[name].numpy().copy())
        self._contexts = [state["contexts"].numpy().view(np.uint64)]
        self._pieces, self._waiting = [], 0
        self.strongest.load_state_dict(state["strongest"])
        self.sampled.load_state_dict(state["sampled"])
        for name, value in state["counters"].items():
            setattr(self, name, value)

    def save(self, folder: Path) -> None:
        """Write nothing: examples become `Features` with a model (`collect`)."""

    def _lot(self, latent: np.ndarray, context: np.ndarray) -> np.ndarray:
        """A number from 0 to 1 that depends on the seed, the latent and the context alone."""
        salt = np.uint64(derive_seed(self.seed, "examples"))
        return (scramble(context ^ scramble(latent.astype(np.uint64) + salt)) >> np.uint64(11)) / 2.0**53

    def tables(self) -> tuple[ExampleTable, ExampleTable]:
        """The strongest examples and the random ones."""
        self._fold()
        seen, times = np.unique(np.concatenate([*self._contexts, np.zeros(0, np.uint64)]), return_counts=True)
        self._contexts = [np.repeat(seen, times)]

        def table(kept: Kept, per_latent: int) -> ExampleTable:
            group, context, windows = kept.sorted()
            octave = LOWEST + OCTAVES - 1 - group % per_latent
            return ExampleTable(
                self.latents[group // per_latent], octave, times[np.searchsorted(seen, context)], windows
            )

        return table(self.strongest, 1), table(self.sampled, OCTAVES)


def bin_of(value: Float32[np.ndarray, " E"]) -> Int64[np.ndarray, " E"]:
    """The histogram bin of every activation: four to a doubling."""
    bins = np.floor(np.log2(value.astype(np.float64)) * BINS_PER_OCTAVE).astype(np.int64)
    return (bins - LOWEST * BINS_PER_OCTAVE).clip(0, OCTAVES * BINS_PER_OCTAVE - 1)


def bin_edges() -> list[float]:
    """Lower edges of the bins, and the upper edge of the last."""
    return [2.0 ** (LOWEST + i / BINS_PER_OCTAVE) for i in range(OCTAVES * BINS_PER_OCTAVE + 1)]
