"""`SweepResult`: what a sweep gave, as rows, as a table and as curves against L0."""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...lab.errors import InputError, unknown
from ...lab.models.hooked_model import HookedModel
from ...lab.runs.run import Run
from ...lab.storage import atomic_path, write_json
from ...lab.table import aligned, as_html
from ...lab.text.corpus import Corpus
from ..dictionary import Dictionary
from ..evaluation.evaluate import EvaluationConfig, evaluate_many
from ..evaluation.matched_l0 import pareto, seed_gap
from ..evaluation.results import Evaluation, flat
from ..files import load
from .grid import Member
from .table import cells

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

SCHEMA = 1
"""Of results.json. Keys are only ever added under one number."""
PASSES = "passes"
TRAINING = ("fvu", "l0", "dead")
"""Of the last line of a member's metrics: on training rows, and over the trainer's window."""
PLOTTED = ("fvu", "ce_recovered_zero")
"""Scores that are drawn against L0; `ce_recovered_zero` is 1 for the clean model and 0 for zero ablation."""


@dataclass(frozen=True)
class SweepResult:
    """The dictionaries of a sweep and, once `evaluate` has measured them, their scores."""

    members: tuple[Member, ...]
    """In order."""
    run: Run
    """Where they were trained; every member's dictionary is in it under its name."""
    evaluations: Mapping[str, Evaluation] = field(default_factory=dict)
    """By name; empty before `evaluate`."""

    def dictionary(self, name: str) -> Dictionary:
        """The trained dictionary of that name.

        Raises:
            InputError: no such member.
        """
        names = [member.name for member in self.members]
        if name not in names:
            raise unknown("member", name, names)
        return load(self.run.artefact(name))

    def evaluate(
        self,
        model: HookedModel,
        corpus: Corpus,
        config: EvaluationConfig | None = None,
        *,
        progress: bool = True,
        **fields: Any,
    ) -> SweepResult:
        """The same result with every member's scores and nulls on held-out text; arguments as in `evaluate_many`."""
        dictionaries = {member.name: self.dictionary(member.name).to(model.device) for member in self.members}
        return replace(
            self, evaluations=evaluate_many(model, corpus, dictionaries, config, progress=progress, **fields)
        )

    def table(self) -> list[dict[str, Any]]:
        """One flat row a member: what it is, its last training metrics as `train_NAME`, and its scores.

        A score `fvu` gives `fvu`, `fvu_low`, `fvu_high` (95 % interval), `fvu_n` and `fvu_null_NAME`, as in
        `Evaluation.to_json`.
        """
        rows, course = [], self._course()
        for member in self.members:
            last = next(reversed(course[member.name]), {})
            row = {**member.settings(), **{f"train_{name}": last.get(name) for name in TRAINING}}
            if member.name in self.evaluations:
                row |= flat(self.evaluations[member.name].scores)
            rows.append(row)
        return rows

    def recipes(self) -> list[dict[str, Any]]:
        """Members that differ by their seed alone, taken together: mean of each score, and its spread over seeds.

        `fvu_noise` is what two seeds differ by, sqrt(2) times the standard deviation; None for a single seed.
        """
        rows = []
        for recipe, names in self._seeds().items():
            row: dict[str, Any] = {"recipe": recipe, "seeds": len(names)}
            for score in self._scores(names):
                values = np.array([self.evaluations[name].scores[score].value for name in names])
                row[score] = _finite(float(values.mean()))
                row[f"{score}_noise"] = _finite(float(2**0.5 * values.std(ddof=1))) if len(values) > 1 else None
            rows.append(row)
        return rows

    def gaps(self, scores: Sequence[str] = PLOTTED) -> list[dict[str, Any]]:
        """Every two recipes of one place, size and asked k beside their seed noise (see `compare.seed_gap`).

        Only recipes with two seeds or more, and scores that both have; `l0` holds the mean of each, since a gap may
        be one of L0 too.
        """
        several = {recipe: names for recipe, names in self._seeds().items() if len(names) > 1}
        alike = {m.recipe: (m.site, m.n_latents, m.k) for m in self.members}
        gaps = []
        for first, second in itertools.combinations(several, 2):
            if alike[first] == alike[second]:
                l0 = [float(np.mean([self.evaluations[n]["l0"].value for n in several[r]])) for r in (first, second)]
                sides = {recipe: several[recipe] for recipe in (first, second)}
                common = self._scores([name for names in sides.values() for name in names])
                gaps += [{**self._gap(score, sides), "l0": l0} for score in scores if score in common]
        return gaps

    def _gap(self, score: str, sides: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        values = [[self.evaluations[name][score] for name in names] for names in sides.values()]
        first, second = sides
        return seed_gap(*values, score=score, names=(first, second), better=values[0][0].better).to_json()

    def pareto(self, score: str = "fvu", site: str | None = None) -> list[str]:
        """Names of the members that no other beats in both L0 and `score`, by rising L0.

        Args:
            site: what they reconstruct, one of `sites()`; by default the only one.

        Raises:
            InputError: nothing was evaluated, a score that none of them has, or several sites and none chosen.
        """
        names = self.at_site(site)
        names = [name for name in names if score in self.evaluations[name].scores] or names
        points = [(self.evaluations[n]["l0"].value, self.evaluations[n][score].value) for n in names]
        better = self.evaluations[names[0]][score].better
        return [names[index] for index in pareto(*zip(*points, strict=True), better=better)]

    def sites(self) -> list[str]:
        """The sites that members reconstruct, in their order: targets of a transcoder, all sources of a crosscoder.

        Members with the same one compare: their scores are relative to the same activations.
        """
        return list(dict.fromkeys(member.place.output for member in self.members))

    def at_site(self, site: str | None = None) -> list[str]:
        """Names of the evaluated members that reconstruct one of `sites()`.

        Raises:
            InputError: nothing was evaluated, an unknown site, or several sites and none chosen.
        """
        if not self.evaluations:
            raise InputError("the sweep has no scores yet: call evaluate(model, corpus) on its result")
        if site is None and len(self.sites()) > 1:
            raise InputError(f"the sweep has several sites: give one of {', '.join(self.sites())}")
        if site is not None and site not in self.sites():
            raise unknown("site", site, self.sites())
        return [member.name for member in self.members if site in (None, member.place.output)]

    def plotted(self, site: str | None = None) -> list[str]:
        """Scores to draw against L0 that some member of a site has, or of any: crosscoders are not spliced."""
        names = [m.name for m in self.members if site in (None, m.place.output)]
        return [score for score in PLOTTED if any(score in self.evaluations[name].scores for name in names)]

    def plot(self, score: str = "fvu", site: str | None = None) -> Figure:
        """`score` against L0, with 95 % intervals: a trace an architecture, the Pareto front, the nulls as points.

        Args:
            site: what members reconstruct, one of `sites()`. None where there are several draws every member, without
                a front or nulls: a score is relative to what is reconstructed.

        Raises:
            InputError: nothing was evaluated, an unknown site, or a score that no member has.
        """
        from .plot import against_l0

        several = site is None and len(self.sites()) > 1
        names = {name for place in (self.sites() if several else [site]) for name in self.at_site(place)}
        if not any(score in self.evaluations[name].scores for name in names):
            raise unknown("score", score, self.evaluations[min(names)].scores)
        members = [m for m in self.members if m.name in names and score in self.evaluations[m.name].scores]
        return against_l0(members, self.evaluations, score, None if several else self.pareto(score, site))

    def plot_training(self, score: str = "dead") -> Figure:
        """One of `TRAINING` against rows: metrics on training rows, and of dead latents over the trainer's window.

        Raises:
            InputError: another metric.
        """
        from .plot import in_training

        if score not in TRAINING:
            raise unknown("training metric", score, TRAINING)
        return in_training(self._course(), score)

    def to_json(self) -> dict[str, Any]:
        """Plain values for files: `members` (rows), `recipes`, `gaps` and, by site and score, the Pareto front."""
        any_of = next(iter(self.evaluations.values()), None)
        about = {"model": any_of.model, "held_out": any_of.held_out} if any_of else {}
        folders = {name: str(path.relative_to(self.run.folder)) for name, path in self.run.dictionaries.items()}
        rows = [{**row, "dictionary": folders.get(row["name"])} for row in self.table()]
        values: dict[str, Any] = {"schema": SCHEMA, **about, "members": rows}
        if self.evaluations:
            fronts = {site: {score: self.pareto(score, site) for score in self.plotted(site)} for site in self.sites()}
            values |= {"recipes": self.recipes(), "gaps": self.gaps(), "pareto": fronts}
        return _finite(values)

    def save(self, folder: Path | str | None = None) -> Path:
        """Write `results.json` and `results.csv` into `folder`, by default the run's, and every dictionary's
        `evaluation.json` beside it."""
        folder = Path(folder or self.run.folder)
        write_json(folder / "results.json", self.to_json())
        rows = _finite(self.table())
        with atomic_path(folder / "results.csv") as temporary, open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
            writer.writeheader()
            writer.writerows(rows)
        for name, evaluation in self.evaluations.items():
            evaluation.save(self.run.artefact(name) / "evaluation.json")
        return folder

    def __repr__(self) -> str:
        return f"{self._title()}\n{aligned(cells(self.table()))}"

    def _repr_html_(self) -> str:
        return as_html(cells(self.table()), self._title())

    def _title(self) -> str:
        return f"Sweep of {len(self.members)} in {self.run.folder}"

    def _scores(self, names: Sequence[str]) -> list[str]:
        """Names of the scores that each of these members has."""
        evaluated = [self.evaluations[name].scores for name in names if name in self.evaluations]
        return [score for score in (evaluated[0] if evaluated else ()) if all(score in scores for scores in evaluated)]

    def _seeds(self) -> dict[str, list[str]]:
        by_recipe: dict[str, list[str]] = {}
        for member in self.members:
            by_recipe.setdefault(member.recipe, []).append(member.name)
        return by_recipe

    def _course(self) -> dict[str, list[dict[str, Any]]]:
        """Every member's metrics by its name, wherever it was trained, up to where it had its rows."""
        runs = [self.run, *(Run(path.parent) for path in sorted(self.run.folder.glob(f"{PASSES}/*/config.json")))]
        courses: dict[str, list[dict[str, Any]]] = {member.name: [] for member in self.members}
        wanted = {member.name: member.training.rows for member in self.members}
        for line in itertools.chain.from_iterable(run.metrics() for run in runs):
            course = courses.get(line["consumer"])
            if course is not None and (not course or course[-1]["rows"] < wanted[line["consumer"]]):
                course.append(line)
        return courses


def _finite(value: Any) -> Any:
    """JSON values, with None for numbers that are not finite."""
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
