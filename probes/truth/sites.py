"""One site: sAwMIL and its baselines fitted, calibrated and scored beside nulls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...lab.errors import InputError, unknown
from ...lab.evidence import Evidence
from ...lab.rng import derive_seed, generator
from .bags import StatementBags
from .hinge import Linear
from .methods import METHODS, DirectionFitConfig, Fitted, bag_scores, fit_method
from .scores import Reading, mcc, score_reading
from .statements import CLASSES, FALSE, SPLITS, TRUE, Statements
from .three_way import Multinomial, Readout, ThreeWay, effective_rank


@dataclass(frozen=True)
class TruthConfig:
    """Settings of probing truth at a site."""

    methods: tuple[str, ...] = tuple(METHODS)
    """Some of sawmil, svm_last, svm_mean and mean_difference."""
    alpha: float = 0.1
    """Rate at which a conformal set may miss the right class."""
    readout: Readout = "crossfit"
    """`crossfit` fits the three-way read-out to scores of bags that the directions had not seen, `published` to those
    of the bags they were fitted on."""
    fit: DirectionFitConfig = field(default_factory=DirectionFitConfig)
    draws: int = 4
    """Shuffles of the labels, and random directions, whose scores the nulls average: one alone may well land on the
    difference between real and invented."""
    resamples: int = 1000
    """Of the bootstrap over entities."""

    def __post_init__(self) -> None:
        for method in self.methods:
            if method not in METHODS:
                raise unknown("method", method, METHODS)
        if not self.methods or self.resamples < 1 or self.draws < 1:
            raise InputError(
                f"give at least one method, one draw and one resample, got {self.methods}, {self.draws} and"
                f" {self.resamples}"
            )
        if not 0 < self.alpha < 1:
            raise InputError(f"alpha is a share between 0 and 1, got {self.alpha}")


class SiteResult(NamedTuple):
    """Results of one method at one site."""

    three_way: ThreeWay
    reading: Reading
    """Of the test statements."""
    scores: dict[str, Evidence]
    selection: float
    """Matthews correlation in cross-validation on the training split: what sites are chosen by."""
    geometry: dict[str, float]
    """Cosine of the directions for true and false, and their effective rank, beside what orthogonal signals give."""

    def to_json(self) -> dict[str, Any]:
        """Plain values for files."""
        return {
            "scores": {name: evidence.to_json() for name, evidence in self.scores.items()},
            "C": self.three_way.fitted.C,
            "selection": self.selection,
            "geometry": self.geometry,
            "probabilities": self.reading.probabilities.round(6).tolist(),
            "sets": self.reading.sets.astype(int).tolist(),
        }


class SiteStatements(NamedTuple):
    """Statements with their bags at one site."""

    bags: StatementBags
    statements: Statements

    def of(self, split: str, negated: bool | None = None) -> SiteStatements:
        """Bags and statements of one split, of one polarity if `negated` is given."""
        rows = self.statements.rows(split, negated)
        return SiteStatements(self.bags.take(torch.from_numpy(rows)), self.statements.take(rows))


def probe_site(bags: StatementBags, statements: Statements, config: TruthConfig | None = None) -> dict[str, SiteResult]:
    """Fit every method on the training split, calibrate it, and score it on the test split.

    Args:
        bags: one for every statement, in their order.

    Raises:
        InputError: numbers differ, a split lacks a class, or there are too few calibration statements for this alpha.
    """
    config = config or TruthConfig()
    if len(bags) != len(statements):
        raise InputError(f"{len(bags)} bags and {len(statements)} statements: harvest these statements again")
    statements.require_classes()
    whole = SiteStatements(bags, statements)
    train, calibration, test = (whole.of(split) for split in SPLITS)
    return {method: probe_parts(method, train, calibration, test, config) for method in config.methods}


def probe_parts(
    method: str, train: SiteStatements, calibration: SiteStatements, test: SiteStatements, config: TruthConfig
) -> SiteResult:
    """One method, fitted, calibrated and scored on these parts, which share no entity.

    Beside it stand three nulls: the same method fitted to shuffled labels, random directions, and a read-out of the
    number of tokens and the polarity alone. Shuffled labels are fitted with the middle C of the labels as they are.

    Raises:
        InputError: too few calibration statements for this alpha, or too few entities for the folds.
    """
    return _Parts(train, calibration, test, config).result(method)


class _Parts:
    """Training, calibration and test statements of one site."""

    def __init__(
        self, train: SiteStatements, calibration: SiteStatements, test: SiteStatements, config: TruthConfig
    ) -> None:
        self.config = config
        self.train, self.calibration, self.test = train, calibration, test
        self.y = train.statements.labels
        rng = np.random.default_rng(derive_seed(config.fit.seed, "shuffled labels"))
        self.shuffled = [rng.permutation(self.y) for _ in range(config.draws)]
        entities = len(set(test.statements.entities))
        self.held_out = (
            f"{len(test.bags)} statements about {entities} entities, none of which the {len(train.bags)} training "
            f"statements or the {len(calibration.bags)} that conformal sets are calibrated on speak of"
        )

    def result(self, method: str) -> SiteResult:
        """One method with its nulls."""
        own = self._fit(method, [self.y], self.config.fit)
        three_way = ThreeWay.of(own, self.y, self.config.readout)
        nulls = {
            "shuffled_labels": self._shuffled(method, sorted(own.C)[len(own.C) // 2]),
            "random_direction": [self._random(method, draw) for draw in range(self.config.draws)],
            "token_count": [token_count_reading(self.train, self.calibration, self.test, self.config.alpha)],
        }
        reading = self._reading(three_way.probabilities)
        right, entities = self.test.statements.labels, self.test.statements.entities
        scores = score_reading(
            reading, right, entities, nulls, alpha=self.config.alpha, seed=self.config.fit.seed,
            resamples=self.config.resamples, held_out=self.held_out,
        )  # fmt: skip
        outside = Multinomial.fit(own.outside.numpy(), self.y).probabilities(own.outside.numpy()).argmax(1)
        selection = mcc(outside, self.y, np.ones(len(self.y)))
        return SiteResult(three_way, reading, scores, selection, self._geometry(three_way))

    def _fit(self, method: str, labels: Sequence[Int[np.ndarray, " statements"]], config: DirectionFitConfig) -> Fitted:
        """One against the rest for every class, under every labelling."""
        classes = torch.arange(len(CLASSES))
        positive = torch.cat([torch.from_numpy(y)[:, None] == classes for y in labels], 1)
        return fit_method(method, self.train.bags, positive, self.y, _numbered(self.train.statements.entities), config)

    def _shuffled(self, method: str, strength: float) -> list[Reading]:
        """All shuffles in one fit."""
        fitted = self._fit(method, self.shuffled, replace(self.config.fit, strengths=(strength,)))
        n = len(CLASSES)
        parts = [_columns(fitted, slice(n * draw, n * draw + n)) for draw in range(len(self.shuffled))]
        return [
            self._reading(ThreeWay.of(part, labels, self.config.readout).probabilities)
            for part, labels in zip(parts, self.shuffled, strict=True)
        ]

    def _reading(self, probabilities: Callable[[StatementBags], np.ndarray]) -> Reading:
        known, new = probabilities(self.calibration.bags), probabilities(self.test.bags)
        return Reading.of(known, self.calibration.statements.labels, new, self.config.alpha)

    def _random(self, method: str, draw: int) -> Reading:
        """Three random directions in scaled space, read as the method reads its own."""
        way, x = METHODS[method], self.train.bags.x
        spread, rng = x.std(0), generator(self.config.fit.seed, "random direction", draw)
        weight = torch.randn(len(CLASSES), len(spread), generator=rng)
        linear = Linear(weight / torch.where(spread > 0, spread, torch.inf), torch.zeros(len(CLASSES)))
        fitted = Multinomial.fit(bag_scores(linear, self.train.bags, way.pooling).numpy(), self.y)
        return self._reading(lambda bags: fitted.probabilities(bag_scores(linear, bags, way.pooling).numpy()))

    def _geometry(self, three_way: ThreeWay) -> dict[str, float]:
        pair = three_way.directions()[[TRUE, FALSE]]
        null = orthogonal_null(three_way.fitted.method, self.config.fit)
        return {
            "cosine": float(pair[0] @ pair[1]),
            "effective_rank": effective_rank(pair),
            "cosine_of_orthogonal_signals": float(null[0] @ null[1]),
            "effective_rank_of_orthogonal_signals": effective_rank(null),
        }


def token_count_reading(
    train: SiteStatements, calibration: SiteStatements, test: SiteStatements, alpha: float
) -> Reading:
    """Baseline of token count and polarity alone: a multinomial on both, their product and the square."""

    def columns(part: SiteStatements) -> Float[np.ndarray, "bags 4"]:
        n, sign = part.bags.lengths.numpy().astype(float), part.statements.negated.astype(float)
        return np.stack([n, n**2, sign, n * sign], 1)

    fitted = Multinomial.fit(columns(train), train.statements.labels)
    known, new = (fitted.probabilities(columns(part)) for part in (calibration, test))
    return Reading.of(known, calibration.statements.labels, new, alpha)


@cache
def orthogonal_null(
    method: str,
    config: DirectionFitConfig,
    *,
    d: int = 10,
    bags: int = 150,
    tokens: int = 8,
    shift: float = 6.0,
    noise: float = 1.0,
) -> Float[Tensor, "2 d"]:
    """Directions for true and false fitted to made-up bags in which the two signals are orthogonal.

    One of the last two tokens of a true bag is shifted along one axis, of a false bag along another, of a bag that is
    neither not at all. One-against-all directions then have a negative cosine all the same, as each is also fitted
    against the other: print it beside the cosine found in a model before speaking of opposition.
    """
    rng = generator(config.seed, "orthogonal null", method)
    y = torch.arange(bags) % len(CLASSES)
    x = noise * torch.randn(bags, tokens, d, generator=rng)
    place = tokens - 1 - torch.randint(2, (bags,), generator=rng) if METHODS[method].pooling == "max" else tokens - 1
    for axis in (TRUE, FALSE):
        of_class = y == axis
        x[of_class, place[of_class] if isinstance(place, Tensor) else place, axis] += shift
    made = StatementBags(x.flatten(0, 1), torch.full((bags,), tokens))
    fitted = fit_method(method, made, y[:, None] == torch.arange(len(CLASSES)), y.numpy(), np.arange(bags), config)
    return torch.nn.functional.normalize(fitted.linear.weight[[TRUE, FALSE]], dim=1)


def _columns(fitted: Fitted, kept: slice) -> Fitted:
    """Some of the problems of a fit."""
    weight, bias = fitted.linear
    return fitted._replace(
        linear=Linear(weight[kept], bias[kept]), C=fitted.C[kept], outside=fitted.outside[:, kept],
        inside=fitted.inside[:, kept],
    )  # fmt: skip


def _numbered(entities: Sequence[str]) -> Int[np.ndarray, " statements"]:
    return np.unique(entities, return_inverse=True)[1].reshape(-1)
