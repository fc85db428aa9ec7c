"""`evaluate`: the core scores of dictionaries and their nulls on held-out text.

Two passes over the same documents. The first runs the model up to the site and feeds the rows to every dictionary and
null at once; the second runs the whole model, clean and spliced, on fewer tokens. Nulls are fitted on the first rows of
the corpus, and the documents they came from take no part in any score. Dictionaries of the same sites share all that
does not depend on them: the forward passes, the clean and ablated losses, and every null that would be fitted twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...lab.errors import InputError, unknown
from ...lab.models.hooked_model import HookedModel
from ...lab.models.pairs import ModelPair
from ...lab.text.corpus import Corpus
from ..dictionary import Dictionary
from ..place import Place
from .reading import Reading
from .results import Evaluation
from .shared import DICTIONARY, EvaluationConfig, SharedEvaluation


def evaluate(
    model: HookedModel | ModelPair,
    corpus: Corpus,
    dictionary: Dictionary,
    config: EvaluationConfig | None = None,
    *,
    nulls: Mapping[str, Dictionary] | None = None,
    held_out: str | None = None,
    progress: bool = True,
    **fields: Any,
) -> Evaluation:
    """Score a dictionary and its nulls on a corpus it was not trained on.

    Args:
        corpus: held-out text; read from its beginning, not past its end.
        dictionary: measured at its place; rows above the place's norm limits are left out, and left as
            they are in splices. A transcoder is measured against the site that it predicts, and spliced in there; a
            cross-layer one against all its outputs, which it replaces together (see `clt.replacement`). A crosscoder of
            several sites, of this model or of a pair of models, is not spliced: its last site alone would decide.
        config: how much to measure; its defaults if None.
        nulls: by name; None fits those of `fit_nulls` on the first rows of the corpus.
        held_out: what the documents are, for the report; None says what the corpus's split says.
        progress: show bars on stderr.
        **fields: fields of `EvaluationConfig` to set, over `config`.

    Raises:
        InputError: a count below 1; the dictionary names no site, was trained on another model or has another
            width than its site; SAEBench's scores of a transcoder or crosscoder; an unknown null to splice; or the
            corpus has no usable token left to measure.
    """
    given = {DICTIONARY: dictionary}
    found = evaluate_many(model, corpus, given, config, nulls=nulls, held_out=held_out, progress=progress, **fields)
    return found[DICTIONARY]


def evaluate_many(
    model: HookedModel | ModelPair,
    corpus: Corpus,
    dictionaries: Mapping[str, Dictionary],
    config: EvaluationConfig | None = None,
    *,
    nulls: Mapping[str, Dictionary] | None = None,
    held_out: str | None = None,
    progress: bool = True,
    **fields: Any,
) -> dict[str, Evaluation]:
    """Score dictionaries and their nulls on a corpus they were not trained on: one read of it for each set of sites.

    Args:
        corpus: held-out text; read from its beginning, not past its end.
        dictionaries: by name; each is measured at its own sites, as `evaluate` does it.
        config: how much to measure; its defaults if None.
        nulls: by name, the same for all; None fits those of `fit_nulls` for each dictionary.
        held_out: what the documents are, for the report; None says what the corpus's split says.
        progress: show bars on stderr.
        **fields: fields of `EvaluationConfig` to set, over `config`.

    Returns:
        An evaluation for each dictionary, in their order.

    Raises:
        InputError: no dictionaries, or as `evaluate`.
    """
    for name in fields:
        if name not in EvaluationConfig.__dataclass_fields__:
            raise unknown("evaluation option", name, EvaluationConfig.__dataclass_fields__)
    config = replace(config or EvaluationConfig(), **fields)
    if not dictionaries:
        raise InputError("there is nothing to evaluate: give at least one dictionary")
    groups: dict[Place, dict[str, Dictionary]] = {}
    for name, dictionary in dictionaries.items():
        place = dictionary.check(model)
        if config.compat == "saebench" and len(place.ports) > 1:
            raise InputError(
                f"SAEBench scores autoencoders of one site: leave out compat='saebench' for {dictionary!r}"
            )
        if len(place.sources) == 1 and not isinstance(model, HookedModel):
            raise InputError(f"{dictionary!r} reads one of two models: evaluate it on that model alone")
        groups.setdefault(place.scaled([None] * len(place.ports)), {})[name] = dictionary
    told = _held_out(corpus) if held_out is None else held_out
    found: dict[str, Evaluation] = {}
    for place, group in groups.items():
        shared = SharedEvaluation(Reading(model, corpus, place.norm_limits), place, config, told)
        found |= shared.evaluations(group, nulls, progress)
    return {name: found[name] for name in dictionaries}


def _held_out(corpus: Corpus) -> str:
    split, share = corpus.config.split, corpus.config.heldout
    if split == "heldout":
        return f"held-out documents of {corpus.source.name} (share {share:g})"
    return f"NOT known to be held out: split {split!r} of {corpus.source.name}"
