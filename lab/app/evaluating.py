"""`monosem eval`: the core metrics of a dictionary beside their nulls, on held-out documents."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

from ...saes.dictionary import Dictionary
from ...saes.evaluation import EvaluationConfig, evaluate
from ...saes.files import DESCRIPTION, load
from ..errors import InputError
from .options import Flat, ModelText


@dataclass(frozen=True)
class Eval:
    """Measure a dictionary against its nulls on documents it was not trained on."""

    dictionary: tyro.conf.Positional[Path]
    """Folder of a dictionary, or of a run with exactly one."""
    source: Flat[ModelText] = field(default_factory=ModelText)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def run(self) -> dict[str, Any]:
        """Evaluate; the result is also written beside the dictionary as `evaluation.json`."""
        folder, dictionary = find_dictionary(self.dictionary)
        model = self.source.open_model()
        corpus = self.source.open_corpus(model, split="heldout")
        evaluation = evaluate(model, corpus, dictionary, self.evaluation)
        evaluation.save(folder / "evaluation.json")
        return evaluation.to_json()


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
