"""`Features`: the result of one pass of a dictionary over a corpus, read latent by latent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int32, Int64

from ...lab.errors import InputError
from ...lab.markup import facts_table
from ...lab.rng import generator
from . import files
from .blocks import OUTSIDE
from .examples import BINS_PER_OCTAVE, LOWEST, ExampleTable, Logits, bin_edges


@dataclass(frozen=True)
class Example:
    """A token on which a latent fires, in its context."""

    latent: int
    value: float
    """Activation at the token."""
    doc: int
    offset: int
    """The token's place in its document."""
    copies: int
    """Tokens of the pass in the very same context."""
    focus: int
    """Which token of the window it is."""
    tokens: tuple[int, ...]
    strings: tuple[str, ...]
    acts: tuple[float | None, ...]
    """Activation of the latent at each token of the window; None where none was measured."""

    @property
    def text(self) -> str:
        """The window as one string."""
        return "".join(self.strings)

    def to_json(self) -> dict[str, Any]:
        """Plain values; a list of these makes a data frame."""
        return asdict(self)

    def __repr__(self) -> str:
        before, here, after = (
            "".join(part)
            for part in (
                self.strings[: self.focus],
                self.strings[self.focus :][:1],
                self.strings[self.focus + 1 :],
            )
        )
        return f"Example({self.value:.4g}: {before!r} >{here!r}< {after!r})"


class Bucket(NamedTuple):
    """Random examples from one octave of activation."""

    low: float
    high: float
    share: float
    """Of the latent's firings."""
    examples: list[Example]


class LogitEffects(NamedTuple):
    """Tokens (text, value) that one latent promotes and suppresses most, strongest first."""

    top: list[tuple[str, float]]
    bottom: list[tuple[str, float]]


@dataclass(frozen=True, repr=False)
class Features:
    """One pass of a dictionary over a corpus. A latent fires where its activation is above zero."""

    source: dict[str, Any]
    """JSON values: model, site, dictionary, corpus, settings, and what was left out."""
    measured: int
    """Tokens encoded."""
    count: Int64[np.ndarray, " n"]
    """Tokens on which each latent fires."""
    maximum: Float32[np.ndarray, " n"]
    """Largest activation of each latent, in activation units."""
    bins: Int32[np.ndarray, "n bins"]
    """Firings by activation, four bins to a doubling; see `histogram`."""
    l0: Int64[np.ndarray, " most+1"]
    """Tokens by how many latents fire on them, from none to the most."""
    latents: Int64[np.ndarray, " F"]
    """Latents with examples, ascending."""
    strongest: ExampleTable
    random: ExampleTable
    logits: Logits | None
    """Rows belong to `latents`. None where the site has no straight way to the logits."""
    texts: dict[int, str] = field(default_factory=dict)
    """Text of every token id in the tables."""

    @property
    def n_latents(self) -> int:
        """Latents of the dictionary."""
        return len(self.count)

    @property
    def density(self) -> Float32[np.ndarray, " n"]:
        """Share of measured tokens on which each latent fires."""
        return (self.count / max(self.measured, 1)).astype(np.float32)

    @property
    def dead(self) -> Int64[np.ndarray, " dead"]:
        """Latents with no known activations: they fired on none of the measured tokens."""
        return np.flatnonzero(self.count == 0)

    def examples(self, latent: int) -> list[Example]:
        """The strongest examples of a latent, best first; empty if it is dead.

        Raises:
            InputError: no examples were collected for this latent.
        """
        self._slot(latent)
        return list(self._read(self.strongest, latent))

    def buckets(self, latent: int) -> list[Bucket]:
        """Random examples by octave of activation, highest first. Those among the strongest are left out.

        Raises:
            InputError: no examples were collected for this latent.
        """
        self._slot(latent)
        shown = {(example.doc, example.offset) for example in self.examples(latent)}
        groups: dict[int, list[Example]] = {}
        for octave, example in zip(self._octaves(latent), self._read(self.random, latent), strict=True):
            group = groups.setdefault(octave, [])
            if (example.doc, example.offset) not in shown:
                group.append(example)
        firings = self.bins[latent].reshape(-1, BINS_PER_OCTAVE).sum(1) / max(self.count[latent], 1)
        return [
            Bucket(2.0**octave, 2.0 ** (octave + 1), float(firings[octave - LOWEST]), group)
            for octave, group in groups.items()
        ]

    def histogram(self, latent: int) -> tuple[list[float], list[int]]:
        """Edges and counts of the latent's activations, four bins to a doubling, from its first to its last."""
        filled = np.flatnonzero(self.bins[self._inside(latent)])
        if not len(filled):
            return [], []
        first, last = int(filled[0]), int(filled[-1]) + 1
        return bin_edges()[first : last + 1], self.bins[latent, first:last].tolist()

    def top_logits(self, latent: int) -> LogitEffects | None:
        """Tokens whose logits the latent raises and lowers most, up to the final norm's scale.

        Returns:
            None where the dictionary's site has no straight way to the logits.

        Raises:
            InputError: the latent is not among those collected.
        """
        slot = self._slot(latent)
        if self.logits is None:
            return None
        words = [[self.texts[token] for token in tokens[slot].tolist()] for tokens in self.logits[::2]]
        values = [column[slot].tolist() for column in self.logits[1::2]]
        return LogitEffects(*(list(zip(*pair, strict=True)) for pair in zip(words, values, strict=True)))

    def sample(self, n: int, seed: int = 0) -> Int64[np.ndarray, " m"]:
        """Latents to look at: `n` drawn evenly from those with examples that are alive, ascending."""
        alive = self.latents[self.count[self.latents] > 0]
        order = torch.randperm(len(alive), generator=generator(seed, "features", "sample")).numpy()
        return np.sort(alive[order[:n]])

    def save(self, folder: Path | str) -> Path:
        """Write parquet tables and, last, `features.json` into `folder`, which is created."""
        return files.save(self, folder)

    @classmethod
    def load(cls, folder: Path | str) -> Features:
        """Read what `save` wrote; InputError if it is not there or of another schema."""
        return cls(**files.load(folder))

    def _inside(self, latent: int) -> int:
        if not 0 <= latent < self.n_latents:
            raise InputError(f"latent {latent} is outside the dictionary: latents go from 0 to {self.n_latents - 1}")
        return int(latent)

    def _slot(self, latent: int) -> int:
        slot = int(np.searchsorted(self.latents, self._inside(latent)))
        if slot == len(self.latents) or self.latents[slot] != latent:
            raise InputError(
                f"latent {latent} has no examples, {len(self.latents)} of {self.n_latents} latents have: choose one"
                f" of `features.latents` or collect again with latents=[{latent}]"
            )
        return slot

    def _octaves(self, latent: int) -> list[int]:
        return self.random.octave[_rows(self.random, latent)].tolist()

    def _read(self, table: ExampleTable, latent: int) -> Iterator[Example]:
        rows = _rows(table, latent)
        before = self.source["context"][0]
        for row in range(rows.start, rows.stop):
            ids, acts = table.windows.tokens[row], table.windows.acts[row]
            there = ids != OUTSIDE
            tokens = tuple(ids[there].tolist())
            yield Example(
                latent=int(latent),
                value=float(table.windows.value[row]),
                doc=int(table.windows.doc[row]),
                offset=int(table.windows.offset[row]),
                copies=int(table.copies[row]),
                focus=int(there[:before].sum()),
                tokens=tokens,
                strings=tuple(self.texts[token] for token in tokens),
                acts=tuple(None if np.isnan(act) else act for act in acts[there].tolist()),
            )

    def _facts(self) -> dict[str, str]:
        return {
            "model": str(self.source["model"]),
            "site": str(self.source["site"]),
            "latents": f"{self.n_latents:,}, {len(self.latents):,} with examples, {len(self.dead):,} dead",
            "tokens": f"{self.measured:,}",
            "examples": f"{len(self.strongest.latent):,} strongest, {len(self.random.latent):,} random",
        }

    def __repr__(self) -> str:
        return "Features(" + "; ".join(f"{key} {value}" for key, value in self._facts().items()) + ")"

    def _repr_html_(self) -> str:
        return facts_table(self._facts(), "Features")


def _rows(table: ExampleTable, latent: int) -> slice:
    return slice(*np.searchsorted(table.latent, [latent, latent + 1]).tolist())
