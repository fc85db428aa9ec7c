"""Dictionaries of the same sites, measured together: one read of the text, and nothing computed twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor

from ...lab.errors import InputError, unknown
from ...lab.evidence import Evidence
from ...lab.models.hooked_model import HookedModel
from ...lab.text.corpus import Corpus
from ..dictionary import Dictionary
from ..place import CROSS_LAYER, CROSSCODER, Place
from .clt.nulls import fit_cross_layer_nulls
from .clt.scores import CrossLayerReconstruction
from .nulls import fit_nulls
from .reading import Reading
from .reconstruction import Reconstruction, total_variance
from .results import Evaluation
from .saebench import saebench_scores, whole_rows
from .splicing import ABLATIONS, CLEAN, SpliceLosses
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
    """What dictionaries of the same sites are measured with, together."""

    reading: Reading
    place: Place
    config: EvaluationConfig
    held_out: str
    distinct: dict[str, Dictionary] = field(default_factory=dict)
    """Every dictionary and null that is measured, once, by a key of its own."""

    def evaluations(
        self, group: Mapping[str, Dictionary], given: Mapping[str, Dictionary] | None, progress: bool
    ) -> dict[str, Evaluation]:
        """Measure all of a group, then tell of each."""
        beside = self._nulls(group, given)
        mine = {name: self._key(dictionary) for name, dictionary in group.items()}
        measured = {key: _reconstruction(one, self.place, self.config.tokens) for key, one in self.distinct.items()}
        self.reading.feed(list(measured.values()), progress)
        losses = self._spliced(mine, beside, measured[next(iter(mine.values()))], progress)
        return {name: self._evaluation(mine[name], beside[name], measured, losses) for name in group}

    def _nulls(
        self, group: Mapping[str, Dictionary], given: Mapping[str, Dictionary] | None
    ) -> dict[str, dict[str, str]]:
        """Keys of the nulls of each dictionary, by the null's name."""
        if given is not None:
            keys = {null: self._key(one) for null, one in given.items()}
            return {name: keys for name in group}
        x, y = self.reading.first_rows(self.config.fit_tokens, self.place.reads, self.place.predicts)
        return {
            name: {null: self._key(one) for null, one in _fitted(x, dictionary, self.config.seed, y).items()}
            for name, dictionary in group.items()
        }

    def _key(self, dictionary: Dictionary) -> str:
        """The key of a dictionary, or that of an equal one."""
        for key, one in self.distinct.items():
            if _equal(one, dictionary):
                return key
        self.distinct[key := f"number {len(self.distinct)}"] = dictionary
        return key

    def _spliced(
        self,
        mine: Mapping[str, str],
        beside: Mapping[str, Mapping[str, str]],
        first: Reconstruction,
        progress: bool,
    ) -> SpliceLosses | None:
        """Losses of all at once; None for crosscoders, which are not spliced."""
        model = self.reading.model
        if not isinstance(model, HookedModel) or (self.place.kind == CROSSCODER and len(self.place.sources) > 1):
            return None
        keys = [key for name in mine for key in (mine[name], *self._spliced_nulls(beside[name]).values())]
        replacing: dict[str, Any] = {key: self.distinct[key] for key in dict.fromkeys(keys)}
        if self.place.kind == CROSS_LAYER:
            return self.reading.replace(model, replacing, first.mean, self.config.ce_tokens, progress)
        return self.reading.splice(model, replacing, first.mean, self.config.ce_tokens, progress)

    def _spliced_nulls(self, nulls: Mapping[str, str]) -> dict[str, str]:
        chosen = _to_splice({name: self.distinct[key] for name, key in nulls.items()}, self.config)
        return {name: nulls[name] for name in chosen}

    def _evaluation(
        self,
        key: str,
        nulls: Mapping[str, str],
        measured: Mapping[str, Reconstruction],
        losses: SpliceLosses | None,
    ) -> Evaluation:
        dictionary, mine = self.distinct[key], measured[key]
        model, corpus = self.reading.model, self.reading.corpus
        told = {"held_out": self.held_out, "seed": self.config.seed}
        scores = mine.evidence({name: measured[null] for name, null in nulls.items()}, **told)
        references, counts = {"variance": total_variance(mine.sums.total)}, dict(self.reading.counts)
        if losses is not None:
            spliced = self._spliced_nulls(nulls)
            named = {key: DICTIONARY, **{null: name for name, null in spliced.items()}}
            scores |= _renamed(losses.evidence(key, list(spliced.values()), **told), named)
            variants = {**{name: name for name in (CLEAN, *ABLATIONS)}, DICTIONARY: key, **spliced}
            references |= {f"ce_{name}": losses.cross_entropy(variant) for name, variant in variants.items()}
            counts |= losses.counts
        scores |= weight_evidence(dictionary, {name: self.distinct[null] for name, null in nulls.items()})
        published = {}
        if self.config.compat == "saebench" and isinstance(model, HookedModel):
            rows = whole_rows(self.reading.batches())
            published = saebench_scores(model, rows, self.place.site, dictionary, _ends(corpus))
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
    """What measures a dictionary of that kind."""
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
