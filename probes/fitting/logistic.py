"""Logistic regression: solved to convergence where rows fit in memory, by steps of Adam where they stream past."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ...lab.runs.consumers import load_optimizer_state, optimizer_state
from ...lab.storage import State

ITERATIONS = 1000


class Logistic(NamedTuple):
    """A solved regression: scores are `x @ weight.T + bias`."""

    weight: Float[np.ndarray, "outputs d"]
    """One row for two classes, one a class for more."""
    bias: Float[np.ndarray, " outputs"]
    converged: bool


def solve_logistic(
    x: Float[np.ndarray, "rows d"], y: np.ndarray, strength: float, weights: np.ndarray | None = None
) -> Logistic:
    """L2-penalised (multinomial) logistic regression by L-BFGS.

    Args:
        x: scaled rows.
        y: the class of every row, from 0.
        strength: inverse of the penalty (scikit-learn's C).
        weights: of every row.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    solver = LogisticRegression(C=strength, max_iter=ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # told by `converged`
        solver.fit(x, y, sample_weight=weights)
    return Logistic(np.asarray(solver.coef_), np.asarray(solver.intercept_), bool(solver.n_iter_.max() < ITERATIONS))


@dataclass
class LogisticSteps:
    """Weights of logistic regressions, one a column of labels, and the Adam that moves them."""

    weight: Float[Tensor, "labels d"]
    bias: Float[Tensor, " labels"]
    adam: torch.optim.Adam
    l1: float
    """Weight of the sum of |weights| against the mean cross-entropy."""

    @classmethod
    def start(cls, labels: int, d: int, lr: float, l1: float = 0.0) -> LogisticSteps:
        """From zero."""
        weight = torch.zeros(labels, d, requires_grad=True)
        bias = torch.zeros(labels, requires_grad=True)
        return cls(weight, bias, torch.optim.Adam([weight, bias], lr=lr), l1)

    def step(self, x: Float[Tensor, "rows d"], y: Float[Tensor, "rows labels"], weights: Tensor) -> Tensor:
        """One step on rows whose labels are 0 or 1, each pair weighted; the mean cross-entropy before it."""
        odds = F.linear(x, self.weight, self.bias)
        entropy = F.binary_cross_entropy_with_logits(odds, y, weights, reduction="sum") / len(x)
        loss = entropy + self.l1 * self.weight.abs().sum()
        self.weight.grad, self.bias.grad = torch.autograd.grad(loss, [self.weight, self.bias])
        self.adam.step()
        return entropy.detach()

    def state_dict(self) -> dict[str, Any]:
        """Weights and moments."""
        return {"weight": self.weight.detach(), "bias": self.bias.detach(), "adam": optimizer_state(self.adam)}

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` gave."""
        with torch.no_grad():
            self.weight.copy_(state["weight"])
            self.bias.copy_(state["bias"])
        load_optimizer_state(self.adam, state["adam"])
