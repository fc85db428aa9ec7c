"""Labelled texts with several classes, and with two labels each, put together from the binary data sets.

Data sets such as `139_news_class_Politics` and `140_news_class_Technology` belong to one family, `news_class`: their
positives are its classes. Data sets such as `5_hist_fig_ismale` and `7_hist_fig_ispolitician` label some texts alike.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...lab.errors import InputError, unknown
from ...lab.rng import derive_seed
from .datasets import dataset_names, load_dataset

JOINT = "+"
"""Between the names of two data sets whose common texts are taken."""


class ClassedTexts(NamedTuple):
    """Texts of which each belongs to exactly one class."""

    name: str
    texts: list[str]
    labels: list[int]
    """Index into `classes`."""
    classes: list[str]


class CrossedTexts(NamedTuple):
    """Texts with two binary labels, as many of each of the four combinations."""

    name: str
    texts: list[str]
    first: list[bool]
    second: list[bool]


def families() -> dict[str, list[str]]:
    """The data sets of every family of at least two: those whose names, less the number, begin alike up to a `_`."""
    parts: dict[str, list[str]] = {}
    for name in dataset_names():
        words = name.split("_")[1:]
        for length in range(1, len(words)):
            parts.setdefault("_".join(words[:length]), []).append(name)
    return {family: names for family, names in parts.items() if len(names) > 1}


def load_classes(family: str, per_class: int, seed: int = 0) -> ClassedTexts:
    """At most `per_class` texts of every class of a family, as many of each; a text of two classes is left out.

    Raises:
        InputError: an unknown family (says the nearest), or the data is not installed.
    """
    known = families()
    if family not in known:
        raise unknown("family of data sets", family, known)
    texts = {}
    for name in known[family]:
        data = load_dataset(name)
        texts[name] = {text for text, label in zip(data.texts, data.labels, strict=True) if label}
    own = {name: sorted(own_texts.difference(*(texts[other] for other in texts if other != name)))
           for name, own_texts in texts.items()}  # fmt: skip
    size = min(per_class, *map(len, own.values()))
    drawn = {name: _draw(own_texts, size, seed, family, name) for name, own_texts in own.items()}
    labels = [label for label, own_texts in enumerate(drawn.values()) for _ in own_texts]
    classes = [name.split(f"_{family}_", 1)[1] for name in drawn]
    return ClassedTexts(family, [text for own_texts in drawn.values() for text in own_texts], labels, classes)


def load_crossed(pair: str, per_cell: int, seed: int = 0) -> CrossedTexts:
    """At most `per_cell` texts of every combination of two data sets' labels, as many of each.

    Args:
        pair: names of two data sets with `+` between.

    Raises:
        InputError: no such pair, an unknown data set, or a combination that no text has.
    """
    names = pair.split(JOINT)
    if len(names) != 2:
        raise InputError(
            f"{pair!r} does not name two data sets: write them as 5_hist_fig_ismale+7_hist_fig_ispolitician"
        )
    first, second = (dict(zip(data.texts, data.labels, strict=True)) for data in map(load_dataset, names))
    cells: dict[tuple[int, int], list[str]] = {(a, b): [] for a in (0, 1) for b in (0, 1)}
    for text in sorted(first.keys() & second.keys()):
        cells[first[text], second[text]].append(text)
    size = min(per_cell, *map(len, cells.values()))
    if not size:
        raise InputError(f"no text of {pair} has one of the four combinations of labels: name two sets that cross")
    drawn = [(text, cell) for cell, texts in cells.items() for text in _draw(texts, size, seed, pair, cell)]
    return CrossedTexts(pair, [text for text, _ in drawn], [bool(a) for _, (a, _) in drawn],
                        [bool(b) for _, (_, b) in drawn])  # fmt: skip


def _draw(texts: list[str], n: int, seed: int, *names: object) -> list[str]:
    rng = np.random.default_rng(derive_seed(seed, "draw", *names))
    return [texts[i] for i in sorted(rng.choice(len(texts), n, replace=False).tolist())]
