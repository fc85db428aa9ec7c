"""True, false or neither: three one-against-all directions and a multinomial over their bag scores."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int
from torch import Tensor

from ...lab.errors import unknown
from ..fitting.logistic import solve_logistic
from ..labels import Source
from ..probe import Probe
from .bags import StatementBags
from .methods import METHODS, Fitted
from .statements import CLASSES

Readout = Literal["crossfit", "published"]
READOUTS = ("crossfit", "published")
STRENGTH = 1e4
"""Inverse penalty of the multinomial."""


class Multinomial(NamedTuple):
    """Probabilities of classes from bag scores: softmax of `(scores - mean) / spread @ weight.T + bias`."""

    mean: Float[np.ndarray, " problems"]
    spread: Float[np.ndarray, " problems"]
    weight: Float[np.ndarray, "classes problems"]
    bias: Float[np.ndarray, " classes"]

    @classmethod
    def fit(cls, scores: Float[np.ndarray, "bags problems"], labels: Int[np.ndarray, " bags"]) -> Multinomial:
        """Scaled, classes weighed the same; next to no penalty, which keeps separable classes finite."""
        scores = np.asarray(scores, np.float64)
        mean, spread = scores.mean(0), scores.std(0)
        spread = np.where(spread > 0, spread, 1)
        balanced = len(labels) / np.bincount(labels).clip(1)[labels]
        solved = solve_logistic((scores - mean) / spread, labels, STRENGTH, balanced / balanced.mean())
        return cls(mean, spread, solved.weight, solved.bias)

    def probabilities(self, scores: Float[np.ndarray, "bags problems"]) -> Float[np.ndarray, "bags classes"]:
        """One row a bag, summing to 1."""
        odds = (np.asarray(scores, np.float64) - self.mean) / self.spread @ self.weight.T + self.bias
        return torch.from_numpy(odds).softmax(1).numpy()


class ThreeWay(NamedTuple):
    """A read-out of bags: directions for true, false and neither, and what their scores say together."""

    fitted: Fitted
    """Its problems are the classes, in the order of `CLASSES`."""
    multinomial: Multinomial
    readout: Readout

    @classmethod
    def of(cls, fitted: Fitted, labels: Int[np.ndarray, " bags"], readout: Readout = "crossfit") -> ThreeWay:
        """From fitted directions and the labels of their training bags.

        `crossfit` fits the multinomial to scores of bags that the directions had not seen; `published` to scores of
        those they were fitted on, which makes it too sure.

        Raises:
            InputError: an unknown read-out.
        """
        if readout not in READOUTS:
            raise unknown("readout", readout, READOUTS)
        scores = fitted.outside if readout == "crossfit" else fitted.inside
        return cls(fitted, Multinomial.fit(scores.numpy(), labels), readout)

    def scores(self, bags: StatementBags) -> Float32[Tensor, "bags classes"]:
        """The score of every bag for every class."""
        return self.fitted.scores(bags)

    def probabilities(self, bags: StatementBags) -> Float[np.ndarray, "bags classes"]:
        """The probability of every class for every bag."""
        return self.multinomial.probabilities(self.scores(bags).numpy())

    def directions(self) -> Float32[Tensor, "classes d"]:
        """Unit vectors towards each class, in activation space."""
        return F.normalize(self.fitted.linear.weight, dim=1)

    def probe(self, site: str, model: dict[str, Any]) -> Probe:
        """The directions as a probe of single tokens, one output a class, that can be saved and used as an edit."""
        pooling = METHODS[self.fitted.method].pooling
        source = Source(site, pooling="bag" if pooling == "max" else pooling, model=model)
        training = {"method": self.fitted.method, "C": self.fitted.C, "readout": self.readout}
        weight, bias = self.fitted.linear
        return Probe(f"truth_{self.fitted.method}", weight, bias, CLASSES, source, self.fitted.scaling, training)


def effective_rank(directions: Float[Tensor, "k d"]) -> float:
    """exp of the entropy of the eigenvalues of unit vectors' Gram matrix: k for orthogonal ones, 1 for equal ones."""
    values = torch.linalg.svdvals(F.normalize(directions.double(), dim=1)).square()
    share = values / values.sum()
    return float(torch.exp(torch.special.entr(share).sum()))
