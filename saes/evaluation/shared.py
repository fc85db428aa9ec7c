"""Dictionaries of the same sites, measured together: one read of the text, and nothing computed twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from ...lab.errors import InputError, unknown
from ...lab.evidence import Evidence
from ...lab.models.hooked_model import HookedModel
from ...lab.models.pairs import ModelPair
from ...lab.runs.first_rows import FullTokenRows
from ...lab.streams.token_stream import TokenStream
from ...lab.text.corpus import Corpus
from ..dictionary import Dictionary
from ..place import CROSS_LAYER, CROSSCODER, Place
from .clt.nulls import fit_cross_layer_nulls
from .clt.replacement import replacements
from .clt.scores import CrossLayerReconstruction
from .nulls import fit_nulls
from .reading import EvaluationRows
from .reconstruction import Reconstruction, total_variance
from .results import Evaluation
from .saebench import LOSS_BATCHES, PROMPTS, saebench_scores
from .splicing import ABLATIONS, CLEAN, SpliceLosses, Splices, splices
from .weights import weight_evidence

DICTIONARY = "dictionary"
"""Name of what is evaluated, among the nulls that are spliced with it."""


FITTED = ("untrained", "pca", "neurons", "linear", "own_layer")
"""Names of the nulls that are fitted where none are given; which of them depends on the kind of dictionary."""


@dataclass(frozen=True)
class EvaluationConfig:
    """How much of a corpus to measure."""

    tokens: int = 65_536
    """Rows to measure reconstruction on; fewer if the corpus ends."""
    ce_tokens: int = 8_192
    """Next-token predictions to measure the spliced model on; fewer if the corpus ends."""
    fit_tokens: int = 8_192
    """Rows to fit nulls on, where none are given; their documents are not measured."""
    spliced: tuple[str, ...] = ("untrained", "pca", "linear", "own_layer")
    """Nulls to splice too, where there are such; each costs one more forward pass a token."""
    compat: Literal["none", "saebench"] = "none"
    """`saebench` adds SAEBench's own numbers, quirks included; see `core_metrics_saebench`."""
    seed: int = 0
    """Of the untrained null and of the bootstrap."""

    def __post_init__(self) -> None:
        if self.compat not in ("none", "saebench"):
            raise unknown("compatibility", self.compat, ("none", "saebench"))
        for name in ("tokens", "ce_tokens", "fit_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass
class SharedEvaluation:
    """Dictionaries of the same sites, the nulls of each, and what is measured of them together."""

    model: HookedModel | ModelPair
    corpus: Corpus
    place: Place
    config: EvaluationConfig
    held_out: str
    group: Mapping[str, Dictionary]
    """The dictionaries by name."""
    given: Mapping[str, Dictionary] | None = None
    """Nulls by name, the same for all; None fits those of every dictionary."""
    name: str = "rows"
    keep: bool = False
    """Keep in checkpoints what a continued read needs."""
    progress: bool = False
    """Show a bar on stderr while nulls are fitted."""
    distinct: dict[str, Dictionary] = field(default_factory=dict)
    """Every dictionary and null that is measured, once, by a key of its own."""
    keys: dict[str, str] = field(default_factory=dict)
    """The key of every dictionary."""
    nulls: dict[str, dict[str, str]] = field(default_factory=dict)
    """Keys of the nulls of every dictionary, by the null's name."""

    @cached_property
    def rows(self) -> EvaluationRows:
        """The consumer that measures reconstruction."""
        fit_rows = self.config.fit_tokens if self.given is None else 0
        return EvaluationRows(
            self.place.reads, self.place.predicts, self.place.norm_limits, fit_rows, self._begin,
            dtype=self.model.dtype, device=self.model.device, keep=self.keep, name=self.name,
        )  # fmt: skip

    def _begin(
        self, x: Float[Tensor, "rows d_in"] | None, y: Float[Tensor, "rows d_out"] | None
    ) -> dict[str, Reconstruction]:
        """Fit the nulls, and measure everything once."""
        fits = tqdm(self.group.items(), desc="fit nulls", leave=False, disable=x is None or not self.progress)
        for name, dictionary in fits:
            nulls = self.given if x is None else _fitted(x, dictionary, self.config.seed, y)
            self.nulls[name] = {null: self._key(fitted) for null, fitted in (nulls or {}).items()}
        self.keys = {name: self._key(dictionary) for name, dictionary in self.group.items()}
        return {
            key: _reconstruction(dictionary, self.place, self.config.tokens)
            for key, dictionary in self.distinct.items()
        }

    def batches(self) -> TokenStream:
        """The measured part of the text as tokens; what nulls were fitted on is left out."""
        return TokenStream.reading(self.model, self.corpus, start=self.rows.start, without=self.rows.fitted)

    def evaluations(self, losses: SpliceLosses | None) -> dict[str, Evaluation]:
        """The `Evaluation` of every dictionary, by name."""
        return {name: self._evaluation(key, self.nulls[name], losses) for name, key in self.keys.items()}

    def _key(self, dictionary: Dictionary) -> str:
        """The key of a dictionary, or that of an equal one."""
        for key, one in self.distinct.items():
            if _equal(one, dictionary):
                return key
        self.distinct[key := f"number {len(self.distinct)}"] = dictionary
        return key

    @cached_property
    def prompts(self) -> FullTokenRows | None:
        """The consumer of `batches` that keeps the prompts of SAEBench's scores; None where those are not asked for."""
        if self.config.compat != "saebench" or not isinstance(self.model, HookedModel):
            return None
        return FullTokenRows(LOSS_BATCHES * PROMPTS, name=self.name.replace("rows", "prompts"))

    def splices(self) -> Splices | None:
        """The consumer of `batches` that splices all of them in; None for crosscoders, which are not spliced."""
        model = self.model
        if not isinstance(model, HookedModel) or (self.place.kind == CROSSCODER and len(self.place.sources) > 1):
            return None
        keys = [key for name in self.keys for key in (self.keys[name], *self._spliced_nulls(self.nulls[name]).values())]
        mean = self.rows.measures[next(iter(self.keys.values()))].mean
        tokens, name = self.config.ce_tokens, self.name.replace("rows", "splice")
        replacing: dict[str, Any] = {key: self.distinct[key] for key in dict.fromkeys(keys)}
        if self.place.kind == CROSS_LAYER:
            return replacements(model, replacing, mean, tokens=tokens, name=name)
        limits = self.place.norm_limits
        *reads, site = limits
        return splices(
            model, site, replacing, mean, tokens=tokens, name=name, norm_limit=limits[site],
            reads={source: limits[source] for source in reads},
        )  # fmt: skip

    def _spliced_nulls(self, nulls: Mapping[str, str]) -> dict[str, str]:
        chosen = _to_splice({name: self.distinct[key] for name, key in nulls.items()}, self.config)
        return {name: nulls[name] for name in chosen}

    def _evaluation(self, key: str, nulls: Mapping[str, str], losses: SpliceLosses | None) -> Evaluation:
        dictionary, measured = self.distinct[key], self.rows.measures
        mine = measured[key]
        model, corpus = self.model, self.corpus
        told = {"held_out": self.held_out, "seed": self.config.seed}
        scores = mine.evidence({name: measured[null] for name, null in nulls.items()}, **told)
        references, counts = {"variance": total_variance(mine.sums.total)}, dict(self.rows.counts)
        if losses is not None:
            spliced = self._spliced_nulls(nulls)
            named = {key: DICTIONARY, **{null: name for name, null in spliced.items()}}
            scores |= _renamed(losses.evidence(key, list(spliced.values()), **told), named)
            variants = {**{name: name for name in (CLEAN, *ABLATIONS)}, DICTIONARY: key, **spliced}
            references |= {f"ce_{name}": losses.cross_entropy(variant) for name, variant in variants.items()}
            counts |= losses.counts
        scores |= weight_evidence(dictionary, {name: self.distinct[null] for name, null in nulls.items()})
        published = {}
        if isinstance(model, HookedModel) and self.prompts is not None and self.prompts.rows:
            site, rows = self.place.site, self.prompts.kept.tokens
            published = saebench_scores(model, rows, site, dictionary, _ends(corpus), progress=self.progress)
        return Evaluation(
            dictionary=repr(dictionary),
            model=model.name,
            site=str(self.place),
            held_out=self.held_out,
            scores=scores,
            counts={"rows": mine.rows, "documents": len(mine.sums), **counts},
            references=references,
            histograms={"density": mine.density_histogram()},
            saebench=published,
        )


def _reconstruction(dictionary: Dictionary, place: Place, rows: int) -> Reconstruction:
    """The measuring consumer for a dictionary of that kind."""
    if place.kind == CROSS_LAYER:
        return CrossLayerReconstruction(cast("Any", dictionary), place, rows=rows)
    return Reconstruction(dictionary, place, rows=rows)


def _fitted(
    x: Float[Tensor, "rows d_in"], dictionary: Dictionary, seed: int, target: Float[Tensor, "rows d_out"] | None
) -> dict[str, Dictionary]:
    """The nulls of a dictionary of that kind."""
    if dictionary.place.kind == CROSS_LAYER:
        assert target is not None, "a cross-layer transcoder predicts something"
        return fit_cross_layer_nulls(x, cast("Any", dictionary), seed, target)
    return fit_nulls(x, dictionary, seed, target)


def _renamed(scores: Mapping[str, Evidence], names: Mapping[str, str]) -> dict[str, Evidence]:
    """The same scores with nulls by their own names."""
    return {
        score: replace(one, nulls={names.get(null, null): value for null, value in one.nulls.items()})
        for score, one in scores.items()
    }


def _equal(one: Dictionary, other: Dictionary) -> bool:
    if type(one) is not type(other) or one.config != other.config:
        return False
    theirs = other.tensors()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.tensors().items())


def _to_splice(nulls: Mapping[str, Dictionary], config: EvaluationConfig) -> dict[str, Dictionary]:
    """The nulls to splice: those asked for that this kind of dictionary has."""
    if DICTIONARY in nulls:
        raise InputError(f"a null cannot be named {DICTIONARY!r}: that is what is evaluated")
    require_nulls(config, (*FITTED, *nulls))
    return {name: nulls[name] for name in config.spliced if name in nulls}


def require_nulls(config: EvaluationConfig, known: Sequence[str] = FITTED) -> None:
    """Refuse to splice a null that there is for no kind of dictionary.

    Raises:
        InputError: names it.
    """
    for name in config.spliced:
        if name not in known:
            raise unknown("null to splice", name, known)


def _ends(corpus: Corpus) -> list[int]:
    """Ids that begin, end and pad a row."""
    tokenizer = corpus.tokenizer
    return [i for i in (tokenizer.bos, tokenizer.separator, tokenizer.padding) if i is not None]
