"""Read-outs that are not linear in a row: a small MLP, and attention over the tokens of a text."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int
from torch import Tensor

from ...lab.errors import InputError
from ...lab.rng import derive_seed, generator
from ..labels import Bags, Labels, PooledRows, keep_largest
from ..probe import Probe
from .scaling import Scaling

STOPS_EARLY = 100
"""Units from which on a tenth of them tells an MLP when to stop."""
PATIENCE = 15
"""Passes without gain after which it stops."""


@dataclass(frozen=True)
class MLPFit:
    """Settings of fitting a small MLP."""

    hidden: int = 32
    """Units of its one hidden layer."""
    lr: float = 3e-3
    """Learning rate of Adam."""
    decay: float = 1e-3
    """L2 penalty on its weights."""
    epochs: int = 200
    """Passes over the rows, at most; from 100 units on it stops when a tenth of them, held back, gains no more."""

    def __post_init__(self) -> None:
        if self.hidden < 1 or self.epochs < 1 or not self.decay >= 0 or not self.lr > 0:
            got = f"{self.hidden}, {self.epochs}, {self.decay} and {self.lr}"
            raise InputError(f"hidden and epochs must be at least 1, decay at least 0 and lr above 0, got {got}")


@dataclass(frozen=True)
class AttentionFit:
    """Settings of fitting a probe with attention over tokens by Adam."""

    lr: float = 1e-2
    """Learning rate."""
    decay: float = 1e-2
    """L2 penalty on query and weights."""
    batch: int = 64
    """Texts a step."""
    epochs: int = 30
    """Passes over the texts."""

    def __post_init__(self) -> None:
        if not self.lr > 0 or not self.decay >= 0 or self.batch < 1 or self.epochs < 1:
            got = f"{self.lr}, {self.decay}, {self.batch} and {self.epochs}"
            raise InputError(f"lr must be above 0, decay at least 0, batch and epochs at least 1, got {got}")


@dataclass(frozen=True, eq=False, repr=False)
class MLPProbe(Probe):
    """`relu(x @ hidden.T + hidden_bias) @ weight.T + bias`; weight is [outputs, units]."""

    form: ClassVar[str] = "mlp"

    hidden: Float32[Tensor, "units d"] = field(kw_only=True)
    """Weights of the hidden layer, for rows as they are."""
    hidden_bias: Float32[Tensor, " units"] = field(kw_only=True)

    @property
    def d(self) -> int:
        """Width of the rows it reads."""
        return self.hidden.shape[1]

    @torch.no_grad()
    def scores(self, x: Float[Tensor, "rows d"]) -> Float32[Tensor, "rows outputs"]:
        """Scores of rows, like those of `Probe.scores`."""
        units = F.relu(F.linear(self.rows(x), self.hidden, self.hidden_bias))
        return F.linear(units, self.weight, self.bias)


@dataclass(frozen=True, eq=False, repr=False)
class AttentionProbe(Probe):
    """A linear read-out of the mean over a text's tokens, weighted by softmax(x @ query) within the text.

    `scores(x)` is what each token would say alone; `read(bags)` what texts say.
    """

    form: ClassVar[str] = "attention"

    query: Float32[Tensor, " d"] = field(kw_only=True)

    @torch.no_grad()
    def attention(self, bags: Bags) -> Float32[Tensor, " tokens"]:
        """The weight of every token in its text."""
        return _softmax(self.rows(bags.x) @ self.query, bags.bag, len(bags))

    @torch.no_grad()
    def read(self, units: PooledRows | Bags) -> Float32[Tensor, "texts outputs"]:
        """Scores of texts.

        Raises:
            InputError: rows that are pooled already.
        """
        if not isinstance(units, Bags):
            raise InputError("an attention probe pools the tokens itself: give it Bags")
        x = self.rows(units.x)
        return F.linear(_pool(x, self.attention(units), units.bag, len(units)), self.weight, self.bias)


def fit_mlp(rows: PooledRows, scaling: Scaling, weights: Tensor, fit: MLPFit, seed: int) -> MLPProbe:
    """An MLP on scaled rows, by scikit-learn's Adam; numbers are predicted in units of their spread."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier, MLPRegressor

    labels, x = rows.labels, scaling(rows.x.float()).numpy()
    kind = MLPClassifier if labels.classes else MLPRegressor
    solver = kind(
        hidden_layer_sizes=(fit.hidden,), alpha=fit.decay, max_iter=fit.epochs, early_stopping=len(rows) >= STOPS_EARLY,
        learning_rate_init=fit.lr, n_iter_no_change=PATIENCE, random_state=derive_seed(seed, "mlp") % 2**32,
    )  # fmt: skip
    mean, spread = (0.0, 1.0) if labels.classes else (labels.y.mean(0), labels.y.std(0))
    y = labels.y if labels.classes else (labels.y - mean) / spread
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        solver.fit(x, y.squeeze(-1).numpy() if y.ndim > 1 else y.numpy(), sample_weight=weights.numpy())
    (first, last), (first_bias, last_bias) = solver.coefs_, solver.intercepts_
    hidden, hidden_bias = scaling.fold(torch.from_numpy(first.T).float(), torch.from_numpy(first_bias).float())
    weight, bias = torch.from_numpy(last.T).double(), torch.from_numpy(last_bias).double()
    if not labels.classes:
        weight, bias = weight * torch.as_tensor(spread)[:, None], bias * spread + mean
    facts = {"epochs": int(solver.n_iter_), "hidden": fit.hidden, "decay": fit.decay}
    return MLPProbe("mlp", weight.float(), bias.float(), labels.classes, rows.source, scaling, facts,
                    hidden=hidden, hidden_bias=hidden_bias)  # fmt: skip


def fit_attention(bags: Bags, scaling: Scaling, weights: Tensor, fit: AttentionFit, seed: int) -> AttentionProbe:
    """Query and weights from zero, so that it starts as the mean over tokens."""
    labels, x = bags.labels, scaling(bags.x.float())
    d, outputs = x.shape[1], 1 if labels.binary else len(labels.classes)
    query, weight, bias = (torch.zeros(*shape, requires_grad=True) for shape in ((d,), (outputs, d), (outputs,)))
    parts = [query, weight, bias]
    adam = torch.optim.Adam(parts, lr=fit.lr)
    rng, steps = generator(seed, "attention probe"), 0
    ends = bags.sizes.cumsum(0)
    for _ in range(fit.epochs):
        for chosen in torch.randperm(len(bags), generator=rng).split(fit.batch):
            tokens, bag = _tokens(ends, bags.sizes, chosen)
            pooled = _pool(x[tokens], _softmax(x[tokens] @ query, bag, len(chosen)), bag, len(chosen))
            entropy = _entropy(F.linear(pooled, weight, bias), labels, chosen)
            loss = (weights[chosen].float() * entropy).mean()
            loss = loss + fit.decay * (weight.square().sum() + query.square().sum()) / d
            for part, gradient in zip(parts, torch.autograd.grad(loss, parts), strict=True):
                part.grad = gradient
            adam.step()
            steps += 1
    query, weight, bias = (part.detach() for part in parts)
    weight, bias = scaling.fold(weight, bias)
    facts: dict[str, Any] = {"steps": steps, "lr": fit.lr, "decay": fit.decay}
    source = replace(bags.source, pooling="bag")
    # a query's shift by the mean is the same for every token of a text and drops out of the softmax
    return AttentionProbe(
        "attention", weight, bias, labels.classes, source, scaling, facts, query=query / scaling.spread
    )


def _entropy(scores: Tensor, labels: Labels, chosen: Tensor) -> Tensor:
    """Cross-entropy of every text."""
    y = labels.y[chosen]
    if labels.binary:
        return F.binary_cross_entropy_with_logits(scores[:, 0], y.float(), reduction="none")
    return F.cross_entropy(scores, y, reduction="none")


def _tokens(
    ends: Int[Tensor, " bags"], sizes: Int[Tensor, " bags"], chosen: Int[Tensor, " some"]
) -> tuple[Int[Tensor, " tokens"], Int[Tensor, " tokens"]]:
    """Indexes of the tokens of the chosen bags, and the place in `chosen` of each one's bag."""
    held = sizes[chosen]
    bag = torch.repeat_interleave(torch.arange(len(chosen)), held)
    within = torch.arange(len(bag)) - (held.cumsum(0) - held)[bag]
    return (ends - sizes)[chosen][bag] + within, bag


def _softmax(logits: Float[Tensor, " tokens"], bag: Int[Tensor, " tokens"], bags: int) -> Float[Tensor, " tokens"]:
    top = keep_largest(logits.new_full((bags,), -torch.inf), bag, logits.detach())
    exponential = (logits - top[bag]).exp()
    return exponential / torch.zeros_like(top).index_add(0, bag, exponential)[bag]


def _pool(x: Tensor, share: Float[Tensor, " tokens"], bag: Int[Tensor, " tokens"], bags: int) -> Tensor:
    return x.new_zeros(bags, x.shape[1]).index_add(0, bag, share[:, None] * x)
