"""Records that probes learn from: labels with their groups, and rows or bags of activations.

    labels = Labels.of(["sea", "land", "sea"], groups=["Oslo", "Bern", "Rome"])
    rows = PooledRows(x, labels, Source("resid_post.12", pooling="last"))

Rows of one group (an entity, a document, equal texts) are never on both sides of a split, and are resampled together.

Labels that are numerically equal (1, 1.0, true) are one class, named as a whole number where it is one. Labels that mix
text and numbers are refused, and so are missing ones; the text "nan" is a text like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..lab.errors import InputError, unknown
from ..lab.sequences import by_position, integers_of, is_missing, numbers_of, positions_of

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
        """Classes from labels that are all text or all numbers, sorted; other values count as their text.

        Args:
            values: one label a unit: a list, an array, a tensor, or a column of a table, read by position.
            groups: one value a unit; None makes every unit a group of its own.

        Raises:
            InputError: lengths differ, a label or a group is missing or infinite, labels mix text and numbers, there is
                one class, or a class has under 5 units.
        """
        names, y = classes_of(by_position(values, "labels"))
        if len(names) < 2:
            shown = f"every unit is labelled {names[0]}" if names else "there is no label"
            raise InputError(f"a probe needs labels of at least two classes: {shown}")
        counts = np.bincount(y)
        if counts.min() < LEAST:
            raise InputError(
                f"only {counts.min()} units are labelled {names[counts.argmin()]}: a probe needs at least {LEAST} of "
                "each class (for numbers to predict use Labels.numbers)"
            )
        return cls(torch.from_numpy(y), names, *_beside(len(y), groups, tokens))

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
            InputError: lengths differ, fewer than 5 units, a number is missing or not finite, or one output never
                changes.
        """
        told = numbers_of(values, "numbers to predict")
        told = told[:, None] if told.ndim == 1 else told
        finite = np.isfinite(told).all(1)
        if not finite.all():
            row = int(np.argmin(finite))
            raise _missing("numbers to predict", told[row].tolist(), f"row {row}", int((~finite).sum()), len(told))
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
        index = positions_of(units, "units to take")
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
        index = positions_of(units, "units to take")
        return replace(self, x=self.x[index], labels=self.labels.take(index))

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
        index = positions_of(units, "bags to take")
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


def classes_of(
    values: Sequence[Any], where: Callable[[int], str] = "row {}".format
) -> tuple[tuple[str, ...], Int[np.ndarray, " units"]]:
    """Names of the classes, sorted, and the class of every unit; see the rules at the head of this module.

    Args:
        where: names a unit in errors, given its number from 0.

    Raises:
        InputError: a label is missing, infinite, empty, or no single value, or labels mix text and numbers.
    """
    bad = [row for row, value in enumerate(values) if not is_label(value)]
    if bad:
        raise _missing("labels", values[bad[0]], where(bad[0]), len(bad), len(values))
    number = [isinstance(value, bool | int | float) for value in values]
    if len(set(number)) > 1:
        text, digits = number.index(False), number.index(True)
        raise InputError(
            f"labels mix text ({values[text]!r:.40} in {where(text)}) and numbers ({values[digits]!r} in "
            f"{where(digits)}): write all of them as text or all as numbers"
        )
    if not all(number):
        values = [str(value) for value in values]
    name = str if all(isinstance(value, str | bool) for value in values) else _number_name
    classes = sorted(set(values))
    place = {value: number for number, value in enumerate(classes)}
    return tuple(map(name, classes)), np.array([place[value] for value in values], dtype=np.int64)


def is_label(value: Any) -> bool:
    """True unless the value is missing, infinite, an empty text, a list or a mapping."""
    return not (
        is_missing(value) or value == "" or isinstance(value, dict | list | tuple) or value in (np.inf, -np.inf)
    )


def labelled(values: Any) -> Int[Tensor, " some"]:
    """Positions of the labels that are there, to leave the other units out of labels and rows alike.

    >>> kept = labelled(table["label"])
    >>> rows = PooledRows(x[kept], Labels.of(table["label"].iloc[kept.tolist()]))
    """
    told = by_position(values, "labels")
    return torch.tensor([row for row, value in enumerate(told) if is_label(value)], dtype=torch.int64)


def group_numbers(groups: Any, n: int) -> Int[np.ndarray, " units"]:
    """The number of every unit's group, from 0; groups are equal where their values are.

    Raises:
        InputError: not one group a unit, or a group is missing; names its row, from 0.
    """
    told = by_position(groups, "groups")
    if len(told) != n:
        raise InputError(f"{len(told)} groups were given for {n} labels: give one a unit")
    bad = [row for row, value in enumerate(told) if is_missing(value)]
    if bad:
        raise _missing("groups", told[bad[0]], f"row {bad[0]}", len(bad), n)
    if any(isinstance(value, list | tuple) for value in told):
        return np.unique(np.array(told), axis=0, return_inverse=True)[1].reshape(-1)
    numbers = all(isinstance(value, bool | int | float) for value in told)
    return np.unique(told if numbers else list(map(str, told)), return_inverse=True)[1].reshape(-1)


def _number_name(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


def _missing(what: str, value: Any, where: str, count: int, of: int) -> InputError:
    return InputError(
        f"{where} of the {what} is missing or cannot be used ({value!r:.40}), {count} of {of} in all: leave those "
        "units out (probes.labels.labelled gives the others; monosem probe has --drop-missing)"
    )


def _beside(
    n: int, groups: Sequence[Any] | np.ndarray | Tensor | None, tokens: Sequence[int] | Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Groups numbered from 0, and token counts, one a unit."""
    counts = None if tokens is None else integers_of(tokens, "token counts")
    if counts is not None and len(counts) != n:
        raise InputError(f"{len(counts)} token counts were given for {n} labels: give one a unit")
    return torch.from_numpy(np.arange(n) if groups is None else group_numbers(groups, n)), counts
