"""`monosem atoms`: are dictionaries the atoms of a model? Uniqueness and faithfulness beside their nulls."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import tyro

from ....saes.analysis.atoms.coordinates import WhitenedTrainer
from ....saes.analysis.atoms.faithfulness import require_atoms
from ....saes.analysis.atoms.plot import coherence_figure, faithfulness_figure
from ....saes.analysis.atoms.report import GROWTH, AtomsConfig, Seen, measure_atoms, read_seen
from ....saes.analysis.atoms.results import LEGEND, AtomsReport
from ....saes.architectures.jumprelu import JumpReLU, JumpReLUConfig
from ....saes.dictionary import Dictionary, Provenance
from ....saes.place import Place
from ....saes.training.trainer import TrainConfig, Trainer
from ...errors import InputError
from ...models.hooked_model import HookedModel
from ...models.sites import Site
from ...runs.asked import require_rows
from ...runs.loop import train
from ...runs.run import Run
from ...storage import write_json
from ...streams.activation_stream import ActivationStream, StreamConfig
from ...streams.store import ActivationStore
from ...table import aligned
from ...text.corpus import Corpus
from ..checks import check_run
from ..command import Command, Result
from ..options import Flat, ModelText
from ..pages.figures_page import FigureSection, write_figures_page
from ..used_dictionaries import UsedDictionaries

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AtomsCommand(Command):
    """Report on neurons, on dictionaries, and on JumpReLU SAEs that are trained here on whitened activations.

    The latter are trained twice at one size, on `rows` rows and on ten times as many: what only fits the number
    of tokens is no atom. Writes report.json, atoms.html and the trained dictionaries.
    """

    example = "monosem atoms runs/atoms --rows 5000"

    out: tyro.conf.Positional[Path]
    """A new folder."""
    dictionaries: tuple[Path, ...] = ()
    """Folders of dictionaries of one site, or of runs with exactly one."""
    site: str | None = None
    """By default that of the dictionaries, or resid_post.12."""
    rows: int = 20_000
    """Rows to train the smaller atoms SAE on, the larger on ten times as many; 0 trains none."""
    n_latents: int | None = None
    """Atoms of those; by default four for each dimension."""
    k: int = 32
    """The L0 that those are steered to."""
    source: Flat[ModelText] = field(default_factory=ModelText)
    store: Path | None = None
    """Store of the training side (written by `monosem harvest` from the training split), read in place of the model.
    Fresh rows still come from the held-out split."""
    atoms: Flat[AtomsConfig] = field(default_factory=AtomsConfig)
    stream: StreamConfig = field(default_factory=lambda: StreamConfig(buffer=16_384))
    allow_short: bool = False
    """Accept a training side with fewer rows than the atoms SAEs ask for."""
    resume: bool = False
    """Continue the training of the atoms SAEs in `out`, then measure."""
    use: Flat[UsedDictionaries] = field(default_factory=UsedDictionaries)

    def __post_init__(self) -> None:
        if self.rows < 0:
            raise InputError(f"rows must be 0 or more, got {self.rows}")
        if self.k < 1 or (self.n_latents is not None and self.n_latents < self.k):
            raise InputError(f"k must be from 1 to n_latents, got k={self.k} and n_latents={self.n_latents}")

    def run(self) -> Result:
        """Measure, train, measure again; the result is also written as `report.json`."""
        given = {str(path): self.use.read(path)[1] for path in self.dictionaries}
        for dictionary in given.values():
            require_atoms(dictionary)
        if self.store is not None:
            ActivationStore.open(self.store)
        check_run(self.out, self.resume)
        source = self.source.of(list(given.values()))
        self.use.check(source, list(given.values()), [self.site] if self.site else [])
        model = self.use.open_model(source, list(given.values()))
        site = self._site(model, given)
        side = self._training_side(model, site)
        if self.rows:
            require_rows(side, GROWTH * self.rows, self.allow_short)
        seen = read_seen(side, site, self.atoms, progress=True)
        options = {"train_rows": self.rows, "n_latents": self.n_latents, "k": self.k}
        run = Run.create(self.out, asdict(self.atoms) | options, side.fingerprint(), resume=self.resume)
        trained = self._trained(model, site, seen, run) if self.rows else {}
        report = measure_atoms(
            {**given, **trained}, seen, self._fresh(model, site, whole=False), self._fresh(model, site, whole=True),
            self.atoms, held_out=f"held-out documents of {self.source.corpus}", progress=True,
        )  # fmt: skip
        if not self.rows:
            run.finish()
        result = {"run": str(run.folder), "model": model.name, **report.to_json()}
        write_json(run.folder / "report.json", result)
        page = _write_page(run.folder / "atoms.html", report, result)
        return self.result({**result, "page": str(page), "table": report.table()}, page)

    def as_text(self, result: Mapping[str, Any]) -> str:
        """The table, what its brackets hold, and where the files are."""
        return "\n".join([aligned(result["table"]), "", LEGEND, *(f"{key}: {result[key]}" for key in ("run", "page"))])

    def _site(self, model: HookedModel, given: Mapping[str, Dictionary]) -> Site:
        """The one site of all dictionaries, once it is known to be the model's."""
        sites = {} if self.site is None else {"--site": model.site(self.site)}
        for name, dictionary in given.items():
            sites[name] = dictionary.check(model).site
        distinct = set(sites.values()) or {model.site("resid_post.12")}
        if len(distinct) > 1:
            listed = ", ".join(f"{site} ({name})" for name, site in sites.items())
            raise InputError(f"the report is on one site, and these are several: {listed}")
        return distinct.pop()

    def _training_side(self, model: HookedModel, site: Site) -> ActivationStream:
        if self.store is not None:
            store = ActivationStore.open(self.store)
            _require_same_model(store, model)
            return ActivationStream.from_store(store, sites=[site], config=self.stream)
        return self._stream(model, self.source.open_corpus(model, split="train"), site)

    def _fresh(self, model: HookedModel, site: Site, whole: bool) -> ActivationStream:
        """Held-out rows, hardly shuffled, since they are only summed; the whole of them with massive activations."""
        text_options: dict[str, Any] = {"bos": False, "keep_first": True} if whole else {}
        corpus = self.source.open_corpus(model, split="heldout", **text_options)
        options: dict[str, Any] = {"max_norm_multiple": None} if whole else {}
        return self._stream(model, corpus, site, buffer=2 * self.stream.batch, **options)

    def _stream(self, model: HookedModel, corpus: Corpus, site: Site, **options: Any) -> ActivationStream:
        """One pass over the text: what is counted are different tokens."""
        return ActivationStream(model, corpus, [site], config=self.stream, epochs=1, **options)

    def _trained(self, model: HookedModel, site: Site, seen: Seen, run: Run) -> dict[str, Dictionary]:
        """The atoms SAEs: one size, two numbers of rows, one stream."""
        product = self.atoms.product(seen.moment)
        stream = self._training_side(model, site)
        d = stream.widths[site]
        place, origin = Place.parse(site).on(stream), Provenance(model.fingerprint())
        trainers = [
            WhitenedTrainer(
                Trainer(
                    JumpReLU(JumpReLUConfig(d, self.n_latents or 4 * d, k=self.k)), place,
                    TrainConfig(rows=rows), name=f"atoms-{rows}", provenance=origin,
                ), product, seen.moment.mean,
            )
            for rows in (self.rows, GROWTH * self.rows)
        ]  # fmt: skip
        train(stream, trainers, run, steps=-(-GROWTH * self.rows // self.stream.batch), allow_short=self.allow_short)
        return {member.name: member.folded() for member in trainers}


def _require_same_model(store: ActivationStore, model: HookedModel) -> None:
    written, fingerprint = store.manifest.get("source", {}).get("model", {}), model.fingerprint()
    if written and written.get("parameters") != fingerprint["parameters"]:
        raise InputError(
            f"{store.folder} was harvested from {written.get('name')!r} and the model is {model.name!r}, with other "
            "parameters: give the store of this model, or --model"
        )


def _write_page(path: Path, report: AtomsReport, result: Mapping[str, Any]) -> Path:
    facts = {"Model": result["model"], "Site": report.site, "Held out": report.held_out,
             "Ridge": f"{report.product.ridge:.3g}", "Condition": f"{report.product.condition:.3g}",
             **{name: f"{value:,}" for name, value in report.counts.items()}}  # fmt: skip
    plots = FigureSection(
        "Coherence and faithfulness",
        "Codes are unique where the largest coherence, not a quantile, is below the limit. The metric alone makes any "
        "atoms look nearly orthogonal: compare with random ones, dotted.",
        {"Coherence of pairs of atoms": coherence_figure(report.subjects),
         "R2, and nulls": faithfulness_figure(report.subjects)},
    )  # fmt: skip
    table = FigureSection("Dictionaries", LEGEND, table=report.table())
    return write_figures_page(path, f"Atoms of {report.site}", facts, [plots, table], {"report": result})
