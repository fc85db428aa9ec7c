"""Models side by side, layer by layer: what `monosem compare` does with models."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import torch

from ....saes.analysis.similarity.atoms import AtomSet, checked_warm_up, jaccard
from ....saes.analysis.similarity.copies import Copy, copied, moved_weights
from ....saes.analysis.similarity.growth import grow_atoms
from ....saes.analysis.similarity.layers import LayerGrid, Prepared, atom_grids, layer_grids, layer_match
from ....saes.analysis.similarity.measures import MEASURES, SimilarityConfig, compare_rows
from ....saes.analysis.similarity.representations import Representations, align, harvest
from ....saes.analysis.similarity.rows import split_documents
from ....saes.training.itda.growth_config import GrowthConfig
from ...errors import InputError
from ...evidence import Evidence
from ...models.hooked_model import HookedModel
from ...models.sites import KINDS
from ...text.sentence_encoder import minilm
from ..checks import check_text
from ..options import ModelText

log = logging.getLogger(__name__)

JACCARD = "jaccard"
ALL = (*MEASURES, JACCARD)


@dataclass(frozen=True)
class ModelComparison:
    """Options of a comparison of models: the activations that are read, and the measures of similarity."""

    sites: tuple[str, ...] = ("resid_post",)
    """Sites, in the order of the layers; a kind alone stands for all its layers."""
    every: int = 1
    """Of the layers that a kind stands for, take every so many."""
    rows: int = 6144
    """Rows read of each model; ITDAs grow on all of them."""
    measured: int = 1536
    """How many of these, spread evenly, the other measures take."""
    warm_up: int | None = None
    """Rows at the start whose atoms do not count. Unset: 8 for each dimension."""
    evidence_layers: int = 3
    """Layers, spread evenly, whose scores get intervals and nulls."""
    itda: GrowthConfig = field(default_factory=lambda: GrowthConfig(k=8, tau=0.15, max_atoms=16_384))
    """How the ITDAs grow."""

    def __post_init__(self) -> None:
        if not self.sites:
            raise InputError("--sites names no site: leave it out for the residual stream, or give resid_post.12")
        if self.every < 1:
            raise InputError(f"every must be at least 1, got {self.every}")
        if not 16 <= self.measured <= self.rows:
            raise InputError(f"measured={self.measured} must be from 16 to rows={self.rows}")
        if self.evidence_layers < 0:
            raise InputError(f"evidence_layers must be at least 0, got {self.evidence_layers}")


@dataclass(frozen=True)
class PairResult:
    """Two models, or a model and its copy."""

    models: tuple[str, str]
    rows: int
    """Rows both have."""
    grids: dict[str, LayerGrid]
    matching: dict[str, dict[str, Evidence]]
    """By measure: `layer_match` and so on; empty where there is one layer."""
    pairs: dict[str, dict[str, Evidence]]
    """By two sites: every measure with its interval and nulls."""
    copy: str | None = None
    """How the second was copied from the first; None for two models."""
    missing: dict[str, str] = field(default_factory=dict)
    """Reason of each measure that was asked for and could not be taken, by its name or its name and sites."""

    def to_json(self) -> dict[str, Any]:
        """Plain values for files."""
        return {
            "models": list(self.models), "copy": self.copy, "rows": self.rows,
            "missing": self.missing,
            "matching": {m: {n: e.to_json() for n, e in scores.items()} for m, scores in self.matching.items()},
            "pairs": {sites: {n: e.to_json() for n, e in scores.items()} for sites, scores in self.pairs.items()},
            "grids": {name: grid.to_json() for name, grid in self.grids.items()},
        }  # fmt: skip


@dataclass(frozen=True)
class _Side:
    """One model on the rows of a pair, with what is made of it once."""

    whole: Representations
    prepared: Prepared
    atoms: dict[str, AtomSet]
    no_atoms: str | None
    """Reason why atoms that are asked for could not be grown."""


class ModelComparer:
    """Compares models on one text; what is made of the first model is kept for its copies.

    Args:
        source: text, dtype and device; its model is replaced by each name.
        measures: some of `ALL`.
    """

    def __init__(
        self, source: ModelText, options: ModelComparison, config: SimilarityConfig, measures: Sequence[str]
    ) -> None:
        self.source, self.options, self.config, self.measures = source, options, config, tuple(measures)
        self._kept: _Side | None = None

    def compare(self, names: Sequence[str], copies: Sequence[Copy]) -> list[PairResult]:
        """Every two of the models, and the first with each of its copies.

        Raises:
            InputError: fewer than two things to compare, too few rows for the warm-up, or a model, text or site that
                cannot be used.
        """
        self._check(names)
        models = [open_named(self.source, name) for name in names]
        if JACCARD in self.measures:
            checked_warm_up(self.options.warm_up, max(int(model.d_model or 0) for model in models), self.options.rows)
        by_character = len({_tokenizer(model) for model in models}) > 1
        sides: list[Representations] = []
        for model in models:
            sides.append(self._read(model, by_character, sides[0] if sides else None))
        results = []
        for how, other in self._copies(models[0], sides[0], copies, by_character):
            log.info("%s against %s", sides[0].name, how)
            results.append(replace(self._pair(sides[0], other), copy=str(how)))
        for first, second in combinations(sides, 2):
            log.info("%s against %s", first.name, second.name)
            results.append(self._pair(first, second))
        return results

    def _check(self, names: Sequence[str]) -> None:
        if "relative" in self.measures and self.config.anchors > self.options.measured * (1 - self.config.held_out):
            raise InputError(
                f"anchors={self.config.anchors} are more than the rows left of measured={self.options.measured} with"
                f" held_out={self.config.held_out:.3g}: give fewer anchors, or measure more rows"
            )
        for name in names:
            check_named(self.source, name, self.options.sites)

    def overall(self, results: Sequence[PairResult]) -> dict[str, dict[str, Evidence]]:
        """Layer matching over all pairs of three or more models of as many layers, by measure: the published score."""
        models, scores = [result for result in results if result.copy is None], {}
        if len(models) < 3 or any(
            "layer_match" not in scored for result in models for scored in result.matching.values()
        ):
            return {}
        for measure in models[0].matching:
            if not all(measure in result.grids for result in models):
                continue
            grids = [result.grids[measure] for result in models]
            both = [part for grid in grids for part in (grid.across, grid.back)]
            selves = {name: part for grid in grids for name, part in zip(grid.models, grid.within, strict=True)}
            everything = {"layer_match": both, "layer_match_with_self": [*both, *selves.values()]}
            scores[measure] = {
                name: layer_match(parts, name=name, seed=self.config.seed) for name, parts in everything.items()
            }
        return scores

    def _read(self, model: HookedModel, by_character: bool, first: Representations | None) -> Representations:
        sites = [site for text in self.options.sites for site in _layers(model, text, self.options.every)]
        through = None if first is None else int(first.documents.max())
        return harvest(
            model, self.source.open_corpus(model), sites, rows=None if first is not None else self.options.rows,
            through=through, by_character=by_character, progress=True,
        )  # fmt: skip

    def _copies(
        self, model: HookedModel, original: Representations, copies: Sequence[Copy], by_character: bool
    ) -> Iterator[tuple[Copy, Representations]]:
        """One at a time: each holds as much memory as the model's own rows."""
        for how in copies:
            if how.kind == "weights":
                moved = moved_weights(model, float(how.share or 0), self.config.seed)
                yield how, self._read(moved, by_character, original)
            else:
                yield how, copied(original, how, self.config.seed)

    def _side(self, whole: Representations, chosen: torch.Tensor, keep: bool) -> _Side:
        """Prepared rows and grown ITDAs; the last that were asked for of a whole model are kept, for its next pair."""
        if self._kept is not None and self._kept.whole is whole:
            return self._kept
        taken = whole.take(chosen)
        split = split_documents(taken.documents, self.config.held_out, self.config.seed)
        rows = [name for name in self.measures if name != JACCARD]
        prepared = Prepared.of(taken, split, self.config, rows, progress=True) if rows else Prepared(taken, [], {})
        reason = self._no_atoms(whole)
        wanted = JACCARD in self.measures and reason is None
        side = _Side(whole, prepared, grow_atoms(whole, self.options.itda, progress=True) if wanted else {}, reason)
        if keep:
            self._kept = side
        return side

    def _no_atoms(self, whole: Representations) -> str | None:
        """Reason why there are no atoms where they are asked for: no rows past the warm-up."""
        if JACCARD not in self.measures:
            return None
        try:
            checked_warm_up(self.options.warm_up, max(x.shape[1] for x in whole.acts.values()), len(whole))
        except InputError as error:
            return f"no ITDA of {whole.name} on the rows that both have: {error}"
        return None

    def _pair(self, first: Representations, second: Representations) -> PairResult:
        own = first
        first, second = align(first, second)
        count = min(self.options.measured, len(first))
        chosen = torch.arange(count) * len(first) // count
        a, b = self._side(first, chosen, keep=first is own), self._side(second, chosen, keep=False)
        grids = layer_grids(a.prepared, b.prepared, progress=True)
        grids = {name: grid for name, grid in grids.items() if name in self.measures}
        if a.atoms and b.atoms:
            width = max(atoms.width for side in (a, b) for atoms in side.atoms.values())
            warm_up = checked_warm_up(self.options.warm_up, width, len(first))
            grids |= atom_grids(a.atoms, b.atoms, (first.name, second.name), warm_up)
        several = min(len(first.acts), len(second.acts)) > 1
        matching = {name: grid.evidence(self.config.seed) for name, grid in grids.items()} if several else {}
        reason = a.no_atoms or b.no_atoms
        missing = {} if reason is None else {JACCARD: reason}
        pairs = {f"{i} ~ {j}": self._evidence(a, b, i, j, missing) for i, j in self._shown(first, second)}
        return PairResult((first.name, second.name), len(first), grids, matching, pairs, missing=missing)

    def _shown(self, first: Representations, second: Representations) -> list[tuple[str, str]]:
        """Sites of both at equal depth, spread evenly."""
        sites = [list(side.acts) for side in (first, second)]
        count = min(self.options.evidence_layers, *map(len, sites))
        depths = [0.5] if count == 1 else [i / (count - 1) for i in range(count)]
        ours, theirs = ([side[round(depth * (len(side) - 1))] for depth in depths] for side in sites)
        return list(zip(ours, theirs, strict=True))

    def _evidence(self, a: _Side, b: _Side, i: str, j: str, missing: dict[str, str]) -> dict[str, Evidence]:
        """Scores of two sites; what cannot be measured is added to `missing`."""
        scores: dict[str, Evidence] = {}
        rows, seed = [name for name in self.measures if name != JACCARD], self.config.seed
        x, y = a.prepared.representations, b.prepared.representations
        if rows:
            names = (f"{i} of {x.name}", f"{j} of {y.name}")
            scores = compare_rows(x.acts[i], y.acts[j], x.documents, self.config, measures=rows, names=names)
        if a.atoms and b.atoms:
            null = grow_atoms(b.whole, self.options.itda, sites=[j], shuffle=seed)[j]
            try:
                scores |= jaccard(a.atoms[i], b.atoms[j], shuffled=null, warm_up=self.options.warm_up, seed=seed)
            except InputError as error:  # the other measures took minutes: they are kept
                missing[f"{JACCARD} of {i} ~ {j}"] = str(error)
        return scores


def open_named(source: ModelText, name: str) -> HookedModel:
    """The model of that name; `minilm` is the sentence encoder of the installed wheel."""
    return minilm() if name == "minilm" else replace(source, model=name).open_model()


def check_named(source: ModelText, name: str, sites: Sequence[str]) -> None:
    """Refuse what can be refused before a model is loaded.

    Raises:
        InputError: a text, device, dtype, model or site that cannot be used.
    """
    if name == "minilm":
        check_text(source.corpus)
    else:
        replace(source, model=name).check([f"{site}.0" if site in KINDS else site for site in sites])


def _layers(model: HookedModel, text: str, every: int) -> list[str]:
    """One site, or for a kind those of all layers, or of every so many."""
    if text in KINDS:
        return [str(model.site(f"{text}.{layer}")) for layer in range(0, max(1, model.n_layers), every)]
    return [str(model.site(text))]


def _tokenizer(model: HookedModel) -> str:
    """A hash of the vocabulary, which tells tokenizers apart."""
    if model.tokenizer is None:
        raise InputError(f"{model.name} comes without a tokenizer, so it cannot read text: add one to its folder")
    return str(sorted(model.tokenizer.get_vocab().items()))
