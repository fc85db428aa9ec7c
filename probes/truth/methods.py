"""Ways to read a class off a bag, sAwMIL and its baselines, each with its strength chosen in cross-validation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...lab.errors import InputError
from ...lab.rng import generator
from ..fitting.scaling import Scaling
from ..fitting.splits import group_folds
from .bags import Pooling, StatementBags
from .hinge import Linear
from .sawmil import SawmilConfig, mean_difference, sawmil, sparse_mil


class Method(NamedTuple):
    """Reading of a bag and fit of a direction."""

    pooling: Pooling
    """The score of a bag: of its best token, of its last one, or of its mean."""
    scaling: str
    """Of the rows it is fitted on, from `scaling.SCALINGS`."""
    fit: Callable[[StatementBags, Tensor, Tensor, SawmilConfig], Linear]
    strengths: bool = True
    """True if the fit has a regularisation C."""


METHODS: Mapping[str, Method] = {
    "sawmil": Method("max", "coordinate", sawmil),
    "svm_last": Method("last", "coordinate", sparse_mil),
    "svm_mean": Method("mean", "coordinate", sparse_mil),
    "mean_difference": Method("last", "centre", mean_difference, strengths=False),
}
"""sAwMIL, the SVM on the last token alone, the SVM on the mean over tokens, and the difference of class means at the
last token. A bag of one token makes stage 1 of sAwMIL an SVM."""


@dataclass(frozen=True)
class DirectionFitConfig:
    """Settings of fitting directions."""

    strengths: tuple[float, ...] = (0.05, 0.1, 0.5, 1.0, 10.0)
    """Values of C, smallest first."""
    folds: int = 3
    """Of the cross-validation within the training split that chooses C and gives each bag a score from outside."""
    tokens: int = 10
    """Tokens of a bag that sAwMIL is fitted on: those at which the claim is complete and a draw of the others. Scores
    are of all tokens."""
    sawmil: SawmilConfig = field(default_factory=SawmilConfig)
    seed: int = 0
    """Of folds, token draws and nulls."""

    def __post_init__(self) -> None:
        if not self.strengths or min(self.strengths) <= 0 or list(self.strengths) != sorted(set(self.strengths)):
            raise InputError(f"strengths are values above 0, smallest first, got {self.strengths}")
        if self.folds < 2 or self.tokens < 1:
            raise InputError(f"folds must be at least 2 and tokens at least 1, got {self.folds} and {self.tokens}")


class Fitted(NamedTuple):
    """Directions of several problems, for activations as they are."""

    method: str
    linear: Linear
    scaling: Scaling
    """Scaling that is folded into `linear`."""
    C: list[float]
    """Chosen for every problem."""
    outside: Float[Tensor, "bags problems"]
    """Scores of the training bags, each by the directions fitted without its fold."""
    inside: Float[Tensor, "bags problems"]
    """Scores by the final directions, which saw these bags in the fit."""

    def scores(self, bags: StatementBags) -> Float[Tensor, "bags problems"]:
        """The score of every bag for every problem."""
        return bag_scores(self.linear, bags, METHODS[self.method].pooling)


def bag_scores(linear: Linear, bags: StatementBags, pooling: Pooling) -> Float[Tensor, "bags problems"]:
    """Scores [bags, problems] of the best token, of the last, or of the mean."""
    read = bags.pooled(pooling)
    return read.most(linear.scores(read.x))


def fit_method(
    method: str,
    bags: StatementBags,
    positive: Bool[Tensor, "bags problems"],
    strata: Int[np.ndarray, " bags"],
    groups: Int[np.ndarray, " bags"],
    config: DirectionFitConfig | None = None,
) -> Fitted:
    """Fit every problem on all bags, C chosen for each by average precision in cross-validation (1-SE rule).

    Scaling is measured on the tokens of the training folds alone.

    Args:
        strata: what folds are stratified by.
        groups: bags of one group are in one fold.

    Raises:
        InputError: a class has fewer groups than there are folds.
    """
    from sklearn.metrics import average_precision_score

    config, way = config or DirectionFitConfig(), METHODS[method]
    strengths = config.strengths if way.strengths else (1.0,)
    problems, grid = positive.shape[1], torch.tensor(strengths)
    folds = group_folds(strata, groups, config.folds, config.seed)
    outside = torch.zeros(len(strengths), len(bags), problems)
    precision = np.zeros((problems, len(strengths), len(folds)))
    for number, (train, test) in enumerate(folds):
        rows, other = torch.from_numpy(train), torch.from_numpy(test)
        linear, _ = _fit(
            way, bags.take(rows), positive[rows].repeat(1, len(grid)), grid.repeat_interleave(problems), config
        )
        held_scores = (
            bag_scores(linear, bags.take(other), way.pooling).view(len(other), len(grid), problems).movedim(0, 1)
        )
        outside[:, other] = held_scores
        for problem in range(problems):
            right = positive[other, problem].numpy()
            for c in range(len(grid)):
                precision[problem, c, number] = average_precision_score(right, held_scores[c, :, problem].numpy())
    best = [one_standard_error(table) for table in precision]
    linear, scaling = _fit(way, bags, positive, grid[best], config)
    return Fitted(
        method, linear, scaling, [strengths[i] for i in best],
        torch.stack([outside[i, :, problem] for problem, i in enumerate(best)], 1),
        bag_scores(linear, bags, way.pooling),
    )  # fmt: skip


def one_standard_error(table: Float[np.ndarray, "strengths folds"]) -> int:
    """The first strength whose mean over folds is within one standard error of the best one's."""
    means = table.mean(1)
    best = int(means.argmax())
    error = table[best].std(ddof=1) / table.shape[1] ** 0.5
    return int(np.flatnonzero(means >= means[best] - error)[0])


def _fit(
    way: Method, bags: StatementBags, positive: Tensor, C: Tensor, config: DirectionFitConfig
) -> tuple[Linear, Scaling]:
    """One fit on scaled tokens, folded back to activations as they are."""
    if way.pooling == "max":
        bags = bags.shortened(config.tokens, generator(config.seed, "tokens of bags"))
    read = bags.pooled(way.pooling)
    scaling = Scaling.of(read.x, way.scaling)
    linear = way.fit(read.with_rows(scaling(read.x)), positive, C, config.sawmil)
    return Linear(*scaling.fold(linear.weight, linear.bias)), scaling
