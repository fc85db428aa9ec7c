"""`monosem sparsity`: which inputs of linear maps and which neurons can be left out, and what the model loses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import tyro

from ....interventions.pruning.activation_sparsity.cores import CoresConfig, LayerCores, measure_cores, require_prompts
from ....interventions.pruning.activation_sparsity.curves import Curves, CurvesConfig, measure_curves
from ....interventions.pruning.activation_sparsity.modules import halves, linear_modules, mlp_output, read_passages
from ....interventions.pruning.activation_sparsity.plot import curves_figure, drift_figure
from ....interventions.pruning.activation_sparsity.tables import (
    CORES_LEGEND,
    CURVES_LEGEND,
    LOSSES_LEGEND,
    cores_table,
    curves_table,
    losses_table,
)
from ....saes.evaluation.results import flat
from ...errors import InputError
from ...storage import write_json
from ...table import aligned
from ...text.corpus import Corpus, TextConfig
from ...text.packing import TokenBatch
from ...text.sentence_encoder import SentenceEncoder
from ..checks import check_folder
from ..command import Command, Result
from ..options import Flat, ModelText
from ..pages.figures_page import FigureSection, write_figures_page


@dataclass(frozen=True)
class SparsityCommand(Command):
    """R-Sparse curves of linear maps and CoreInfer's core neurons of MLPs, every figure beside its nulls.

    Writes report.json, sparsity.html and one decision for each layer and granularity into decisions/.
    """

    example = "monosem sparsity runs/sparsity --layers 12"

    out: tyro.conf.Positional[Path]
    """A new folder."""
    layers: tuple[int, ...] = (6, 12, 18)
    """Layers to measure."""
    maps: tuple[str, ...] = ()
    """Linear maps of a layer, such as mlp.down_proj; by default all."""
    passages: int = 12
    """Documents that figures are measured on, each cut off at --text.context; the first half is the prompt."""
    calibration: int = 4
    """Documents before those, for thresholds, shares and the global core."""
    rsparse: bool = True
    """Measure the curves."""
    coreinfer: bool = True
    """Measure core neurons."""
    embeddings: bool = True
    """Compare cores with the similarity of MiniLM's embeddings."""
    source: Flat[ModelText] = field(default_factory=lambda: ModelText(text=TextConfig(context=256)))
    curves: CurvesConfig = field(default_factory=CurvesConfig)
    cores: CoresConfig = field(default_factory=CoresConfig)

    def __post_init__(self) -> None:
        for name, least in {"passages": 2, "calibration": 1}.items():
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not self.layers:
            raise InputError("give at least one of --layers")
        if not (self.rsparse or self.coreinfer):
            raise InputError("there is nothing to measure: leave out --no-rsparse or --no-coreinfer")

    def run(self) -> Result:
        """Measure and write; the result is also `report.json`."""
        if (self.out / "report.json").exists():
            raise InputError(f"{self.out} already holds a report: choose another folder")
        check_folder(self.out)
        self.source.check([f"mlp_out.{layer}" for layer in self.layers])
        model = self.source.open_model()
        modules = linear_modules(model, self.layers, self.maps)
        for layer in self.layers:
            mlp_output(model, layer)
        encoder = SentenceEncoder(tokens=256) if self.coreinfer and self.embeddings else None
        corpus = self.source.open_corpus(model, split="heldout", pack=False, long="truncate", sort_by_length=False)
        before, passages = read_passages(model, corpus, self.calibration, self.passages, progress=True)
        if self.coreinfer:
            require_prompts(passages, self.cores)
        curves = cores = None
        if self.rsparse:
            curves = measure_curves(model, modules, before, passages, self.curves, progress=True)
        if self.coreinfer:
            embedded = None if encoder is None else encoder.embed(prompts(corpus, passages), progress=True)
            cores = measure_cores(
                model, self.layers, before, passages, self.cores, embeddings=embedded, progress=True
            )  # fmt: skip
        about = {"model": model.name, "corpus": corpus.source.name, "passages": len(passages.tokens),
                 "calibration": len(before.tokens), "context": corpus.config.context}  # fmt: skip
        result = self._written(about, curves, cores)
        return self.result(result, result["page"])

    def as_text(self, result: Mapping[str, Any]) -> str:
        """The tables with what they show, and where the files are."""
        lines: list[str] = []
        for name, legend in (("curves", CURVES_LEGEND), ("losses", LOSSES_LEGEND), ("cores", CORES_LEGEND)):
            if name in result["tables"]:
                lines += [aligned(result["tables"][name]), legend, ""]
        return "\n".join([*lines, *(f"{key}: {result[key]}" for key in ("report", "page"))])

    def _written(self, about: dict[str, Any], curves: Curves | None, cores: list[LayerCores] | None) -> dict[str, Any]:
        result: dict[str, Any] = {**about, "options": {"curves": asdict(self.curves), "cores": asdict(self.cores)}}
        tables: dict[str, list[list[str]]] = {}
        decisions = []
        if curves is not None:
            result["points"] = [point.to_json() for one in curves.modules for point in one.points]
            result["losses"] = {group: {split: flat({"delta_ce": one}) for split, one in found.items()}
                                for group, found in curves.losses.items()}  # fmt: skip
            tables |= {"curves": curves_table(curves, self.curves.decide_at), "losses": losses_table(curves.losses)}
            decisions += curves.decisions
        if cores is not None:
            result["cores"] = [report.to_json() for report in cores]
            tables["cores"] = cores_table(cores)
            decisions += [decision for report in cores for decision in report.decisions]
        paths = [
            replace(one, about=about).save(self.out / "decisions" / f"layer-{one.layer}-{one.granularity}.json")
            for one in decisions
        ]
        result["decisions"] = list(map(str, paths))
        page = _write_page(self.out / "sparsity.html", about, curves, cores, tables, result)
        report = self.out / "report.json"
        write_json(report, result)
        return {**result, "report": str(report), "page": str(page), "tables": tables}


def prompts(corpus: Corpus, passages: TokenBatch) -> list[str]:
    """The text of the first half of every passage."""
    half = halves(passages)
    return [corpus.tokenizer.decode(row[:half].tolist(), skip_special=True) for row in passages.tokens]


def _write_page(
    path: Path, about: Mapping[str, Any], curves: Curves | None, cores: list[LayerCores] | None,
    tables: Mapping[str, list[list[str]]], result: Mapping[str, Any],
) -> Path:  # fmt: skip
    parts = []
    if curves is not None:
        figures = {one.module.name: curves_figure(one) for one in curves.modules}
        parts += [
            FigureSection("R-Sparse: linear maps", CURVES_LEGEND, figures, tables["curves"]),
            FigureSection("R-Sparse: what the model loses", LOSSES_LEGEND, table=tables["losses"]),
        ]
    if cores is not None:
        figures = {"Recall of later token cores": drift_figure(cores)}
        parts.append(FigureSection("CoreInfer: core neurons", CORES_LEGEND, figures, tables["cores"]))
    facts = {key.capitalize(): str(value) for key, value in about.items()}
    return write_figures_page(path, f"Activation sparsity of {about['model']}", facts, parts, {"report": result})
