"""Linear probes for several labels at once, fitted by Adam with an L1 penalty on their weights.

Inputs are centred and scaled before the fit, and both are folded into what is returned: learning rate and penalty then
mean the same for activations of every scale, and a few coordinates of huge spread do not drown the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...lab.errors import InputError
from .logistic import LogisticSteps
from .scaling import Scaling


@dataclass(frozen=True)
class LinearFit:
    """Settings of fitting linear probes. The defaults are SAEBench's for TPP and SCR."""

    lr: float = 1e-3
    """Learning rate of Adam at the first step."""
    last_lr: float | None = None
    """At the last step, log-spaced between; None keeps the first."""
    l1: float = 1e-3
    """Weight of the sum of |weights| of a label against its mean cross-entropy."""
    batch: int = 16
    """Rows a step."""
    epochs: int = 20
    """Passes over the rows."""
    standardise: bool = True
    """True if each coordinate is divided by its own spread, False if all are divided by one number. Codes want False:
    their rare latents would otherwise weigh as much as common ones."""

    def __post_init__(self) -> None:
        if not self.lr > 0 or not (self.last_lr is None or self.last_lr > 0) or not self.l1 >= 0:
            raise InputError(
                f"lr and last_lr must be above 0 and l1 at least 0, got {self.lr}, {self.last_lr}, {self.l1}"
            )
        if self.batch < 1 or self.epochs < 1:
            raise InputError(f"batch and epochs must be at least 1, got {self.batch} and {self.epochs}")


class LinearProbes(NamedTuple):
    """One probe a label: log odds are `x @ weight.T + bias`."""

    weight: Float[Tensor, "labels d"]
    bias: Float[Tensor, " labels"]

    def odds(self, x: Float[Tensor, "rows d"]) -> Float[Tensor, "rows labels"]:
        """Log odds of every label for every row."""
        return x @ self.weight.T + self.bias


def fit_linear(
    x: Float[Tensor, "rows d"], labels: Bool[Tensor, "rows labels"], fit: LinearFit, rng: torch.Generator
) -> LinearProbes:
    """A probe for every column of `labels`; positives and negatives of a label weigh the same in sum.

    Raises:
        InputError: lengths differ, or a label holds for every row or for none.
    """
    if len(x) != len(labels):
        raise InputError(f"{len(x)} rows of activations and {len(labels)} of labels: give one row of labels each")
    y = labels.float()
    positives = y.sum(0)
    if bad := int(((positives == 0) | (positives == len(y))).sum()):
        raise InputError(f"{bad} of {y.shape[1]} labels hold for every row or for none: give rows of both kinds")
    scaling = Scaling.of(x, "coordinate" if fit.standardise else "overall")
    rows = scaling(x)
    share = len(y) / 2
    weights = torch.where(labels, share / positives, share / (len(y) - positives))
    steps = LogisticSteps.start(y.shape[1], x.shape[1], fit.lr, fit.l1)
    total = fit.epochs * -(-len(rows) // fit.batch)
    decay = 1.0 if fit.last_lr is None else (fit.last_lr / fit.lr) ** (1 / max(1, total - 1))
    for _ in range(fit.epochs):
        for part in torch.randperm(len(rows), generator=rng).split(fit.batch):
            steps.step(rows[part], y[part], weights[part])
            steps.adam.param_groups[0]["lr"] *= decay
    return LinearProbes(*scaling.fold(steps.weight.detach(), steps.bias.detach()))
