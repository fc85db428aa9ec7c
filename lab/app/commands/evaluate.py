"""`monosem eval`: the metrics of a dictionary beside their nulls, on held-out documents."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from ....probes.tasks.datasets import load_dataset
from ....probes.tasks.texts import TextProbing
from ....saes.evaluation.results import SCHEMA
from ....saes.evaluation.shared import require_nulls
from ....saes.files import find_dictionary
from ...errors import unknown
from ...evidence import unbeaten
from ...storage import write_json
from ..checks import check_folder
from ..command import Command, Result
from ..options import Flat, ModelText
from .suites import GROUPS, SUITES, Subject, SuiteOptions, measure

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvalCommand(Command):
    """Measure a dictionary against its nulls on documents it was not trained on."""

    example = "monosem eval runs/first --tokens 4096"

    dictionary: tyro.conf.Positional[Path]
    """Folder of a dictionary, or of a run with exactly one."""
    suite: Literal["core", "full"] = "core"
    """`core`: reconstruction, sparsity, weights and spliced losses. `full`: every group of metrics."""
    only: tuple[str, ...] = ()
    """Measure these groups in place of a suite: core, probing, absorption, tpp, scr, ravel, detection, meta."""
    source: Flat[ModelText] = field(default_factory=ModelText)
    options: Flat[SuiteOptions] = field(default_factory=SuiteOptions)

    def __post_init__(self) -> None:
        for name in self.only:
            if name not in GROUPS:
                raise unknown("group of metrics", name, GROUPS)
        require_nulls(self.options.evaluation)

    def run(self) -> Result:
        """Measure; the result is also written beside the dictionary as `evaluation.json`.

        Its schema is that of `Evaluation.to_json`, with `groups` that were asked for, `skipped` ones with the reason,
        and `about`: what each score is. Groups with more to say write a file of their own, such as `probing.json`.
        """
        folder, dictionary = find_dictionary(self.dictionary)
        groups = [name for name in GROUPS if name in (self.only or SUITES[self.suite])]
        chosen = self.options.probing.datasets
        if "probing" in groups and chosen not in (TextProbing.datasets, ("all",)):
            for name in chosen:
                load_dataset(name)  # a name that is misspelt should not wait for the model
        check_folder(folder)
        self.source.check(dictionaries=[dictionary])
        model = self.source.open_model()
        corpus = self.source.open_corpus(model, split="heldout")
        found = measure(Subject(model, dictionary, corpus, self.options), groups)
        for name, details in found.details.items():
            write_json(folder / f"{name}.json", {"schema": SCHEMA, **details})
        log.info("%r", found.evaluation)
        behind = {
            name: nulls
            for name, score in found.evaluation.scores.items()
            if (nulls := unbeaten(score.value, score.nulls, score.better))
        }
        for name, nulls in behind.items():
            log.warning("%s is not better than its null: %s", name, ", ".join(nulls))
        result = {**found.evaluation.to_json(), "suite": self.suite, "groups": groups, "skipped": found.skipped,
                  "about": found.about, "unbeaten": behind}  # fmt: skip
        write_json(folder / "evaluation.json", result)
        return self.result(result)
