"""`monosem compare`: how alike two models, their layers, two ITDAs or two dictionaries are."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any

import tyro
from torch import Tensor

from ....saes.analysis.similarity.atoms import atoms_of, jaccard
from ....saes.analysis.similarity.copies import Copy
from ....saes.analysis.similarity.decoders import compare_decoders, pairing, require_one_width
from ....saes.analysis.similarity.measures import SimilarityConfig, check_measures
from ....saes.analysis.similarity.spans import Spans
from ....saes.architectures.itda.dictionary import ITDA
from ....saes.dictionary import DESCRIPTION, Dictionary
from ....saes.files import load
from ....saes.formats import RELEASED, recognise
from ...errors import InputError
from ...evidence import Evidence
from ...table import aligned
from ...text.corpus import Corpus, TextConfig
from ..checks import check_folder, check_text
from ..command import Command, Result, missing_nulls
from ..options import Flat, ModelText
from ..pages.compare_page import panels, write_compare_page
from ..rows import split_rows
from .compare_models import ALL, ModelComparer, ModelComparison, PairResult, open_named

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CompareCommand(Command):
    """Compare models layer by layer, or dictionaries (ITDAs among them) atom by atom, every score beside its nulls.

    Two or more models, or one and its copies (--against), or two or more dictionaries.
    """

    example = "monosem compare smollm2-135m --against rotated noise:0.1 --every 10"

    what: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Models (a registry or hub name, a folder, `minilm`), or folders of dictionaries or runs."""
    against: tuple[str, ...] = ()
    """Copies of the first model: rotated, noise:SHARE (of activations), weights:SHARE (of weights)."""
    measures: tuple[str, ...] = ALL
    """Of models: cka, cka_unbiased, svcca, regression, relative, jaccard (of ITDAs grown here)."""
    comparison: Flat[ModelComparison] = field(default_factory=ModelComparison)
    similarity: Flat[SimilarityConfig] = field(default_factory=SimilarityConfig)
    corpus: str = "docs:"
    """Text that the models read: `docs:`, `text:PATH`, `jsonl:PATH[#field]` or `hf:NAME[:config][:split][#field]`."""
    dtype: str | None = None
    """bf16, fp16 or fp32; by default bf16 where the hardware multiplies it."""
    device: str | None = None
    """cpu, cuda, cuda:1, ...; by default a GPU if there is one."""
    text: TextConfig = field(
        default_factory=lambda: TextConfig(context=64, pack=False, long="truncate", sort_by_length=False, batch_rows=32)
    )
    """How documents are cut into rows; by default the first 64 tokens of each, in order."""
    covariance_rows: int = 4096
    """Of dictionaries: activations of the first one's model, for the null of their covariance; 0 does without."""
    page: Path | None = None
    """File for an HTML page with heat maps and tables; by default none is written."""

    def __post_init__(self) -> None:
        check_measures(self.measures, ALL)
        for text in self.against:
            Copy.parse(text)
        if not self.what:
            raise InputError("nothing to compare: give two models, one and --against rotated, or two dictionaries")
        if len(self.what) < 2 and not self.against:
            raise InputError(
                f"{' '.join(self.what)} alone is no comparison: give another, or --against rotated noise:0.1"
            )
        if len(set(self.what)) < len(self.what):
            raise InputError(f"one of {', '.join(self.what)} is given twice: compare it with its copies by --against")
        if self.covariance_rows < 0 or 0 < self.covariance_rows < 16:
            raise InputError(f"covariance_rows must be 0 (none) or at least 16, got {self.covariance_rows}")
        if self.page is not None and self.page.is_dir():
            raise InputError(f"--page {self.page} is a folder: give a file, such as {self.page / 'compare.html'}")

    def run(self) -> Result:
        """Compare; JSON key `pairs` holds one object for each two, `overall` layer matching over all."""
        if self.page is not None:
            check_folder(self.page.parent)
        kinds = [is_dictionary(name) for name in self.what]
        if any(kinds) and not all(kinds):
            model, dictionary = self.what[kinds.index(False)], self.what[kinds.index(True)]
            raise InputError(f"{model} is a model and {dictionary} a dictionary: compare like with like")
        if all(kinds) and self.against:
            raise InputError("--against makes copies of a model: leave it out with dictionaries")
        return self._dictionaries() if all(kinds) else self._models()

    def as_text(self, result: Mapping[str, Any]) -> str:
        """The result for people."""
        shown = [panel for panel in panels(dict(result)) if panel.table]
        tables = [f"{panel.title}. {panel.lead}\n{aligned(panel.table)}" for panel in shown]
        return "\n\n".join([*tables, *([f"page: {result['page']}"] if "page" in result else [])])

    def _models(self) -> Result:
        comparer = ModelComparer(self._source(), self.comparison, self.similarity, self.measures)
        results: list[PairResult] = comparer.compare(self.what, [Copy.parse(text) for text in self.against])
        overall = {m: {n: e.to_json() for n, e in scores.items()} for m, scores in comparer.overall(results).items()}
        pairs = [result.to_json() for result in results]
        measured = [score for result in results for scores in result.pairs.values() for score in scores.values()]
        incomplete = [
            f"{' and '.join(result.models)}: {name} could not be measured: {reason}"
            for result in results for name, reason in result.missing.items()
        ]  # fmt: skip
        incomplete += missing_nulls(measured)
        return self._written({"kind": "models", "pairs": pairs, "overall": overall}, incomplete)

    def _dictionaries(self) -> Result:
        if self.covariance_rows:
            check_text(self.corpus)
        loaded = {name: load(name) for name in self.what}
        for a, b in combinations(loaded.values(), 2):
            if not (isinstance(a, ITDA) and isinstance(b, ITDA)):
                require_one_width(a.W_dec, b.W_dec)
        pairs, measured = [], []
        for (first, a), (second, b) in combinations(loaded.items(), 2):
            log.info("matching %d latents of %s with %d of %s", a.n_latents, first, b.n_latents, second)
            scores, heat = self._two(a, b, (first, second))
            measured += scores.values()
            scores = {name: evidence.to_json() for name, evidence in scores.items()}
            pairs.append({"dictionaries": [first, second], "scores": scores, **({"grid": heat} if heat else {})})
        return self._written({"kind": "dictionaries", "pairs": pairs}, missing_nulls(measured))

    def _two(
        self, a: Dictionary, b: Dictionary, names: tuple[str, str]
    ) -> tuple[dict[str, Evidence], list[list[float]]]:
        scores: dict[str, Evidence] = {}
        if isinstance(a, ITDA) and isinstance(b, ITDA):
            spans = self._spans(a, b)
            first, second = (atoms_of(*parts) for parts in zip((a, b), spans, names, strict=True))
            scores |= jaccard(first, second, warm_up=self.comparison.warm_up, seed=self.similarity.seed)
        if a.d_out != b.d_out and scores:
            return scores, []
        rows = self._activations(a)
        matched = compare_decoders(a, b, rows if isinstance(rows, Tensor) else None, seed=self.similarity.seed)
        if isinstance(rows, str):
            matched = {name: replace(score, missing={"covariance": rows}) for name, score in matched.items()}
        return scores | matched, pairing(a, b).tolist()

    def _spans(self, a: ITDA, b: ITDA) -> tuple[Spans | None, Spans | None]:
        """Character places for ITDAs of one text and two tokenizers."""
        tokenizers = [itda.text.get("tokenizer", {}).get("hash") for itda in (a, b)]
        if a.text_hash != b.text_hash or tokenizers[0] == tokenizers[1]:
            return None, None
        first, second = (self._opened(itda) for itda in (a, b))
        return first, second

    def _opened(self, itda: ITDA) -> Spans:
        """The text of an ITDA with its own tokenizer."""
        tokenizer = open_named(self._source(), str(itda.provenance.model.get("name"))).tokenizer
        return Spans(Corpus(itda.text["source"], tokenizer, TextConfig(**itda.text["settings"])), tokenizer)

    def _source(self) -> ModelText:
        return ModelText(corpus=self.corpus, dtype=self.dtype, device=self.device, text=self.text)

    def _activations(self, dictionary: Dictionary) -> Tensor | str | None:
        """Rows of the dictionary's site, or the reason why there are none; None where none are asked for."""
        name, ports = dictionary.provenance.model.get("name"), dictionary.place.outputs
        site = ports[0].site if len(ports) == 1 else None
        if not self.covariance_rows:
            return None
        if not name or not site:
            lacks = "one output site" if name else "its model"
            need = f"it needs rows of the first dictionary's model, and {dictionary!r} does not name {lacks}"
            return f"{need}: do without it by --covariance-rows 0"
        source = replace(self._source(), model=str(name))
        try:
            return split_rows(source, None, source.open_model().site(site), self.covariance_rows, 16, 256)[0]
        except InputError as error:
            return str(error)

    def _written(self, result: dict[str, Any], incomplete: list[str]) -> Result:
        if self.page is None:
            return self.result(result, incomplete=incomplete)
        write_compare_page(self.page, " and ".join(self.what), result)
        return self.result({"page": str(self.page), **result}, self.page, incomplete=incomplete)


def is_dictionary(name: str) -> bool:
    """True if a name is a dictionary's: a folder of one, a run's, another library's, or a place on the hub."""
    if name.startswith(("hf:", RELEASED)):
        return True
    path = Path(name)
    ours = (path / DESCRIPTION).is_file() or any(path.glob(f"dictionaries/*/{DESCRIPTION}"))
    return path.exists() and (ours or bool(recognise(name)))
