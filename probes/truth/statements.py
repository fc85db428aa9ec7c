"""Statements that are true, false or neither, and splits that keep every entity on one side."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Int

from ...lab.errors import InputError, unknown
from ...lab.rng import derive_seed
from ...lab.sequences import by_position, flags_of, integers_of, positions_of, texts_of

CLASSES = ("true", "false", "neither")
"""Labels are indexes into this."""
TRUE, FALSE, NEITHER = range(3)
SPLITS = ("train", "calibration", "test")
TEST_SHARE = CALIBRATION_SHARE = 0.25
"""Of all entities, and of those that are left (Savcisens and Eliassi-Rad 2025)."""


@dataclass(frozen=True)
class Statements:
    """Statements in columns.

    Raises:
        InputError: columns differ in length, a label or a split is unknown, or a text is empty.
    """

    name: str
    """Subject of the statements."""
    texts: tuple[str, ...]
    """The statements."""
    labels: Int[np.ndarray, " statements"]
    """Indexes into `CLASSES`."""
    negated: Bool[np.ndarray, " statements"]
    """True if the statement is a negation."""
    entities: tuple[str, ...]
    """Entity of each statement; statements of one entity are in one split, and are resampled together."""
    splits: tuple[str, ...]
    """`train`, `calibration` or `test`."""

    def __post_init__(self) -> None:
        for column in ("texts", "entities", "splits"):
            object.__setattr__(self, column, tuple(texts_of(getattr(self, column), column)))
        object.__setattr__(self, "labels", integers_of(self.labels, "labels").numpy())
        object.__setattr__(self, "negated", flags_of(self.negated, "negations").numpy())
        for column in ("labels", "negated", "entities", "splits"):
            if (found := len(getattr(self, column))) != len(self.texts):
                raise InputError(f"{len(self.texts)} statements and {found} {column}: give one each")
        if not self.texts:
            raise InputError(f"{self.name} holds no statement")
        if len(bad := np.setdiff1d(self.labels, range(len(CLASSES)))):
            raise InputError(f"label {bad[0]} is none of 0, 1, 2, which stand for {', '.join(CLASSES)}")
        for split in set(self.splits) - set(SPLITS):
            raise unknown("split", split, SPLITS)
        for number, text in enumerate(self.texts):
            if not text.strip():
                raise InputError(f"statement {number} of {self.name} is empty: leave it out")

    def __len__(self) -> int:
        return len(self.texts)

    def rows(self, split: str, negated: bool | None = None) -> Int[np.ndarray, " rows"]:
        """Indexes of a split's statements, of one polarity if it is given."""
        kept = np.array(self.splits) == split
        return np.flatnonzero(kept if negated is None else kept & (self.negated == negated))

    def counts(self) -> dict[str, dict[str, int]]:
        """Statements of every class in every split."""
        return {
            split: {name: int((self.labels[self.rows(split)] == c).sum()) for c, name in enumerate(CLASSES)}
            for split in SPLITS
        }

    def take(self, rows: Sequence[int] | Int[np.ndarray, " rows"]) -> Statements:
        """Some of the statements."""
        rows = positions_of(rows, "statements to take").numpy()
        return replace(
            self,
            texts=tuple(self.texts[i] for i in rows),
            labels=self.labels[rows],
            negated=self.negated[rows],
            entities=tuple(self.entities[i] for i in rows),
            splits=tuple(self.splits[i] for i in rows),
        )

    def hash(self) -> str:
        """Of texts, labels and splits."""
        told = "\n".join(f"{t}\t{y}\t{s}" for t, y, s in zip(self.texts, self.labels, self.splits, strict=True))
        return hashlib.sha256(told.encode()).hexdigest()

    def require_classes(self) -> None:
        """Refuse statements of which a split lacks a class.

        Raises:
            InputError: names the split and the class.
        """
        for split, found in self.counts().items():
            for name, count in found.items():
                if not count:
                    raise InputError(f"no statement of the {split} split is {name}: give more entities of each class")


def entity_splits(entities: Sequence[str], kinds: Sequence[object], seed: int) -> tuple[str, ...]:
    """A split for every statement: a quarter of the entities of each kind to test, a quarter of the rest to calibrate.

    Args:
        entities: what each statement is about; one entity goes to one split.
        kinds: split one by one, so that each split has its share of every kind, such as real and invented.
        seed: of the draw.

    Raises:
        InputError: a kind has fewer than three entities.
    """
    entities, kinds = texts_of(entities, "entities"), by_position(kinds, "kinds")
    of: dict[str, str] = {}
    rng = np.random.default_rng(derive_seed(seed, "entity splits"))
    for kind in sorted(set(map(str, kinds))):
        mine = [entity for entity, its in zip(entities, kinds, strict=True) if str(its) == kind and entity not in of]
        names, sizes = np.unique(mine, return_counts=True)
        if len(names) < len(SPLITS):
            raise InputError(f"{len(names)} entities of kind {kind!r} cannot be split into three: give at least three")
        order = rng.permutation(len(names))
        share = (sizes[order].cumsum() - sizes[order] / 2) / sizes.sum()
        bounds = np.searchsorted(share, [TEST_SHARE, TEST_SHARE + (1 - TEST_SHARE) * CALIBRATION_SHARE])
        test = min(max(1, int(bounds[0])), len(names) - 2)
        train = min(max(test + 1, int(bounds[1])), len(names) - 1)
        for place, number in enumerate(order):
            of[str(names[number])] = "test" if place < test else "calibration" if place < train else "train"
    return tuple(of[entity] for entity in entities)
