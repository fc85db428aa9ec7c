"""`monosem probe`: read-outs of labelled texts at every site, from one pass of the model, beside their nulls."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro

from ....probes.fitting.calibration import calibrate, calibration_scores, chances_of, reliability
from ....probes.fitting.fits import require_kinds
from ....probes.labelled_files import TextsToProbe, open_texts
from ....probes.labels import Labels
from ....probes.layer_sweep import ProbeSweep, ReadConfig, expand_sites, probe_sweep, read_tokens
from ....probes.measure import MeasureConfig, Measured
from ....saes.dictionary import Dictionary
from ...errors import InputError, unknown
from ...models.hooked_model import HookedModel
from ...runs.run import Run
from ...storage import atomic_path, write_json
from ...table import aligned
from ..checks import check_run
from ..command import Command, Result
from ..options import Flat, ModelOptions
from ..pages.probe_page import best_table, write_probe_page
from ..used_dictionaries import UsedDictionaries

SCHEMA = 1
CALIBRATIONS = ("platt", "isotonic")


@dataclass(frozen=True)
class ProbeCommand(Command):
    """Train and measure probes of labelled texts: one harvest for all sites, kinds, heads and dictionaries.

    Writes results.json, probe.html and one folder for each probe.
    """

    example = "monosem probe runs/probe --data sae-probes:92_glue_sst2 --texts 200 --sites resid_post.12"

    out: tyro.conf.Positional[Path]
    """Folder of the run."""
    data: str
    """FILE.jsonl#text,label[,group], the same of a .csv or .tsv, or sae-probes:NAME. Texts of one group (equal ones,
    unless a field says so) are never on both sides of a split."""
    sites: tuple[str, ...] = ()
    """Names or patterns; by default `resid_post.*`, or the dictionary's own site."""
    kinds: tuple[str, ...] = ("logistic", "mean_difference", "ridge", "lda")
    """mean_difference, ridge, lda, logistic, multinomial, k_sparse, mlp and attention."""
    dictionary: Path | None = None
    """Probe the codes of this dictionary too."""
    numbers: bool = False
    """Labels are numbers to predict."""
    drop_missing: bool = False
    """Leave out lines whose label or group is missing; results.json counts them."""
    texts: int | None = None
    """Use so many texts: the first of a file, drawn half and half of a data set's classes."""
    source: Flat[ModelOptions] = field(default_factory=ModelOptions)
    read: Flat[ReadConfig] = field(default_factory=ReadConfig)
    measure: Flat[MeasureConfig] = field(default_factory=MeasureConfig)
    calibration: Literal["platt", "isotonic"] = "platt"
    """How chances are learned from scores of training units, for two classes."""
    examples: int = 12
    """Texts shown token by token, and worst errors."""
    resume: bool = False
    """Go on with the run in `out`: reading goes on where it stopped, fits are repeated."""
    use: Flat[UsedDictionaries] = field(default_factory=UsedDictionaries)

    def __post_init__(self) -> None:
        require_kinds(self.kinds)
        if self.calibration not in CALIBRATIONS:
            raise unknown("calibration", self.calibration, CALIBRATIONS)
        if self.examples < 0:
            raise InputError(f"examples must be at least 0, got {self.examples}")
        if self.numbers and (others := [kind for kind in self.kinds if kind not in ("ridge", "mlp")]):
            raise InputError(f"{', '.join(others)} cannot predict numbers: name --kinds ridge mlp")

    def run(self) -> Result:
        """Read, fit, measure, write the results, and return them as one object."""
        data = open_texts(self.data, self.numbers, self.texts, self.measure.seed, drop_missing=self.drop_missing)
        self.measure.splits(data.labels)
        dictionary = None if self.dictionary is None else self.use.read(self.dictionary)[1]
        check_run(self.out, self.resume)
        given = [] if dictionary is None else [dictionary]
        source = self.source.of(given)
        expand_sites(self.use.check(source, given, self.sites), self.sites)
        model = self.use.open_model(source, given)
        sites = self.sites or (() if dictionary is not None else ("resid_post.*",))
        if dictionary is not None:
            sites = (*sites, str(dictionary.check(model).site))
        expand_sites(model, sites)
        read_tokens(model, data.texts, self.read)
        run = Run.create(self.out, self._config(sites), _fingerprints(model, data), resume=self.resume)
        sweep = probe_sweep(
            model, data.texts, data.labels, sites, self.kinds, self.read, self.measure,
            dictionaries=given, run=run, progress=True,
        )  # fmt: skip
        result = self._finish(run, sweep, model, data, dictionary)
        return self.result(result, result["page"])

    def as_text(self, result: Mapping[str, Any]) -> str:
        """The result for people: the best place of every kind, and where the files are."""
        seconds = result["seconds"]
        return "\n".join(
            [
                aligned(best_table(result)),
                "",
                *([f"{result['dropped']} lines without a label were left out"] if result["dropped"] else []),
                f"read in {seconds['read']:.0f} s, fitted and measured in {seconds['fit']:.0f} s",
                *(f"{key}: {result[key]}" for key in ("run", "results", "page")),
            ]
        )

    def _finish(
        self, run: Run, sweep: ProbeSweep, model: HookedModel, data: TextsToProbe, dictionary: Dictionary | None
    ) -> dict[str, Any]:
        """Write probes, results and page."""
        for place, kinds in sweep.measured.items():
            for kind, found in kinds.items():
                with atomic_path(run.artefact(f"{file_name(place)}.{kind}", "probes")) as beside:
                    found.probe.save(beside)
        chosen = {kind: sweep.chosen(kind) for kind in self.kinds}
        best = {kind: one.place for kind, one in chosen.items()}
        calibrated = self._calibrated(sweep, best)
        result: dict[str, Any] = {
            "schema": SCHEMA, "run": str(run.folder), "results": str(run.folder / "results.json"),
            "page": str(run.folder / "probe.html"), "data": data.name, "dropped": data.dropped,
            **sweep.to_json(), "best": best,
            "at_best": {kind: {name: score.to_json() for name, score in one.scores.items()}
                        for kind, one in chosen.items()},
            "calibration": {kind: held["scores"] for kind, held in calibrated.items()},
        }  # fmt: skip
        write_json(run.folder / "results.json", result)
        bins = {kind: held["bins"] for kind, held in calibrated.items()}
        write_probe_page(run.folder / "probe.html", result, sweep, data, bins, model, dictionary, self.examples)
        return result

    def _calibrated(self, sweep: ProbeSweep, best: dict[str, str]) -> dict[str, dict[str, Any]]:
        """Of two classes and one split: scores and reliability of every kind at its best place."""
        labels = next(iter(sweep.units.values())).labels
        if not labels.binary or self.measure.folds is not None:
            return {}
        return {
            kind: self._calibrated_kind(sweep, kind, place, labels)
            for kind, place in best.items()
            if kind != "attention"
        }

    def _calibrated_kind(self, sweep: ProbeSweep, kind: str, place: str, labels: Labels) -> dict[str, Any]:
        found: Measured = sweep[place][kind]
        units, held = sweep.units[place], set(found.tested.tolist())
        train = units.take([unit for unit in range(len(units)) if unit not in held])
        chances = chances_of(found.read, calibrate(kind, train, self.measure.fit, self.calibration))
        told = labels.take(found.tested)
        raw = found.read[:, -1] - (found.read[:, 0] if found.read.shape[1] == 2 else 0)
        base = float(train.labels.y.double().mean())
        scores = calibration_scores(
            chances, told, base_rate=base, uncalibrated=raw.double().numpy(), seed=self.measure.seed
        )
        return {
            "scores": {name: one.to_json() for name, one in scores.items()},
            "bins": reliability(chances, told.y.numpy()),
        }

    def _config(self, sites: tuple[str, ...]) -> dict[str, Any]:
        names = ("data", "kinds", "numbers", "texts", "calibration", "examples")
        told = {name: getattr(self, name) for name in names} | ({"drop_missing": True} if self.drop_missing else {})
        dictionary = None if self.dictionary is None else str(self.dictionary)
        return {**told, "sites": sites, "dictionary": dictionary, "read": asdict(self.read),
                "measure": asdict(self.measure)}  # fmt: skip


def file_name(place: str) -> str:
    """A place as a plain file name."""
    return place.replace(" ", "_").replace("/", "_").replace(":", "_")


def _fingerprints(model: HookedModel, data: TextsToProbe) -> dict[str, Any]:
    content = json.dumps([data.texts, data.labels.y.tolist(), data.labels.groups.tolist()])
    return {"model": model.fingerprint(), "texts": hashlib.sha256(content.encode()).hexdigest()}
