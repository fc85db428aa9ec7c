"""sAwMIL: a linear read-out of bags of which only a few tokens carry the label (Savcisens and Eliassi-Rad 2025, 4).

Stage 1, sparse multiple-instance learning (Bunescu and Mooney 2007): every token of a negative bag scores at most -1,
and the mean of a positive bag at least what one token at +1 and all others at -1 average to. Stage 2: the tokens of
positive bags that score best, among those at which the claim is complete, become positive, all others negative, and an
ordinary SVM is fitted to tokens. Both stages square the hinge; classes weigh the same in sum, so that C means the same
for bags of every number and length. All problems over the same bags are solved at once (see `hinge.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...lab.errors import InputError
from .bags import StatementBags
from .hinge import Linear, fit_hinge


@dataclass(frozen=True)
class SawmilConfig:
    """Settings of relabelling tokens of positive bags, and of both solvers."""

    eta: float | None = None
    """Expected share of tokens of positive bags that are positive; None takes the share of complete ones, two tokens a
    bag over all tokens."""
    masked: bool = True
    """True if only tokens at which the claim is complete can become positive."""
    fallback: float = 0.05
    """The mask is dropped where it leaves less than this share of the tokens of positive bags positive."""
    tolerance: float = 3e-3
    """A problem is solved when its gradient has fallen to this share of what it was at zero."""
    steps: int = 300
    """Most steps of the solver."""

    def __post_init__(self) -> None:
        if self.eta is not None and not 0 < self.eta <= 1:
            raise InputError(f"eta is a share above 0 and at most 1, got {self.eta}")
        if not 0 <= self.fallback < 1 or not 0 < self.tolerance < 1 or self.steps < 1:
            raise InputError(
                f"fallback and tolerance are shares below 1 and steps at least 1, got {self.fallback}, "
                f"{self.tolerance}, {self.steps}"
            )


def bag_margin(lengths: Float[Tensor, " bags"]) -> Float[Tensor, " bags"]:
    """Least score of the mean of a positive bag: 1 for one token, 0 for two, near -1 for many."""
    return 2 / lengths - 1


def sparse_mil(
    bags: StatementBags,
    positive: Bool[Tensor, "bags problems"],
    C: Float[Tensor, " problems"],
    config: SawmilConfig | None = None,
) -> Linear:
    """Stage 1. Bags of one token make it a class-weighted SVM.

    Args:
        bags: scaled activations.
        positive: which bags are positive in every problem.
        C: cost of a miss against the norm of the weights, for each side.

    Raises:
        InputError: a problem without positive or without negative bags.
    """
    config = config or SawmilConfig()
    _check(bags, positive)
    tokens, ones = len(bags.x), positive.to(bags.x)
    negative = (1 - ones)[bags.owner]
    weight = torch.cat([C * negative / negative.sum(0), C * ones / ones.sum(0)])
    sign = torch.cat([-torch.ones_like(negative), torch.ones_like(ones)])
    margin = torch.cat([bags.x.new_ones(tokens), bag_margin(bags.lengths.to(bags.x))])
    rows = torch.cat([bags.x, bags.means()])
    return fit_hinge(rows, sign, margin, weight, tolerance=config.tolerance, steps=config.steps)


def relabel(
    bags: StatementBags,
    scores: Float[Tensor, "tokens problems"],
    positive: Bool[Tensor, "bags problems"],
    config: SawmilConfig | None = None,
) -> Bool[Tensor, "tokens problems"]:
    """Tokens that are positive from now on: those of positive bags that score best."""
    config = config or SawmilConfig()
    eta = config.eta if config.eta is not None else float(bags.mask.float().mean())
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    for column in range(scores.shape[1]):
        in_positive = positive[:, column][bags.owner]
        count = int(in_positive.sum())
        kept = min(count, max(round(eta * count), int(positive[:, column].sum())))
        cutoff = scores[in_positive, column].topk(kept).values[-1]
        above = in_positive & (scores[:, column] >= cutoff)
        narrow = above & bags.mask
        use_mask = config.masked and int(narrow.sum()) >= max(1, config.fallback * count)
        chosen[:, column] = narrow if use_mask else above
    return chosen


def sawmil(
    bags: StatementBags,
    positive: Bool[Tensor, "bags problems"],
    C: Float[Tensor, " problems"],
    config: SawmilConfig | None = None,
) -> Linear:
    """Both stages.

    Raises:
        InputError: see `sparse_mil`.
    """
    config = config or SawmilConfig()
    first = sparse_mil(bags, positive, C, config)
    chosen = relabel(bags, first.scores(bags.x), positive, config)
    weight = C * torch.where(chosen, 1 / chosen.sum(0), 1 / (~chosen).sum(0))
    sign = torch.where(chosen, 1.0, -1.0)
    margin = bags.x.new_ones(len(bags.x))
    return fit_hinge(bags.x, sign, margin, weight, start=first, tolerance=config.tolerance, steps=config.steps)


def mean_difference(
    bags: StatementBags,
    positive: Bool[Tensor, "bags problems"],
    C: Float[Tensor, " problems"],
    config: SawmilConfig | None = None,
) -> Linear:
    """The direction between the means of both sides, its zero half way between them (Marks and Tegmark 2024).

    Reads the means of bags; C and config play no part.

    Raises:
        InputError: see `sparse_mil`.
    """
    _check(bags, positive)
    ones, x = positive.to(bags.x), bags.means()
    up, down = (x.T @ (side / side.sum(0)) for side in (ones, 1 - ones))
    weight = (up - down).T
    return Linear(weight, -(weight * (up + down).T).sum(1) / 2)


def _check(bags: StatementBags, positive: Tensor) -> None:
    if len(positive) != len(bags):
        raise InputError(f"{len(positive)} labels and {len(bags)} bags: give one label a bag")
    counts = positive.sum(0)
    if bool(((counts == 0) | (counts == len(bags))).any()):
        raise InputError("all bags are on one side of some problem: give bags of both classes")
