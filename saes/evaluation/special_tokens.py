"""How well dictionaries reconstruct the special tokens of conversations, beside all tokens and beside the rest.

    mse          mean over a conversation's tokens of ||x - x_hat||^2 / d, then over conversations, so that long ones
                 do not dominate (FAST, arXiv 2506.07691, section 4)
    log2_mse     its logarithm, which is what the paper's tables print
    fvu          E||x - x_hat||^2 / (E||x||^2 - ||E x||^2) over the same tokens, pooled
    l0           active latents a token, pooled: no two errors compare at different L0

Each is measured on six sets of tokens: `all`, `special` and `content`, and each of these without position 0
(`special_no_first`, ...), where models keep an attention sink that can outweigh everything else. A token is special
by its id, whatever its text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from ...lab.errors import InputError, unknown
from ...lab.evidence import Evidence
from ...lab.models.hooked_model import HookedModel
from ...lab.models.sites import Site
from ...lab.storage import State, write_json, write_tensors
from ...lab.streams.activation_stream import Batch
from ...lab.streams.token_stream import TokenStream
from ...lab.text.corpus import Corpus
from ..dictionary import Dictionary
from .document_sums import DocumentSums, Formula, ratio

KINDS = ("all", "special", "content")
SETS = (*KINDS, *(f"{kind}_no_first" for kind in KINDS))
SCORES = ("mse", "log2_mse", "fvu", "l0")


class ConversationRows(NamedTuple):
    """Activations of n tokens, every one with its place."""

    acts: dict[Site, Float[Tensor, "n d"]]
    tokens: Int64[Tensor, " n"]
    doc: Int64[Tensor, " n"]
    """The conversation's id."""
    first: Bool[Tensor, " n"]
    """True at absolute position 0."""

    @classmethod
    def of(cls, batch: Batch, sites: Sequence[Site]) -> ConversationRows:
        """The rows of a batch that a `conversations` stream served."""
        assert batch.source is not None, "served by a TokenStream"
        text = batch.source.batch
        column = torch.arange(text.usable.shape[1]).expand(text.usable.shape)
        acts = {site: batch.acts[site].float() for site in sites}
        return cls(acts, text.tokens[text.usable], text.doc[text.usable], column[text.usable] == 0)


def conversations(model: HookedModel, corpus: Corpus, sites: Sequence[Site]) -> TokenStream:
    """A stream of whole conversations for `read`: every token once, position 0 and template tokens included.

    Args:
        corpus: one conversation a row, as `TextConfig(keep_first=True).sequential()` reads them.

    Raises:
        InputError: the corpus packs rows, or continues a conversation in a second row, or leaves tokens out.
    """
    config = corpus.config
    if config.pack or config.long != "truncate" or not (config.keep_special and config.keep_first):
        raise InputError(
            f"{corpus!r} does not give whole conversations: read them with TextConfig(keep_first=True).sequential()"
        )
    return TokenStream.reading(model, corpus, sites)


class FirstConversations:
    """A consumer that keeps the rows of whole batches of conversations until there are enough, to fit nulls on.

    Args:
        rows: how many are enough.
    """

    kind = "measures"
    needs_text = True

    def __init__(self, sites: Sequence[Site], rows: int, *, name: str = "conversations") -> None:
        self.sites, self.limit, self.name = tuple(sites), rows, name
        self.parts: list[ConversationRows] = []

    @property
    def done(self) -> bool:
        """True once there are enough rows."""
        return self.progress[0] >= self.limit

    @property
    def progress(self) -> tuple[int, int | None]:
        """Rows kept, and rows asked for."""
        return sum(len(part.tokens) for part in self.parts), self.limit

    def step(self, batch: Batch) -> None:
        """Keep a batch."""
        self.parts.append(ConversationRows.of(batch, self.sites))

    def merge(self, other: FirstConversations) -> None:
        """Append later batches until there are enough rows; exact."""
        for part in other.parts:
            if not self.done:
                self.parts.append(part)

    def metrics(self) -> dict[str, int | float]:
        """Rows kept so far."""
        return {"rows": self.progress[0]}

    def state_dict(self) -> State:
        """Every batch kept."""
        return {
            "parts": {
                str(number): {**part._asdict(), "acts": {str(site): x for site, x in part.acts.items()}}
                for number, part in enumerate(self.parts)
            }
        }

    def load_state_dict(self, state: State) -> None:
        """Continue where `state_dict` was taken."""
        by_name = {str(site): site for site in self.sites}
        self.parts = [
            ConversationRows(**{**part, "acts": {by_name[name]: x for name, x in part["acts"].items()}})
            for _, part in sorted(state.get("parts", {}).items(), key=lambda item: int(item[0]))
        ]

    def save(self, folder: Path) -> None:
        """Write nothing: rows are for whoever asked for them."""


class TokenMeans:
    """A null: every special token is reconstructed by the mean of its id, position 0 apart, the rest by their mean.

    A dictionary that does no better than this on special tokens has learned which token it is and no more. The means
    are those of the conversations that it reads, as a consumer of `conversations`.

    Args:
        special: ids of the special tokens.
        rows: read whole batches until this many rows; None reads to the end of the stream.
    """

    kind = "measures"
    needs_text = True

    def __init__(self, site: Site, special: Sequence[int], *, rows: int | None = None, name: str | None = None) -> None:
        self.site, self.sites, self.limit = site, (site,), rows
        self.name = name or f"token-means-{site}"
        self.rows = 0
        self._special = torch.tensor(sorted(special), dtype=torch.int64)
        self._sums = torch.zeros(2 * len(special) + 1, 0, dtype=torch.float64)
        self._counts = torch.zeros(len(self._sums), dtype=torch.float64)

    @property
    def done(self) -> bool:
        """True once the rows asked for have been read."""
        return self.limit is not None and self.rows >= self.limit

    @property
    def progress(self) -> tuple[int, int | None]:
        """Rows read, and rows asked for."""
        return self.rows, self.limit

    def step(self, batch: Batch) -> None:
        """Add whole conversations to the means."""
        self.add(ConversationRows.of(batch, self.sites))

    def add(self, rows: ConversationRows) -> None:
        """Add rows to the means."""
        x = rows.acts[self.site].cpu().double()
        if not self._sums.shape[1]:
            self._sums = torch.zeros(len(self._sums), x.shape[1], dtype=torch.float64)
        key = self._key(rows)
        self._sums.index_add_(0, key, x)
        self._counts += key.bincount(minlength=len(self._counts))
        self.rows += len(x)

    @property
    def means(self) -> Float64[Tensor, "keys d"]:
        """The mean of every key; the mean of all ordinary tokens where a key was not seen."""
        sums, counts = self._sums, self._counts
        return torch.where(
            (counts > 0)[:, None], sums / counts.clamp(min=1)[:, None], sums[-1] / counts[-1].clamp(min=1)
        )

    def merge(self, other: TokenMeans) -> None:
        """Add the sums of other conversations.

        Raises:
            InputError: the other is of another site or other special tokens.
        """
        if self.sites != other.sites or not torch.equal(self._special, other._special):
            raise InputError(f"{other.name} and {self.name} are of different sites or special tokens: merge equal ones")
        self._sums = (
            self._sums + other._sums
            if self._sums.shape[1] and other.rows
            else (self._sums if self._sums.shape[1] else other._sums.clone())
        )
        self._counts = self._counts + other._counts
        self.rows += other.rows

    def metrics(self) -> dict[str, int | float]:
        """Rows read, and keys that were seen."""
        return {"rows": self.rows, "keys": int((self._counts > 0).sum())}

    def state_dict(self) -> State:
        """The sums and the counts."""
        return {"sums": self._sums.clone(), "counts": self._counts.clone(), "rows": self.rows}

    def load_state_dict(self, state: State) -> None:
        """Continue where `state_dict` was taken."""
        self._sums, self._counts, self.rows = state["sums"].clone(), state["counts"].clone(), state["rows"]

    def save(self, folder: Path) -> None:
        """Write `means.safetensors`."""
        write_tensors(folder / "means.safetensors", {"means": self.means})

    def _key(self, rows: ConversationRows) -> Int64[Tensor, " n"]:
        """2 i for the i-th special id, 2 i + 1 at position 0, and the last for every other token."""
        place = torch.searchsorted(self._special, rows.tokens).clamp(max=len(self._special) - 1)
        return torch.where(self._special[place] == rows.tokens, 2 * place + rows.first, 2 * len(self._special))

    def measured(self, rows: ConversationRows) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """Squared error and L0 of every token; a mean counts as one code."""
        error = (rows.acts[self.site].cpu().double() - self.means[self._key(rows)]).square().sum(1)
        return error, torch.ones_like(error)


class SpecialTokens:
    """Measures any number of dictionaries on the same conversations: a consumer of `conversations`.

    Args:
        subjects: dictionaries, and nulls of any kind, by name; each is measured at its provenance's site.
        special: ids of the special tokens.

    Raises:
        InputError: no special ids, no subject, or a dictionary that names no site.
    """

    kind = "measures"
    needs_text = True

    def __init__(
        self, subjects: Mapping[str, Dictionary | TokenMeans], special: Sequence[int], *, name: str = "special-tokens"
    ) -> None:
        if not subjects or not len(special):
            raise InputError("special-token measures need at least one dictionary and at least one special token id")
        self.name = name
        self.subjects, self.special = dict(subjects), torch.tensor(list(special), dtype=torch.int64)
        self.site_of = {name: _site(name, subject) for name, subject in self.subjects.items()}
        self.sites: tuple[Site, ...] = tuple(dict.fromkeys(self.site_of.values()))
        """Where activations are needed."""
        self.sums = DocumentSums()
        """One entry a conversation in every column; columns [6] hold one value for each of `SETS`."""

    @property
    def done(self) -> bool:
        """False: the stream's end decides."""
        return False

    @property
    def progress(self) -> tuple[int, int | None]:
        """Conversations measured; the stream's end decides how many there will be."""
        return len(self.sums), None

    def step(self, batch: Batch) -> None:
        """Measure whole conversations of a `conversations` stream."""
        self.add(ConversationRows.of(batch, self.sites))

    def merge(self, other: SpecialTokens) -> None:
        """Add what the same subjects gave on other conversations.

        Raises:
            InputError: the other measures other subjects or special tokens.
        """
        if self.site_of != other.site_of or not torch.equal(self.special, other.special):
            raise InputError(f"{', '.join(other.subjects)} and {', '.join(self.subjects)} are not the same subjects")
        self.sums.merge(other.sums)

    def metrics(self) -> dict[str, int | float]:
        """Conversations measured so far."""
        return {"conversations": len(self.sums)}

    def state_dict(self) -> State:
        """The sums."""
        return {"sums": self.sums.state_dict()}

    def load_state_dict(self, state: State) -> None:
        """Continue where `state_dict` was taken."""
        self.sums.load_state_dict(state["sums"])

    def save(self, folder: Path) -> None:
        """Write `special_tokens.json`: every score of every subject."""
        scores = {
            name: {score: evidence.to_json() for score, evidence in self.evidence(name).items()}
            for name in self.subjects
        }
        write_json(folder / "special_tokens.json", scores)

    @torch.no_grad()
    def add(self, rows: ConversationRows) -> None:
        """Measure whole conversations: all tokens of one come in one call."""
        documents, place = rows.doc.unique(return_inverse=True)
        kinds = torch.ones(3, len(rows.doc), dtype=torch.bool)
        kinds[1] = torch.isin(rows.tokens, self.special)
        kinds[2] = ~kinds[1]
        masks = torch.cat([kinds, kinds & ~rows.first]).T.double()

        def by_document(values: Tensor) -> Tensor:
            return torch.zeros(len(documents), *values.shape[1:]).double().index_add_(0, place, values.cpu().double())

        counts = by_document(masks)
        columns = {"rows": counts, "present": (counts > 0).double()}
        for site in self.sites:
            x = rows.acts[site].cpu().double()
            columns[f"{site}/square"] = by_document(x.square().sum(1, keepdim=True) * masks)
            for number, name in enumerate(SETS):
                columns[f"{site}/x/{name}"] = by_document(x * masks[:, number, None])
        for name, subject in self.subjects.items():
            error, l0 = _measured(subject, rows, self.site_of[name])
            columns[f"{name}/error"] = by_document(error.cpu().double()[:, None] * masks)
            columns[f"{name}/l0"] = by_document(l0.cpu().double()[:, None] * masks)
            width = rows.acts[self.site_of[name]].shape[1]
            columns[f"{name}/mse"] = columns[f"{name}/error"] / counts.clamp(min=1) / width
        self.sums.add(documents, columns)

    def formula(self, name: str, score: str) -> Formula:
        """The score of one subject as a function of summed columns.

        Raises:
            InputError: no such subject or score.
        """
        if name not in self.subjects:
            raise unknown("subject", name, self.subjects)
        kind, _, tokens = score.partition(".")
        if kind not in SCORES or tokens not in SETS:
            raise unknown("score", score, (f"{kind}.{tokens}" for kind in SCORES for tokens in SETS))
        at, site = SETS.index(tokens), self.site_of[name]

        def mse(sums: Mapping[str, np.ndarray]) -> float:
            return ratio(sums[f"{name}/mse"][at], sums["present"][at])

        def fvu(sums: Mapping[str, np.ndarray]) -> float:
            n, mean = sums["rows"][at], sums[f"{site}/x/{tokens}"] / max(sums["rows"][at], 1)
            return ratio(sums[f"{name}/error"][at], sums[f"{site}/square"][at] - n * (mean @ mean))

        formulas: dict[str, Formula] = {
            "mse": mse,
            "log2_mse": lambda sums: _log2(mse(sums)),
            "fvu": fvu,
            "l0": lambda sums: ratio(sums[f"{name}/l0"][at], sums["rows"][at]),
        }
        return formulas[kind]

    def evidence(
        self, name: str, nulls: Mapping[str, str] | None = None, *, held_out: str = "", seed: int = 0
    ) -> dict[str, Evidence]:
        """Every score of one subject, as `score.set`, with its interval over conversations.

        Args:
            nulls: what stands beside it: a null's label to the name of the subject it is.

        Raises:
            InputError: nothing was measured yet, or an unknown subject.
        """
        total = self._total()
        scores = {}
        for score in (f"{kind}.{tokens}" for kind in SCORES for tokens in SETS):
            formula = self.formula(name, score)
            null_values = {label: self.formula(null, score)(total) for label, null in (nulls or {}).items()}
            value, n, interval = formula(total), self._present(score), self.sums.interval(formula, seed=seed)
            scores[score] = Evidence(score, value, interval, null_values, n, "conversations", held_out)
        return scores

    def gap(self, first: str, second: str, score: str, *, held_out: str = "", seed: int = 0) -> Evidence:
        """The score of one subject less that of another on the same conversations, resampled together.

        The null is what no difference gives. A gap of `log2_mse` is the logarithm of a ratio of errors.
        """
        of_first, of_second = self.formula(first, score), self.formula(second, score)

        def difference(sums: Mapping[str, np.ndarray]) -> float:
            return of_first(sums) - of_second(sums)

        value, n, interval = difference(self._total()), self._present(score), self.sums.interval(difference, seed=seed)
        nulls = {"no_difference": 0.0}
        return Evidence(f"{score}: {first} - {second}", value, interval, nulls, n, "conversations", held_out)

    def counts(self) -> dict[str, int]:
        """Conversations measured, and tokens in every set."""
        tokens = {name: int(count) for name, count in zip(SETS, self._total()["rows"], strict=True)}
        return {"conversations": len(self.sums), **tokens}

    def _present(self, score: str) -> int:
        """Conversations with a token in the score's set."""
        return int(self._total()["present"][SETS.index(score.partition(".")[2])])

    def _total(self) -> Mapping[str, Any]:
        if not len(self.sums):
            raise InputError("no conversation was measured: read a corpus with at least one")
        return self.sums.total


def _measured(subject: Dictionary | TokenMeans, rows: ConversationRows, site: Site) -> tuple[Tensor, Tensor]:
    if isinstance(subject, TokenMeans):
        return subject.measured(rows)
    x = subject.rows(rows.acts[site].to(subject.W_dec.device))
    code = subject.encode(x)
    return (subject.reconstruct(x, code).double() - x.double()).square().sum(1), code.l0


def _site(name: str, subject: Dictionary | TokenMeans) -> Site:
    if isinstance(subject, TokenMeans):
        return Site.parse(subject.site)
    if not subject.place.named:
        raise InputError(f"dictionary {name!r} names no site: set its place, such as 'resid_post.12'")
    return subject.place.site


def _log2(value: float) -> float:
    return math.log2(value) if value > 0 else float("nan") if math.isnan(value) else -math.inf
