"""Records that probes learn from: labels with their groups, and rows or bags of activations.

    labels = Labels.of(["sea", "land", "sea"], groups=["Oslo", "Bern", "Rome"])
    rows = PooledRows(x, labels, Source("resid_post.12", pooling="last"))

Rows of one group (an entity, a document, equal texts) are never on both sides of a split, and are resampled together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..lab.errors import InputError, unknown

LEAST = 5
"""Units of every class that a probe needs, at least."""
POOLINGS = ("last", "mean", "max", "bag")
"""How the tokens of a text become rows: the last one, their mean, each coordinate's largest value, or all of them."""


@dataclass(frozen=True, eq=False)
class Labels:
    """One label for every unit: a class, or numbers to predict."""

    y: Tensor
    """[units] indexes into `classes`; or, where there are none, [units, outputs] numbers in fp64."""
    classes: tuple[str, ...]
    """Names of the classes; empty where numbers are predicted. Of two, the second is the positive one."""
    groups: Int[Tensor, " units"]
    """The group of every unit, from 0."""
    tokens: Int[Tensor, " units"] | None = None
    """Tokens of every unit, for the null that reads nothing else."""

    @classmethod
    def of(
        cls,
        values: Sequence[Any] | np.ndarray | Tensor,
        *,
        groups: Sequence[Any] | np.ndarray | Tensor | None = None,
        tokens: Sequence[int] | Tensor | None = None,
    ) -> Self:
        """Classes from values of any kind, sorted; as text where they are not all of one kind.

        Args:
            groups: one value a unit; None makes every unit a group of its own.

        Raises:
            InputError: lengths differ, a label is nan or missing, there is one class, or a class has under 5 units.
        """
        told = values.cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
        _check_finite(told, "labels")
        names, y = np.unique(told if told.dtype != object else told.astype(str), return_inverse=True)
        if len(names) < 2:
            shown = f"every unit is labelled {names[0]}" if len(names) else "there is no label"
            raise InputError(f"a probe needs labels of at least two classes: {shown}")
        counts = np.bincount(y.reshape(-1))
        if counts.min() < LEAST:
            raise InputError(
                f"only {counts.min()} units are labelled {names[counts.argmin()]}: a probe needs at least {LEAST} of "
                "each class (for numbers to predict use Labels.numbers)"
            )
        return cls(torch.from_numpy(y.reshape(-1)), tuple(map(str, names.tolist())), *_beside(len(y), groups, tokens))

    @classmethod
    def numbers(
        cls,
        values: Sequence[Any] | np.ndarray | Tensor,
        *,
        groups: Sequence[Any] | np.ndarray | Tensor | None = None,
        tokens: Sequence[int] | Tensor | None = None,
    ) -> Self:
        """Numbers to predict, [units] or [units, outputs].

        Raises:
            InputError: lengths differ, fewer than 5 units, a number is not finite, or one output never changes.
        """
        told = np.asarray(values.cpu() if isinstance(values, Tensor) else values, dtype=np.float64)
        told = told[:, None] if told.ndim == 1 else told
        _check_finite(told, "numbers to predict")
        if len(told) < LEAST or not (told.std(0) > 0).all():
            raise InputError(
                f"{len(told)} units with spreads {told.std(0).tolist() if len(told) else 'none'} cannot be predicted: "
                f"give at least {LEAST} units that differ"
            )
        return cls(torch.from_numpy(told), (), *_beside(len(told), groups, tokens))

    def __len__(self) -> int:
        return len(self.y)

    @property
    def binary(self) -> bool:
        """True if there are two classes."""
        return len(self.classes) == 2

    @cached_property
    def counts(self) -> Int[Tensor, " classes"]:
        """Units of every class."""
        return torch.bincount(self.y, minlength=len(self.classes))

    @cached_property
    def weights(self) -> Float[Tensor, " units"]:
        """One weight a unit, with mean 1 and the same sum for every class that is there; ones for numbers (fp64)."""
        if not self.classes:
            return torch.ones(len(self), dtype=torch.float64)
        counts = self.counts.double()
        return (len(self) / (counts > 0).sum() / counts)[self.y]

    def take(self, units: Sequence[int] | Tensor | np.ndarray) -> Labels:
        """The labels of some units, in their order."""
        index = torch.as_tensor(units)
        tokens = None if self.tokens is None else self.tokens[index]
        return Labels(self.y[index], self.classes, self.groups[index], tokens)

    def shuffled(self, rng: torch.Generator) -> Labels:
        """Labels dealt at random to other units."""
        return replace(self, y=self.y[torch.randperm(len(self), generator=rng)])

    def require_classes(self, kind: str, number: int | None = None) -> None:
        """Refuse numbers, or another number of classes.

        Raises:
            InputError: naming the kind of probe.
        """
        if not self.classes:
            raise InputError(f"a {kind} probe needs classes and these labels are numbers: use ridge")
        if number is not None and len(self.classes) != number:
            raise InputError(f"a {kind} probe needs {number} classes, got {len(self.classes)}: use multinomial")


@dataclass(frozen=True)
class Source:
    """Meaning of the columns of probed rows, and their site."""

    site: str = ""
    """Text form of the site, such as `resid_post.12`."""
    head: int | None = None
    """One head of `z`; None reads the site whole."""
    dictionary: str = ""
    """Hash of the dictionary whose codes the columns are; empty where they are activations."""
    pooling: str = "last"
    """One of `POOLINGS`; or `token`, where every token is a row with a label of its own."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """Fingerprint of the model."""

    def __post_init__(self) -> None:
        if self.pooling not in (*POOLINGS, "token"):
            raise unknown("pooling", self.pooling, (*POOLINGS, "token"))

    def __str__(self) -> str:
        head = "" if self.head is None else f" head {self.head}"
        return f"{self.site or 'an unnamed site'}{head}{' latents' if self.dictionary else ''}"


@dataclass(frozen=True, eq=False)
class PooledRows:
    """One row of activations (or codes) and one label a unit."""

    x: Float[Tensor, "units d"]
    labels: Labels
    source: Source = field(default_factory=Source)

    def __post_init__(self) -> None:
        if self.x.ndim != 2 or len(self.x) != len(self.labels):
            raise InputError(f"rows of shape {list(self.x.shape)} and {len(self.labels)} labels: give one row a label")
        if not bool(torch.isfinite(self.x).all()):
            bad = int((~torch.isfinite(self.x)).any(1).sum())
            raise InputError(f"{bad} of {len(self.x)} rows of {self.source} are nan or infinite: leave them out")

    def __len__(self) -> int:
        return len(self.x)

    def take(self, units: Sequence[int] | Tensor | np.ndarray) -> PooledRows:
        """Some units, in their order."""
        return replace(self, x=self.x[torch.as_tensor(units)], labels=self.labels.take(units))

    def relabelled(self, labels: Labels) -> PooledRows:
        """Copy of the rows with other labels."""
        return replace(self, labels=labels)


@dataclass(frozen=True, eq=False)
class Bags:
    """Every token of every text, with one label a text."""

    x: Float[Tensor, "tokens d"]
    """In the order of the texts and of the tokens in each."""
    bag: Int[Tensor, " tokens"]
    """The text of every token, ascending, none without a token."""
    labels: Labels
    """One for each text."""
    source: Source = field(default_factory=lambda: Source(pooling="bag"))

    def __post_init__(self) -> None:
        if len(self.x) != len(self.bag):
            raise InputError(f"{len(self.x)} tokens and {len(self.bag)} numbers of bags: give one for each token")
        if not bool(torch.isfinite(self.x).all()):
            raise InputError(f"some tokens of {self.source} are nan or infinite: leave their texts out")
        if bool((self.bag.diff() < 0).any()):
            raise InputError("the tokens of bags must lie bag by bag: sort them by their bag")
        if len(empty := (self.sizes == 0).nonzero()):
            raise InputError(f"bag {int(empty[0])} has no token: leave that text out")

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def sizes(self) -> Int[Tensor, " bags"]:
        """Tokens of every bag."""
        return torch.bincount(self.bag, minlength=len(self.labels))

    def take(self, units: Sequence[int] | Tensor | np.ndarray) -> Bags:
        """Some bags, in their order."""
        index = torch.as_tensor(units)
        ends = self.sizes.cumsum(0)
        places = [torch.arange(int(ends[i] - self.sizes[i]), int(ends[i])) for i in index]
        bag = torch.repeat_interleave(torch.arange(len(index)), self.sizes[index])
        return Bags(self.x[torch.cat(places)], bag, self.labels.take(index), self.source)

    def relabelled(self, labels: Labels) -> Bags:
        """Copy of the bags with other labels."""
        return replace(self, labels=labels)

    def pooled(self, pooling: str) -> PooledRows:
        """One row a bag.

        Raises:
            InputError: another pooling than last, mean or max.
        """
        shape = (len(self), self.x.shape[1])
        if pooling == "last":
            x = self.x[self.sizes.cumsum(0) - 1]
        elif pooling == "mean":
            sums = torch.zeros(shape, dtype=torch.float64).index_add_(0, self.bag, self.x.double())
            x = (sums / self.sizes[:, None]).to(self.x.dtype)
        elif pooling == "max":
            x = keep_largest(torch.full(shape, -torch.inf, dtype=self.x.dtype), self.bag, self.x)
        else:
            raise unknown("pooling of bags", pooling, POOLINGS[:3])
        return PooledRows(x, self.labels, replace(self.source, pooling=pooling))


def keep_largest(table: Tensor, place: Int[Tensor, " rows"], x: Tensor) -> Tensor:
    """Raise `table` [places, ...] in place to the largest of its own and of the rows `x` that belong to each place."""
    index = place.reshape(-1, *[1] * (x.ndim - 1)).expand_as(x)
    return table.scatter_reduce_(0, index, x, "amax")


def _beside(
    n: int, groups: Sequence[Any] | np.ndarray | Tensor | None, tokens: Sequence[int] | Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Groups numbered from 0, and token counts, one a unit."""
    for name, given in (("groups", groups), ("token counts", tokens)):
        if given is not None and len(given) != n:
            raise InputError(f"{len(given)} {name} were given for {n} labels: give one a unit")
    if groups is None:
        numbers = np.arange(n)
    else:
        told = groups.cpu().numpy() if isinstance(groups, Tensor) else np.asarray(groups)
        numbers = np.unique(told, return_inverse=True)[1].reshape(-1)
    return torch.from_numpy(numbers), None if tokens is None else torch.as_tensor(tokens, dtype=torch.int64)


def _check_finite(told: np.ndarray, what: str) -> None:
    numbers = told.dtype.kind == "f" or told.dtype == object
    missing = [v is None or (isinstance(v, float) and not np.isfinite(v)) for v in told.reshape(-1)] if numbers else ()
    if any(missing):
        raise InputError(f"{sum(missing)} of {told.size} {what} are nan, infinite or missing: leave those units out")
