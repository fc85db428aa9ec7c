"""`monosem eval`: the metrics of a dictionary beside their nulls, on held-out documents."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from ....probes.tasks.datasets import load_dataset
from ....probes.tasks.texts import TextProbing
from ....saes.evaluation.results import SCHEMA
from ....saes.evaluation.shared import require_nulls
from ...errors import InputError, unknown
from ...models.fingerprint import parameter_hash
from ...score_names import is_judged
from ...storage import write_json
from ..checks import check_folder
from ..command import Command, Result, missing_nulls
from ..options import Flat, ModelText
from ..stoppable import KeptParts, check_stopped, stoppable
from ..used_dictionaries import UsedDictionaries, folder_for_results
from .suites import GROUPS, SUITES, Subject, SuiteOptions, measure

STOPPED = "evaluation.stopped"
"""Folder in which a stopped evaluation keeps what is done, until the same command ends."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvalCommand(Command):
    """Measure a dictionary against its nulls on documents it was not trained on.

    Stopped by Ctrl-C, the same command continues.
    """

    example = "monosem eval runs/first --tokens 4096"

    dictionary: tyro.conf.Positional[Path]
    """Folder of a dictionary, of a run with exactly one, a dictionary of another library, `hf:ORG/REPO[/FOLDER]` or
    `sae-lens:RELEASE/ID`."""
    suite: Literal["core", "full"] = "core"
    """`core`: reconstruction, sparsity, weights and spliced losses. `full`: every group of metrics."""
    only: tuple[str, ...] = ()
    """Measure these groups in place of a suite: core, probing, absorption, tpp, scr, ravel, detection, meta."""
    source: Flat[ModelText] = field(default_factory=ModelText)
    options: Flat[SuiteOptions] = field(default_factory=SuiteOptions)
    use: Flat[UsedDictionaries] = field(default_factory=UsedDictionaries)
    results: Path | None = None
    """Folder for the results; by default the dictionary's own."""

    def __post_init__(self) -> None:
        for name in self.only:
            if name not in GROUPS:
                raise unknown("group of metrics", name, GROUPS)
        require_nulls(self.options.evaluation)

    def run(self) -> Result:
        """Measure; the result is also written into `results` as `evaluation.json`.

        Its schema is that of `Evaluation.to_json`, with `groups` that were asked for, `skipped` ones with the reason,
        `unbeaten` and `missing` nulls by score, and `about`: the meaning of each score. Groups with more to say write a
        file of their own, such as `probing.json`. A group or a null that could not be measured gives exit status 3.
        Stopped by Ctrl-C, the folder `STOPPED` beside it holds what is done, and the same command continues.

        Raises:
            InputError: no group could be measured; nothing is written then.
        """
        found, dictionary = self.use.read(self.dictionary)
        folder = folder_for_results(self.dictionary, found, self.results)
        source = self.source.of([dictionary])
        groups = [name for name in GROUPS if name in (self.only or SUITES[self.suite])]
        chosen = self.options.probing.datasets
        if "probing" in groups and chosen not in (TextProbing.datasets, ("all",)):
            for name in chosen:
                load_dataset(name)  # a name that is misspelt should not wait for the model
        check_folder(folder)
        asked = {
            "source": asdict(source), "options": asdict(self.options), "dictionary": parameter_hash(dictionary),
            **self.use.given(),
        }  # fmt: skip
        check_stopped(folder / STOPPED, asked)
        self.use.check(source, [dictionary])
        model = self.use.open_model(source, [dictionary])
        corpus = source.open_corpus(model, split="heldout")
        with stoppable(folder / STOPPED, asked) as run:
            measured = measure(Subject(model, dictionary, corpus, self.options), groups, KeptParts(run.folder))
            if len(measured.skipped) == len(groups):
                reasons = "; ".join(f"{name}: {reason}" for name, reason in measured.skipped.items())
                raise InputError(f"nothing could be measured. {reasons}")
        for name, details in measured.details.items():
            write_json(folder / f"{name}.json", {"schema": SCHEMA, **details})
        log.info("%r", measured.evaluation)
        scores = measured.evaluation.scores
        behind = {name: nulls for name, score in scores.items() if is_judged(name) and (nulls := score.unbeaten())}
        for name, nulls in behind.items():
            log.warning("%s is not clearly better than its null: %s", name, ", ".join(nulls))
        result = {**measured.evaluation.to_json(), "suite": self.suite, "groups": groups, "skipped": measured.skipped,
                  "about": measured.about, "unbeaten": behind,
                  "missing": {name: one.missing for name, one in scores.items() if one.missing}}  # fmt: skip
        write_json(folder / "evaluation.json", result)
        skipped = [f"{name} could not be measured: {reason}" for name, reason in measured.skipped.items()]
        return self.result(result, incomplete=[*skipped, *missing_nulls(scores.values())])
