"""`monosem eval`: the core metrics of a dictionary beside their nulls, on held-out documents; or more."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import tyro

from ...probes.datasets import dataset_names, load_dataset
from ...probes.texts import TextProbing, over_datasets, probe_texts
from ...saes.dictionary import Dictionary
from ...saes.evaluation import EvaluationConfig, evaluate
from ...saes.files import DESCRIPTION, load
from ...saes.scores import SCHEMA
from ..errors import InputError
from ..storage import write_json
from .options import Flat, ModelText

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Eval:
    """Measure a dictionary against its nulls on documents it was not trained on."""

    dictionary: tyro.conf.Positional[Path]
    """Folder of a dictionary, or of a run with exactly one."""
    suite: Literal["core", "full"] = "core"
    """`core`: reconstruction, sparsity, weights and spliced losses. `full`: sparse probing of labelled texts too."""
    source: Flat[ModelText] = field(default_factory=ModelText)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    probing: TextProbing = field(default_factory=TextProbing)

    def run(self) -> dict[str, Any]:
        """Evaluate; the result is also written beside the dictionary as `evaluation.json`.

        The full suite writes `probing.json` too, with every data set's scores.
        """
        folder, dictionary = find_dictionary(self.dictionary)
        names = self.probing.datasets
        datasets = [load_dataset(name) for name in (dataset_names() if names == ("all",) else names)
                    if self.suite == "full"]  # fmt: skip
        model = self.source.open_model()
        corpus = self.source.open_corpus(model, split="heldout")
        evaluation = evaluate(model, corpus, dictionary, self.evaluation)
        if datasets:
            probes = probe_texts(model, dictionary, datasets, self.probing, progress=True)
            found = {name: probe.to_json() for name, probe in probes.items()}
            write_json(folder / "probing.json", {"schema": SCHEMA, "datasets": found})
            means = over_datasets(probes, seed=self.probing.probe.seed)
            evaluation = replace(evaluation, scores={**evaluation.scores, **means})
        log.info("%r", evaluation)
        result = {**evaluation.to_json(), "suite": self.suite}
        write_json(folder / "evaluation.json", result)
        return result


def find_dictionary(path: Path) -> tuple[Path, Dictionary]:
    """A dictionary by its own folder or by that of a run that made one.

    Raises:
        InputError: there is none, or more than one; names them.
    """
    if (path / DESCRIPTION).is_file():
        return path, load(path)
    found = sorted(entry.parent for entry in path.glob(f"dictionaries/*/{DESCRIPTION}"))
    if len(found) != 1:
        names = ", ".join(str(folder) for folder in found) or "none inside"
        raise InputError(f"{path} is not the folder of one dictionary: {names}; give the folder with {DESCRIPTION}")
    return found[0], load(found[0])
