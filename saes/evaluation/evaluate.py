"""`evaluate`: the core scores of dictionaries and their nulls on held-out text.

Two passes over the same documents. The first runs the model up to the last site and feeds the rows to every dictionary
and null at once, whatever their sites; the second runs the whole model, clean and spliced, on fewer tokens. Nulls are
fitted on the first rows of the corpus, and the documents they came from take no part in any score. Dictionaries of the
same sites share all that does not depend on them: the clean and ablated losses, and every null that would be fitted
twice.

Given a folder, both passes keep their state there: stopped by Ctrl-C, the same call continues, and `partial.json` holds
the scores so far.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ...lab.errors import InputError, unknown
from ...lab.models.fingerprint import parameter_hash
from ...lab.models.hooked_model import HookedModel
from ...lab.models.pairs import ModelPair
from ...lab.runs.read import read
from ...lab.runs.run import Run
from ...lab.storage import write_json
from ...lab.streams.token_stream import TokenStream
from ...lab.text.corpus import Corpus
from ..dictionary import Dictionary
from ..place import Place
from .results import Evaluation
from .shared import DICTIONARY, EvaluationConfig, SharedEvaluation
from .splicing import Splices

ROWS = "reconstruct"
"""Name of the pass that measures reconstruction, in an evaluation's folder."""


def evaluate(
    model: HookedModel | ModelPair,
    corpus: Corpus,
    dictionary: Dictionary,
    config: EvaluationConfig | None = None,
    *,
    nulls: Mapping[str, Dictionary] | None = None,
    held_out: str | None = None,
    folder: Path | str | None = None,
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
        folder: keep what is measured here while it goes on, and continue from it; empty again at the end.
        progress: show bars on stderr.
        **fields: fields of `EvaluationConfig` to set, over `config`.

    Raises:
        InputError: a count below 1; the dictionary names no site, was trained on another model or has another
            width than its site; SAEBench's scores of a transcoder or crosscoder; an unknown null to splice; or the
            corpus has no usable token left to measure.
    """
    given = {DICTIONARY: dictionary}
    evaluations = evaluate_many(
        model, corpus, given, config, nulls=nulls, held_out=held_out, folder=folder, progress=progress, **fields
    )
    return evaluations[DICTIONARY]


def evaluate_many(
    model: HookedModel | ModelPair,
    corpus: Corpus,
    dictionaries: Mapping[str, Dictionary],
    config: EvaluationConfig | None = None,
    *,
    nulls: Mapping[str, Dictionary] | None = None,
    held_out: str | None = None,
    folder: Path | str | None = None,
    progress: bool = True,
    **fields: Any,
) -> dict[str, Evaluation]:
    """Score dictionaries and their nulls on a corpus they were not trained on, all from one read of it.

    Args:
        corpus: held-out text; read from its beginning, not past its end.
        dictionaries: by name; each is measured at its own sites, as `evaluate` does it.
        config: how much to measure; its defaults if None.
        nulls: by name, the same for all; None fits those of `fit_nulls` for each dictionary.
        held_out: what the documents are, for the report; None says what the corpus's split says.
        folder: keep what is measured here while it goes on, and continue from it; empty again at the end.
        progress: show bars on stderr.
        **fields: fields of `EvaluationConfig` to set, over `config`.

    Returns:
        An evaluation for each dictionary, in their order.

    Raises:
        InputError: no dictionaries, or as `evaluate`.
        KeyboardInterrupt: on Ctrl-C, after the current batch; with a folder, once the scores so far are written.
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
    said = _held_out(corpus) if held_out is None else held_out
    shares = [
        SharedEvaluation(
            model, corpus, place, config, said, group, nulls,
            name=f"rows-{number}", keep=folder is not None, progress=progress,
        )
        for number, (place, group) in enumerate(groups.items())
    ]  # fmt: skip
    partial = None if folder is None else _Partial(Path(folder), config, dictionaries)
    evaluations = _measured(model, corpus, shares, partial, progress)
    return {name: evaluations[name] for name in dictionaries}


class _Partial:
    """The folder where an evaluation keeps its state while it goes on."""

    def __init__(self, folder: Path, config: EvaluationConfig, dictionaries: Mapping[str, Dictionary]) -> None:
        self.folder = folder
        hashes = {name: parameter_hash(dictionary) for name, dictionary in dictionaries.items()}
        self._config = {"evaluation": asdict(config), "dictionaries": hashes}

    def run(self, name: str) -> Run:
        """The run of one pass."""
        return Run.create(self.folder / name, self._config, resume=True)

    def write(self, evaluations: Mapping[str, Evaluation]) -> None:
        """Write the scores so far."""
        scores = {name: evaluation.to_json() for name, evaluation in evaluations.items()}
        write_json(self.folder / "partial.json", {"complete": False, "evaluations": scores})

    def clear(self, names: Sequence[str]) -> None:
        """Remove the state of every pass, and the scores of an earlier stop."""
        for name in names:
            shutil.rmtree(self.folder / name)
        (self.folder / "partial.json").unlink(missing_ok=True)


def _measured(
    model: HookedModel | ModelPair,
    corpus: Corpus,
    shares: Sequence[SharedEvaluation],
    partial: _Partial | None,
    progress: bool,
) -> dict[str, Evaluation]:
    """Read the rows of all in one pass, then splice each."""
    spliced: dict[str, Splices] = {}
    passes = [ROWS]

    def evaluations() -> dict[str, Evaluation]:
        scores: dict[str, Evaluation] = {}
        for share in shares:
            if share.rows.progress[0]:
                splices = spliced.get(share.name)
                scores |= share.evaluations(splices.losses if splices and splices.progress[0] else None)
        return scores

    try:
        sites = list(dict.fromkeys(site for share in shares for site in share.place.norm_limits))
        stream = TokenStream.reading(model, corpus, sites)
        run = None if partial is None else partial.run(ROWS)
        read(stream, [share.rows for share in shares], run, description="reconstruct", progress=progress)
        for share in shares:
            _require(partial, passes, share.rows.require_rows, corpus)
            if (splices := share.splices()) is None:
                continue
            passes.append(splices.name)
            spliced[share.name] = splices
            run = None if partial is None else partial.run(splices.name)
            consumers = [splices] if share.prompts is None else [splices, share.prompts]
            read(share.batches(), consumers, run, description="splice", progress=progress)
            _require(partial, passes, lambda splices=splices: splices.losses)  # refused without a prediction
            if share.prompts is not None:
                _require(partial, passes, lambda prompts=share.prompts: prompts.kept)
    except KeyboardInterrupt:
        if partial is not None:
            partial.write(evaluations())
        raise
    measured = evaluations()
    if partial is not None:
        partial.clear(passes)
    return measured


def _require(partial: _Partial | None, passes: Sequence[str], check: Callable[..., Any], *given: Any) -> None:
    """Check what was read; too little of it can never be continued, so nothing of it is kept."""
    try:
        check(*given)
    except InputError:
        if partial is not None:
            partial.clear(passes)
        raise


def _held_out(corpus: Corpus) -> str:
    split, share = corpus.config.split, corpus.config.heldout
    if split == "heldout":
        return f"held-out documents of {corpus.source.name} (share {share:g})"
    return f"NOT known to be held out: split {split!r} of {corpus.source.name}"
