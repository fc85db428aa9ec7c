"""Layers of two models against each other: a grid of scores for each measure, and whether equal layers find each other.

The score of a grid is the share of layers i of one model whose most similar layer j of the other is i, over both
directions; chance is 1 / L. With self pairs, as in ITDA (Leask et al. 2025), each model is also matched with itself,
where every measure is at its largest on the diagonal: with two models that is half of all pairs, trivially right. So
the score leaves them out, and the other stands beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor
from tqdm import tqdm

from ....lab.errors import InputError
from ....lab.evidence import Evidence, bootstrap
from .atoms import AtomSet, index, require_same_text
from .cca import Whitened, correlated, mean_correlation
from .grams import cka_grids
from .measures import CKA, FITTED, MEASURES, SimilarityConfig, check_measures
from .regression import r_squared_grid
from .representations import Representations
from .rows import Split, factor, one_thread

Grid = Float64[Tensor, "layers others"]


@dataclass(frozen=True)
class LayerGrid:
    """One measure of every layer of one model and every layer of another; entry i, j is layer i seen from layer j."""

    measure: str
    models: tuple[str, str]
    sites: tuple[tuple[str, ...], tuple[str, ...]]
    across: Grid
    """From the layers of the first model to those of the second."""
    back: Grid
    """From the layers of the second to those of the first: the transpose, but for measures that ask one way."""
    within: tuple[Grid, Grid]
    """Of each model with itself."""

    def evidence(self, seed: int = 0) -> dict[str, Evidence]:
        """`layer_match` and `layer_match_with_self` for models of as many layers, else `depth_agreement`.

        Raises:
            InputError: one of the models has one layer.
        """
        if min(self.across.shape) < 2:
            raise InputError(
                f"{' and '.join(self.models)} have {' and '.join(map(str, self.across.shape))} layers here: "
                "layer matching needs at least 2 of each, so name more sites"
            )
        if self.across.shape[0] != self.across.shape[1]:
            return {"depth_agreement": depth_agreement(self.across, self.back, seed)}
        both = [self.across, self.back]
        return {
            "layer_match": layer_match(both, seed=seed),
            "layer_match_with_self": layer_match([*both, *self.within], name="layer_match_with_self", seed=seed),
        }

    def to_json(self) -> dict[str, Any]:
        """Plain values for files."""
        return {
            "measure": self.measure, "models": list(self.models), "sites": [list(side) for side in self.sites],
            "across": self.across.tolist(), "back": self.back.tolist(),
            "within": [grid.tolist() for grid in self.within],
        }  # fmt: skip


def layer_match(grids: Sequence[Grid], *, name: str = "layer_match", seed: int = 0) -> Evidence:
    """Share of rows whose largest entry is on the diagonal, over all grids, with an interval over layers.

    A layer that is one of m most similar ones counts 1 / m, so that a measure that sees nothing scores chance.

    Raises:
        InputError: a grid that is not square, has one layer, or holds values that are not finite.
    """
    layers = len(grids[0])
    for grid in grids:
        if grid.shape != (layers, layers) or layers < 2:
            raise InputError(f"a grid has shape {tuple(grid.shape)}: layer matching needs as many layers, at least 2")
        _require_finite(grid)
    hits = torch.stack([_hits(grid) for grid in grids]).mean(0).numpy()
    interval = bootstrap(lambda weights: float(weights @ hits / weights.sum()), layers, seed=seed)
    note = f"{len(grids)} ordered pairs of models"
    return Evidence(name, float(hits.mean()), interval, {"chance": 1 / layers}, layers, "layers",
                    better="higher", note=note)  # fmt: skip


def depth_agreement(across: Grid, back: Grid, seed: int = 0) -> Evidence:
    """Rank correlation of a layer's depth and its match's, for models of different numbers of layers, both ways.

    The null is the correlation that one in twenty random matchings exceeds.
    """
    for grid in (across, back):
        _require_finite(grid)
    shares = [(torch.arange(len(grid)) / (len(grid) - 1), grid.argmax(1) / (grid.shape[1] - 1))
              for grid in (across, back)]  # fmt: skip
    depth, matched = (torch.cat(parts).numpy() for parts in zip(*shares, strict=True))

    def resampled(weights: np.ndarray) -> float:
        drawn = np.repeat(np.arange(len(depth)), weights.astype(int))
        return _rank_correlation(depth[drawn], matched[drawn])

    a, b = _ranks(depth), _ranks(matched)
    random = np.random.default_rng(seed).permuted(np.tile(b, (1000, 1)), axis=1) @ a
    spread = float(np.sqrt((a @ a) * (b @ b)))
    null = float(np.quantile(random, 0.95)) / spread if spread else 0.0
    interval = bootstrap(resampled, len(depth), seed=seed, resamples=400)
    return Evidence(
        "depth_agreement", _rank_correlation(depth, matched), interval, {"random matching, 95 %": null},
        len(depth), "layers", better="higher",
    )  # fmt: skip


@dataclass(frozen=True)
class Prepared:
    """Everything that is made of one model's layers once, whatever it is compared with."""

    representations: Representations
    rows: list[Tensor]
    states: dict[str, list[Any]]

    @classmethod
    def of(
        cls,
        representations: Representations,
        split: Split,
        config: SimilarityConfig | None = None,
        measures: Sequence[str] = MEASURES,
        *,
        progress: bool = False,
    ) -> Prepared:
        """Factor every layer.

        Raises:
            InputError: an unknown measure, or fewer fitted rows than anchors.
        """
        config = config or SimilarityConfig()
        check_measures(measures)
        states: dict[str, list[Any]] = {name: [] for name in measures if name in FITTED}
        with one_thread():
            for x in tqdm(
                representations.acts.values(), f"prepare {representations.name}", unit="layer", disable=not progress
            ):
                fold = split.fold(x)
                factors = factor(fold)
                for name, held in states.items():
                    held.append(FITTED[name].prepare(factors, fold, config))
        return cls(representations, list(representations.acts.values()) if set(CKA) & set(measures) else [], states)


def layer_grids(a: Prepared, b: Prepared, *, progress: bool = False) -> dict[str, LayerGrid]:
    """A grid of every measure that both were prepared for; rows must be aligned.

    Raises:
        InputError: other text, other rows, or constant layers.
    """
    if a.representations.text != b.representations.text or not torch.equal(
        a.representations.places, b.representations.places
    ):
        raise InputError(
            f"{a.representations.name} and {b.representations.name} are not on the same rows "
            f"(text {a.representations.text} and {b.representations.text}): align them first"
        )
    whole: dict[str, Tensor] = {}
    if a.rows and b.rows:
        whole |= cka_grids([*a.rows, *b.rows])
    states = {name: [*a.states[name], *b.states[name]] for name in a.states if name in b.states}
    if "regression" in states:
        whole["regression"] = r_squared_grid(states["regression"])
    if "relative" in states:
        flat = torch.stack(states["relative"]).flatten(1)
        whole["relative"] = (flat @ flat.T).double() / len(states["relative"][0])
    if "svcca" in states:
        with one_thread():
            whole["svcca"] = _symmetric(states["svcca"], progress)
    models, sites = (
        (a.representations.name, b.representations.name),
        (tuple(a.representations.acts), tuple(b.representations.acts)),
    )
    return {name: _cut(name, grid, models, sites) for name, grid in whole.items()}


def atom_grids(
    a: Mapping[str, AtomSet], b: Mapping[str, AtomSet], models: tuple[str, str], warm_up: int
) -> dict[str, LayerGrid]:
    """`jaccard` (atoms past the warm-up) and `jaccard_raw` of every two layers, from the atoms of each by site.

    Raises:
        InputError: atoms of different texts.
    """
    sets = [*a.values(), *b.values()]
    for atoms in sets:
        require_same_text(sets[0], atoms)
    grids = {}
    for name, begin in (("jaccard", warm_up), ("jaccard_raw", 0)):
        places = [atoms.past(begin).places() for atoms in sets]
        grid = torch.tensor([[index(first, second) for second in places] for first in places], dtype=torch.float64)
        grids[name] = _cut(name, grid.nan_to_num(0), models, (tuple(a), tuple(b)))
    return grids


def _symmetric(states: Sequence[Whitened], progress: bool) -> Grid:
    """SVCCA of every two; both ways it is the same."""
    correlations = torch.zeros(len(states), len(states), dtype=torch.float64)
    for i, first in enumerate(tqdm(states, "svcca", unit="layer", disable=not progress)):
        for j, second in enumerate(states[: i + 1]):
            sums = {name: column.double().sum(0).numpy() for name, column in correlated(first, second).items()}
            correlations[i, j] = correlations[j, i] = mean_correlation(sums)
    return correlations


def _cut(
    measure: str, grid: Grid, models: tuple[str, str], sites: tuple[tuple[str, ...], tuple[str, ...]]
) -> LayerGrid:
    """The four parts of a grid over the layers of both models."""
    n = len(sites[0])
    return LayerGrid(measure, models, sites, grid[:n, n:], grid[n:, :n], (grid[:n, :n], grid[n:, n:]))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Centred ranks, ties at their mean."""
    from scipy.stats import rankdata

    ranks = rankdata(values)
    return ranks - ranks.mean()


def _rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's; 0 where one side does not vary."""
    a, b = _ranks(first), _ranks(second)
    spread = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / spread if spread else 0.0


def _hits(grid: Grid) -> Float64[Tensor, " layers"]:
    """1 where the largest entry of a row is on the diagonal alone, 1 / m where it is one of m."""
    best = grid == grid.max(1, keepdim=True).values
    return best.diagonal().double() / best.sum(1)


def _require_finite(grid: Grid) -> None:
    if not bool(grid.isfinite().all()):
        row, column = grid.isfinite().logical_not().nonzero()[0].tolist()
        raise InputError(f"layers {row} and {column} have no finite similarity: leave out constant or empty ones")
