"""`monosem outliers`: do codes tell texts of another kind apart better than the activations they come from?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

from ....probes.outliers.measure import OutlierConfig, ood_scores
from ....probes.outliers.texts import outside_texts, passages, require_kind
from ...errors import InputError
from ...evidence import Evidence
from ...storage import write_json
from ...table import aligned
from ..checks import check_folder, check_text
from ..command import Command, Result
from ..options import Flat, ModelOptions
from ..used_dictionaries import UsedDictionaries, folder_for_results

SCHEMA = 1


@dataclass(frozen=True)
class OutliersCommand(Command):
    """Score texts of other kinds against a dictionary's usual ones, on its codes and on the activations alike.

    The result is also written beside the dictionary as outliers.json.
    """

    example = "monosem outliers runs/first --texts 50"

    dictionary: tyro.conf.Positional[Path]
    """Folder of a dictionary, of a run with exactly one, a dictionary of another library, `hf:ORG/REPO[/FOLDER]` or
    `sae-lens:RELEASE/ID`."""
    outside: tuple[str, ...] = ("cities", "code", "shuffled")
    """Other kinds: `cities`, `code`, `shuffled`, data sets such as 96_spam_is, or sources such as jsonl:PATH."""
    corpus: str = "docs:"
    """The usual kind: `docs:`, `text:PATH`, `jsonl:PATH[#field]` or `hf:NAME[:config][:split][#field]`."""
    texts: int = 200
    """Texts of each kind; of the usual one twice as many to fit on."""
    source: Flat[ModelOptions] = field(default_factory=ModelOptions)
    scoring: OutlierConfig = field(default_factory=OutlierConfig)
    use: Flat[UsedDictionaries] = field(default_factory=UsedDictionaries)
    results: Path | None = None
    """Folder for the results; by default the dictionary's own."""

    def __post_init__(self) -> None:
        if self.texts < 1:
            raise InputError(f"texts must be at least 1, got {self.texts}")
        if not self.outside:
            raise InputError("no kind of texts is named: give --outside, such as cities or code")

    def run(self) -> Result:
        """Read, score, write the result, and return it."""
        found, dictionary = self.use.read(self.dictionary)
        folder = folder_for_results(self.dictionary, found, self.results)
        check_folder(folder)
        for text in (self.corpus, *(name for name in self.outside if ":" in name)):
            check_text(text)
        for name in self.outside:
            require_kind(name)
        source = self.source.of([dictionary])
        self.use.check(source, [dictionary])
        model = self.use.open_model(source, [dictionary])
        dictionary.to(model.device)
        tokens, seed = self.scoring.tokens, self.scoring.seed
        outside = {name: outside_texts(model, name, self.texts, tokens, usual=self.corpus, seed=seed, progress=True)
                   for name in dict.fromkeys(self.outside)}  # fmt: skip
        fit, inside = (passages(model, self.corpus, n, tokens, split=split, progress=True)
                       for n, split in ((2 * self.texts, "train"), (self.texts, "heldout")))  # fmt: skip
        scores = ood_scores(model, dictionary, fit, inside, outside, self.scoring, progress=True)
        result = {
            "schema": SCHEMA, "model": model.name, "dictionary": repr(dictionary), "corpus": self.corpus,
            "texts": {"fit": len(fit), "inside": len(inside), **{name: len(texts) for name, texts in outside.items()}},
            "scores": {name: evidence.to_json() for name, evidence in scores.items()},
            "written": str(folder / "outliers.json"),
        }  # fmt: skip
        write_json(folder / "outliers.json", result)
        return self.result(result)

    def as_text(self, result: Mapping[str, Any]) -> str:
        """The AUROCs as a table."""
        return f"{aligned(outlier_cells(result['scores']))}\n\nwritten: {result['written']}"


def outlier_cells(scores: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """A heading, and a line for each AUROC: the codes with their interval, the gain over activations, the nulls."""
    shown = {name: Evidence(**score) for name, score in scores.items() if name.startswith("auroc_")}
    nulls = list(dict.fromkeys(null for score in shown.values() for null in score.nulls))
    table = [["auroc", "codes", "gain", *(null.replace("_", " ") for null in nulls)]]
    for name, score in shown.items():
        gain = scores.get(name.replace("auroc_", "gain_", 1))
        told = "" if gain is None else _spread(gain["value"], gain["interval"])
        beside = (f"{score.nulls[null]:.3f}" if null in score.nulls else "" for null in nulls)
        table.append([name.removeprefix("auroc_"), _spread(score.value, score.interval), told, *beside])
    return table


def _spread(value: float, interval: tuple[float, float] | None) -> str:
    return f"{value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")
