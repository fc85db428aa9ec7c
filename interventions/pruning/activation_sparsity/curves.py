"""R-Sparse curves: the error of every linear map against sparsity, by criterion and by share, and what the model loses.

Every point stands beside inputs kept at random, the low-rank copy alone, and the choice in hindsight. Thresholds and
the share of each map come from passages that nothing is measured on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from ....lab.errors import InputError
from ....lab.evidence import Evidence
from ....lab.models.hooked_model import HookedModel
from ....lab.rng import generator
from ....lab.text.packing import TokenBatch
from ....saes.evaluation.matched_l0 import pareto
from ....saes.evaluation.results import flat
from .decision import SparsityDecision
from .effect import OutputErrors, Variant, delta_ce, losses_of
from .masks import CRITERIA, Random, Threshold
from .modules import LinearModule, inputs_of
from .rank_aware import Budget, Factors, calibrated, greedy_oracle, greedy_order, rank_budget, residual_weight

RANK_AWARE, LOW_RANK, RANDOM, ORACLE = "abs_norm", "low_rank", "random", "oracle"


@dataclass(frozen=True)
class CurvesConfig:
    """Which points are measured."""

    sparsities: tuple[float, ...] = (0.25, 0.5, 0.75, 0.9)
    """Shares of the weights that are not read."""
    shares: tuple[float, ...] = (1.0, 0.8, 0.5, 0.2)
    """Shares of the budget that go to channels, the rest to the low-rank copy; 1 is measured in any case."""
    decide_at: float = 0.5
    """The sparsity at which the model's loss is measured and decisions are taken: one of `sparsities`."""
    oracle_tokens: int = 128
    """Tokens on which the choice in hindsight is computed, at d_in^2 operations a token."""
    seed: int = 0
    """Of the random null and the bootstrap."""

    def __post_init__(self) -> None:
        for name in ("sparsities", "shares"):
            values = getattr(self, name)
            if not values or not all(0 <= value <= 1 for value in values):
                raise InputError(f"{name} must be shares from 0 to 1, got {values}")
        if self.decide_at not in self.sparsities:
            raise InputError(f"decide_at={self.decide_at} must be one of sparsities={self.sparsities}")
        if self.oracle_tokens < 1:
            raise InputError(f"oracle_tokens must be at least 1, got {self.oracle_tokens}")


class Point(NamedTuple):
    """One setting of one map."""

    module: str
    criterion: str
    """abs, abs_norm, low_rank (no channels), random, or oracle."""
    share: float
    """Of the budget that goes to channels."""
    sparsity: float
    spent: float
    """Share of the weights that are read."""
    kept: float
    """Share of the inputs kept on fresh text; thresholds drift."""
    error: Evidence
    recall: Evidence | None
    """How many of the oracle's inputs are kept; where there is an oracle for the setting."""

    def to_json(self) -> dict[str, Any]:
        """One flat mapping."""
        scores = {"rel_error": self.error, **({} if self.recall is None else {"recall": self.recall})}
        return {**{name: getattr(self, name) for name in self._fields[:6]}, **flat(scores)}


class ModuleCurves(NamedTuple):
    """All settings of one map, and the share that did best on calibration text at every sparsity."""

    module: LinearModule
    points: list[Point]
    best: dict[float, float]
    chosen: Threshold
    """At `decide_at`, with the best share."""
    channels: Threshold
    """At `decide_at`, with the whole budget on channels."""

    def at(self, sparsity: float, criterion: str, share: float = 1.0) -> Point:
        """One point."""
        return next(p for p in self.points if (p.sparsity, p.criterion, p.share) == (sparsity, criterion, share))

    def front(self) -> list[Point]:
        """The settings of the rank-aware criterion that no other beats, by weights read."""
        points = [point for point in self.points if point.criterion == RANK_AWARE]
        return [points[i] for i in pareto([point.spent for point in points], [point.error.value for point in points])]


def module_curves(
    module: LinearModule,
    calibration: Float[Tensor, "rows d_in"],
    x: Float[Tensor, "rows d_in"],
    passage: Int[Tensor, " rows"],
    config: CurvesConfig,
) -> ModuleCurves:
    """Every point of one map.

    Args:
        calibration: inputs that thresholds and shares are taken from.
        x: inputs that errors are measured on, each of a `passage`.
    """
    factors, (d_out, d_in) = Factors.of(module.weight), module.weight.shape
    few = slice(None, None, max(1, len(x) // config.oracle_tokens))
    hindsight = greedy_order(x[few], module.weight, d_in)
    points: list[Point] = []
    best: dict[float, float] = {}
    decided: tuple[Threshold, Threshold] | None = None
    for sparsity in config.sparsities:
        settings: dict[str, _Setting] = {}
        for share in dict.fromkeys((1.0, *config.shares, 0.0)):
            budget = rank_budget(d_in, d_out, sparsity, share)
            for criterion in CRITERIA if share == 1 else [RANK_AWARE if share else LOW_RANK]:
                by = RANK_AWARE if criterion == LOW_RANK else criterion
                mask = calibrated(module, calibration, budget, by, factors)
                settings[f"{criterion}/{share}"] = _Setting(criterion, share, budget, mask)
        lost = {setting.share: _error(module, setting.mask, calibration)
                for setting in settings.values() if setting.criterion == RANK_AWARE}  # fmt: skip
        best[sparsity] = min(lost, key=lost.__getitem__)
        chosen = settings[f"{RANK_AWARE}/{best[sparsity]}"]
        ordered = {f"{RANK_AWARE}/1.0": hindsight}
        if sparsity == config.decide_at:
            decided = chosen.mask, settings[f"{RANK_AWARE}/1.0"].mask
            if chosen.share < 1:
                lacking = residual_weight(module, chosen.mask)
                ordered[f"{RANK_AWARE}/{chosen.share}"] = greedy_order(x[few], lacking, d_in)
        points += _measured(module, sparsity, settings, x, passage, few, ordered, config.seed)
    assert decided is not None, "decide_at is one of the sparsities"
    return ModuleCurves(module, points, best, *decided)


class _Setting(NamedTuple):
    criterion: str
    share: float
    budget: Budget
    mask: Threshold


def _error(module: LinearModule, mask: Threshold, x: Tensor) -> float:
    everywhere = torch.zeros(len(x), dtype=torch.int64)
    return float(((x * ~mask.keep(x, everywhere)) @ residual_weight(module, mask).T).square().sum())


def _measured(
    module: LinearModule, sparsity: float, settings: Mapping[str, _Setting], x: Tensor, passage: Tensor, few: slice,
    ordered: Mapping[str, Tensor], seed: int,
) -> list[Point]:  # fmt: skip
    """The points of one sparsity: every mask on all rows, and those with an order in hindsight on a few."""
    d_out, d_in = module.weight.shape
    full, at_random, alone = f"{RANK_AWARE}/1.0", f"{RANDOM}/1.0", f"{LOW_RANK}/0.0"
    drawn = Random(settings[full].budget.channels / d_in, generator(seed, "random channels", module.name, sparsity))
    kept = {key: entry.mask.keep(x, passage) for key, entry in settings.items()} | {at_random: drawn.keep(x, passage)}
    lacking = {key: residual_weight(module, entry.mask) for key, entry in settings.items()}
    errors = OutputErrors(module.weight)
    errors.add(x, passage, kept, lacking)
    recalls: dict[str, Evidence] = {}
    points = []
    for key, order in ordered.items():
        oracle = greedy_oracle(x[few], lacking[key], kept[key][few].sum(1), order)
        of = OutputErrors(module.weight)
        weights = {key: lacking[key], ORACLE: lacking[key]}
        of.add(
            x[few], passage[few], {key: kept[key][few], ORACLE: oracle, RANDOM: kept[at_random][few]}, weights, oracle
        )
        recalls[key] = of.recall(key, [RANDOM], seed)
        error, budget = of.relative_error(ORACLE, [RANDOM], seed), settings[key].budget
        spent = budget.spent(d_in, d_out)
        points.append(Point(module.name, ORACLE, settings[key].share, sparsity, spent, of.kept(ORACLE), error, None))
    for key in kept:
        setting = settings.get(key, settings[full])
        criterion = setting.criterion if key in settings else RANDOM
        error = _named(errors.relative_error(key, [null for null in (at_random, alone) if null != key], seed))
        spent, share = setting.budget.spent(d_in, d_out), errors.kept(key)
        points.append(Point(module.name, criterion, setting.share, sparsity, spent, share, error, recalls.get(key)))
    return points


def _named(error: Evidence) -> Evidence:
    """Nulls by criterion alone: there is one of each."""
    return replace(error, nulls={key.partition("/")[0]: value for key, value in error.nulls.items()})


class Curves(NamedTuple):
    """All maps of all layers, what the model loses, and a decision for each layer."""

    modules: list[ModuleCurves]
    losses: dict[str, dict[str, Evidence]]
    """By what is masked (`layer 12`, `all`) and by split."""
    decisions: list[SparsityDecision]


def measure_curves(
    model: HookedModel,
    modules: Sequence[LinearModule],
    calibration: TokenBatch,
    passages: TokenBatch,
    config: CurvesConfig | None = None,
    *,
    progress: bool = False,
) -> Curves:
    """R-Sparse on some maps of a model.

    Args:
        calibration: passages that thresholds and shares are taken from.
        passages: others, that all figures are measured on.
    """
    config = config or CurvesConfig()
    before, after = (inputs_of(model, modules, part) for part in (calibration, passages))
    passage = passages.usable.nonzero()[:, 0]
    modules_curves = [
        module_curves(
            module, before[module.name][calibration.usable], after[module.name][passages.usable], passage, config
        )
        for module in tqdm(modules, desc="linear maps", disable=not progress)
    ]
    layers = list(dict.fromkeys(module.layer for module in modules))
    groups = {
        f"layer {layer}": [curves for curves in modules_curves if curves.module.layer == layer] for layer in layers
    }
    if len(layers) > 1:
        groups["all"] = modules_curves
    variants = {key: masks for name, group in groups.items() for key, masks in _variants(name, group, config).items()}
    sums = losses_of(model, passages, variants, progress=progress)
    losses = {
        name: {split: delta_ce(of, name, {RANDOM: f"{name}, {RANDOM}", "channels_only": f"{name}, channels"})
               for split, of in sums.items()}
        for name in groups
    }  # fmt: skip
    decisions = [_decision(layer, groups[f"layer {layer}"], losses[f"layer {layer}"]["decode"], config)
                 for layer in layers]  # fmt: skip
    return Curves(modules_curves, losses, decisions)


def _variants(name: str, group: Sequence[ModuleCurves], config: CurvesConfig) -> dict[str, Variant]:
    """The chosen masks, channels alone at the same budget, and as many at random."""
    share = 1 - config.decide_at
    rng = generator(config.seed, "random channels in the model", name)
    return {
        name: {curves.module: curves.chosen for curves in group},
        f"{name}, {RANDOM}": {curves.module: Random(share, rng) for curves in group},
        f"{name}, channels": {curves.module: curves.channels for curves in group},
    }  # fmt: skip


def _decision(layer: int, group: Sequence[ModuleCurves], loss: Evidence, config: CurvesConfig) -> SparsityDecision:
    chosen = [curves.at(config.decide_at, RANK_AWARE, curves.best[config.decide_at]) for curves in group]
    rules = {
        curves.module.path: {
            "criterion": RANK_AWARE,
            "threshold": curves.chosen.threshold,
            "rank": len(curves.chosen.right),
        }
        for curves in group
    }
    worst = max(chosen, key=lambda point: point.error.value)
    recalls = [point.recall for point in chosen if point.recall is not None]
    return SparsityDecision(
        layer, RANK_AWARE, "token", 1 - config.decide_at, rules,
        min(recalls, key=lambda recall: recall.value) if recalls else None, worst.error, loss,
    )  # fmt: skip
