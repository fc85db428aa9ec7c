"""Planted ground truth: activations that are sums of known feature directions, for scoring what is recovered.

    x = bias + sum over active i of a_i * directions[i] + noise

Features fire at Zipf rates, may form trees (a child fires only with its parent), may exclude their siblings, and
may fire together through a low-rank Gaussian copula. After SynthSAEBench (arXiv 2602.14687); everything follows
from one seed, and batch number i is the same whatever was read before it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor

from ...lab.errors import InputError
from ...lab.models.sites import Site
from ...lab.rng import generator
from ...lab.streams.activation_stream import Batch
from ..sparse_code import SparseCode

TIGHTENING = 100
"""Projections onto tight frames on the way to the least coherent directions."""


@dataclass(frozen=True)
class PlantedConfig:
    """Sizes and frequencies of planted features, small by default; SynthSAEBench has 16,384 in 768 dimensions."""

    n_features: int = 256
    """Feature directions."""
    d_in: int = 64
    """Width of the activations."""
    l0: float = 4.0
    """Features active a row, on average."""
    zipf: float = 0.5
    """Feature of rank r fires at a rate proportional to r^-zipf, before `max_rate` and the trees."""
    max_rate: float = 0.4
    """No feature fires on a larger share of the rows."""
    coherence: float | None = None
    """Mean |cosine| between two directions; None leaves them random, about sqrt(2 / (pi d_in))."""
    magnitudes: tuple[float, float] = (5.0, 4.0)
    """Mean coefficient of the most and of the least frequent feature, linear in rank between."""
    spread: float = 0.5
    """Standard deviation of a coefficient about its mean; its absolute value is taken, so all are positive."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise in every coordinate."""
    bias: float = 0.0
    """Norm of a constant vector added to every row."""
    trees: int = 0
    """Trees of features; the most frequent features are their roots, and 0 leaves all features independent."""
    branching: int = 4
    """Children of every inner node."""
    depth: int = 3
    """Levels of a tree, its root included."""
    exclusive: bool = False
    """True if at most one child of a node fires."""
    correlation: float = 0.0
    """Share of the variance of a firing variable that low-rank factors give; acts on features without a parent."""
    rank: int = 8
    """Number of those factors."""
    seed: int = 0
    """Of directions, structure and rows."""

    def __post_init__(self) -> None:
        for name in ("n_features", "d_in", "branching", "depth", "rank"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("zipf", "spread", "noise", "bias", "trees"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} must be at least 0 and finite, got {getattr(self, name)}")
        if not 0 < self.max_rate <= 1:
            raise InputError(f"max_rate is a share above 0 and at most 1, got {self.max_rate}")
        if not 0 <= self.correlation < 1:
            raise InputError(f"correlation must be at least 0 and below 1, got {self.correlation}")
        if self.tree_nodes * self.trees > self.n_features:
            raise InputError(
                f"{self.trees} trees of {self.tree_nodes} nodes need {self.trees * self.tree_nodes} features, "
                f"got n_features={self.n_features}"
            )

    @classmethod
    def synthsaebench(cls, seed: int = 0) -> PlantedConfig:
        """The size and structure of SynthSAEBench-16k; directions, magnitudes' spread and draws are ours."""
        return cls(
            n_features=16_384, d_in=768, l0=34, trees=128, exclusive=True, correlation=0.1, rank=25, seed=seed
        )  # fmt: skip

    @property
    def tree_nodes(self) -> int:
        """Features in one tree."""
        return sum(self.branching**level for level in range(self.depth))


class PlantedRows(NamedTuple):
    """Rows of activations and the coefficients they were made of."""

    x: Float32[Tensor, "rows d"]
    code: SparseCode
    """Entry (row, feature) is the coefficient of an active feature."""


class Planted:
    """A planted world: directions, structure, and as many rows as are asked for.

    Raises:
        InputError: the rates cannot give `l0`, or directions cannot have the `coherence`; says what they can.
    """

    directions: Float32[Tensor, "n_features d"]
    """Unit rows."""
    parents: Int64[Tensor, " n_features"]
    """The parent of every feature, -1 for none; always a lower index."""
    rates: Float64[Tensor, " n_features"]
    """Exact share of rows on which each feature is active."""
    means: Float32[Tensor, " n_features"]
    """Mean coefficient of every feature, before the absolute value."""
    bias: Float32[Tensor, " d"]

    def __init__(self, config: PlantedConfig | None = None) -> None:
        self.config = config = config or PlantedConfig()
        n = config.n_features
        self.directions = directions(n, config.d_in, config.coherence, generator(config.seed, "planted directions"))
        self.parents = _parents(config)
        self._odds, self.rates = _fit_rates(config, self.parents)
        self._draw, self._from = _siblings(config, self.parents, self._odds)
        first, last = config.magnitudes
        self.means = torch.linspace(first, last, n)
        rng = generator(config.seed, "planted structure")
        self.bias = config.bias * F.normalize(torch.randn(config.d_in, generator=rng), dim=0)
        self._factors = F.normalize(torch.randn(n, config.rank, generator=rng), dim=1)

    def __repr__(self) -> str:
        config = self.config
        return f"Planted({config.n_features} features in {config.d_in} dimensions, l0 {float(self.rates.sum()):.3g})"

    def sample(self, rows: int, *, part: int = 0) -> PlantedRows:
        """`rows` rows; parts are independent of one another, and the same part is always the same rows."""
        if rows < 1:
            raise InputError(f"rows must be at least 1, got {rows}")
        rng = generator(self.config.seed, "planted rows", part)
        row, feature = self._fires(rows, rng).nonzero(as_tuple=True)
        spread = self.config.spread * torch.randn(len(row), generator=rng)
        values = (self.means[feature] + spread).abs_()
        counts = torch.bincount(row, minlength=rows)
        indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        code = SparseCode(indptr, feature.int(), values, self.config.n_features)
        x = self.bias.repeat(rows, 1)
        x.index_add_(0, row, values[:, None] * self.directions[feature])
        if self.config.noise:
            x += self.config.noise * torch.randn(x.shape, generator=rng)
        return PlantedRows(x, code)

    def batches(self, site: Site | str, rows: int, batch: int = 2048, *, start: int = 0) -> Iterator[Batch]:
        """`rows` rows as batches of a stream, for a `Trainer`; every row is a document of its own.

        Args:
            start: number of the first batch, to go on where an earlier reading ended or to hold rows out.
        """
        site = Site.parse(site)
        for number in range(math.ceil(rows / batch)):
            size = min(batch, rows - number * batch)
            document = (start + number) * batch + torch.arange(size)
            x = self.sample(size, part=start + number).x
            yield Batch({site: x}, torch.stack([document, torch.zeros_like(document)], 1))

    def _fires(self, rows: int, rng: torch.Generator) -> Bool[Tensor, "rows n_features"]:
        """Which features are active: own draws, then every child that its parent allows, level by level."""
        uniform = torch.rand(rows, self.config.n_features, generator=rng)
        if self.config.correlation:
            share = self.config.correlation
            free = self.parents < 0
            factors = torch.randn(rows, self.config.rank, generator=rng) @ self._factors[free].T
            own = torch.special.ndtri(uniform[:, free].clamp(1e-7, 1 - 1e-7))
            uniform[:, free] = torch.special.ndtr((1 - share) ** 0.5 * own + share**0.5 * factors)
        drawn = uniform[:, self._draw]
        fires = (drawn >= self._from) & (drawn < self._from + self._odds)
        for level in _levels(self.parents)[1:]:
            fires[:, level] &= fires[:, self.parents[level]]
        return fires


def directions(n: int, d: int, coherence: float | None, rng: torch.Generator) -> Float32[Tensor, "n d"]:
    """n unit rows of width d whose mean |cosine| is `coherence`, or random ones for None.

    Below random, rows move towards a tight frame (orthonormal where n <= d); above it, towards one common row.

    Raises:
        InputError: that coherence is out of reach on this path; names the nearest that is not.
    """
    start = F.normalize(torch.randn(n, d, generator=rng, dtype=torch.float64), dim=1)
    if coherence is None or n == 1:
        return start.float()
    if not 0 <= coherence <= 1:
        raise InputError(f"coherence is a mean |cosine| from 0 to 1, got {coherence}")
    if mean_coherence(start) > coherence:
        goal = start
        for _ in range(TIGHTENING):
            left, _, right = torch.linalg.svd(goal, full_matrices=False)
            goal = F.normalize(left @ right, dim=1)
    else:
        goal = F.normalize(torch.randn(d, generator=rng, dtype=torch.float64), dim=0).expand(n, d)
    rising, reached = mean_coherence(start) < coherence, mean_coherence(goal)
    if not rising and reached > coherence + 1e-3:
        raise InputError(
            f"{n} directions in {d} dimensions come down to a mean |cosine| of {reached:.3f}, not to {coherence}: "
            "give that or more, fewer features, or a larger d_in"
        )
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        below = mean_coherence(torch.lerp(start, goal, middle)) < coherence
        low, high = (middle, high) if below == rising else (low, middle)
    return F.normalize(torch.lerp(start, goal, high), dim=1).float()


def mean_coherence(rows: Float[Tensor, "n d"]) -> float:
    """Mean |cosine| over pairs of different rows."""
    unit = F.normalize(rows.double(), dim=1)
    total = (unit @ unit.T).abs_().sum() - len(unit)
    return max(0.0, float(total) / (len(unit) * (len(unit) - 1)))


def _parents(config: PlantedConfig) -> Int64[Tensor, " n_features"]:
    """Roots first, then all second levels, and so on: a parent is never rarer in rank than its child."""
    parents = torch.full((config.n_features,), -1, dtype=torch.int64)
    first, width = 0, config.trees
    for _ in range(config.depth - 1):
        children = torch.arange(width * config.branching)
        parents[first + width + children] = first + children // config.branching
        first, width = first + width, width * config.branching
    return parents


def _levels(parents: Int64[Tensor, " n"]) -> list[Int64[Tensor, " some"]]:
    """Features by depth: those without a parent first."""
    depth = torch.zeros_like(parents)
    for feature in (parents >= 0).nonzero()[:, 0].tolist():  # a parent has the lower index: it is done first
        depth[feature] = depth[parents[feature]] + 1
    return [(depth == level).nonzero()[:, 0] for level in range(int(depth.max()) + 1)]


def _fit_rates(
    config: PlantedConfig, parents: Int64[Tensor, " n"]
) -> tuple[Float32[Tensor, " n"], Float64[Tensor, " n"]]:
    """Odds of firing given that the parent does, and the exact rates, which sum to `l0`."""
    rank = torch.arange(1, config.n_features + 1, dtype=torch.float64)
    levels = _levels(parents)

    def rates_at(scale: float) -> tuple[Tensor, Tensor]:
        wanted = (scale * rank**-config.zipf).clamp_max(config.max_rate)
        odds, rates = wanted.clone(), wanted.clone()
        for level in levels[1:]:
            above = parents[level]
            odds[level] = (wanted[level] / wanted[above]).clamp_max(1)
            if config.exclusive:
                total = torch.zeros_like(odds).index_add_(0, above, odds[level])
                odds[level] /= total[above].clamp_min(1)
            rates[level] = odds[level] * rates[above]
        return odds, rates

    most = float(rates_at(math.inf)[1].sum())
    if not 0 < config.l0 <= most:
        raise InputError(f"l0 must be above 0 and at most {most:.4g} with these rates and trees, got {config.l0}")
    low, high = 0.0, config.max_rate * float(rank[-1]) ** config.zipf
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if float(rates_at(middle)[1].sum()) < config.l0 else (low, middle)
    odds, rates = rates_at(high)
    return odds.float(), rates


def _siblings(
    config: PlantedConfig, parents: Int64[Tensor, " n"], odds: Float32[Tensor, " n"]
) -> tuple[Int64[Tensor, " n"], Float32[Tensor, " n"]]:
    """Whose uniform draw each feature reads, and where its interval of that draw begins.

    Exclusive siblings read one draw in intervals side by side; every other feature reads its own from 0.
    """
    draw, begin = torch.arange(len(parents)), torch.zeros_like(odds)
    if config.exclusive and config.depth > 1:
        groups = (parents >= 0).nonzero()[:, 0].view(-1, config.branching)
        draw[groups] = groups[:, :1]
        begin[groups] = odds[groups].cumsum(1) - odds[groups]
    return draw, begin
