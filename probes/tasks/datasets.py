"""The 113 binary data sets of sae-probes (Kantamneni et al. 2025, arXiv 2502.16681), read from its installed wheel.

They lie there as zstd-compressed CSV; only those files are read, and no code of that package is imported.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ...lab.errors import InputError, unknown
from ...lab.rng import derive_seed
from ...lab.sequences import integers_of, texts_of

INSTALL = "pip install --no-deps sae-probes"
"""Its requirements are not needed to read the data."""


@dataclass(frozen=True)
class LabelledTexts:
    """Texts with one binary label.

    Raises:
        InputError: a text is missing, or there is not one label, 0 or 1, a text.
    """

    name: str
    """Name of the data set, one of `dataset_names`."""
    texts: list[str]
    """The texts."""
    labels: list[int]
    """0 or 1 for each; 1 is the value that sorts last in the file."""
    classes: tuple[str, str]
    """Meaning of the labels 0 and 1 in the file."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "texts", texts_of(self.texts))
        object.__setattr__(self, "labels", integers_of(self.labels, "labels").tolist())
        if len(self.texts) != len(self.labels) or not set(self.labels) <= {0, 1}:
            raise InputError(f"{self.name}: {len(self.texts)} texts and {len(self.labels)} labels of the values "
                             f"{sorted(set(self.labels))[:6]} were given: give 0 or 1 for each text")  # fmt: skip

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, n: int, seed: int = 0) -> LabelledTexts:
        """At most n texts, as near to half of each class as there are, drawn without replacement.

        Raises:
            InputError: n is below 2.
        """
        if n < 2:
            raise InputError(f"two classes need at least 2 texts, got {n}")
        y = np.array(self.labels)
        rng = np.random.default_rng(derive_seed(seed, "take", self.name))
        sides = [rng.permutation(np.flatnonzero(y == c)) for c in (0, 1)]
        ones = min(len(sides[1]), max(n // 2, n - len(sides[0])))
        kept = np.sort(np.concatenate([sides[0][: n - ones], sides[1][:ones]])).tolist()
        return LabelledTexts(self.name, [self.texts[i] for i in kept], y[kept].tolist(), self.classes)


def dataset_names() -> list[str]:
    """Names of all binary data sets, such as `105_click_bait`, in the order of their list.

    Raises:
        InputError: sae-probes is not installed; gives the line that installs its data.
    """
    return list(_paths())


def load_dataset(name: str) -> LabelledTexts:
    """One data set, whole.

    Raises:
        InputError: sae-probes is not installed, the name is unknown (says the nearest), or its file is broken.
    """
    if name not in _paths():
        raise unknown("data set", name, _paths())
    columns = _table(_paths()[name])
    if missing := {"prompt", "target"} - set(columns):
        raise InputError(f"{_paths()[name]} has no column {min(missing)!r}: install sae-probes again ({INSTALL})")
    pairs = [(str(t), y) for t, y in zip(columns["prompt"], columns["target"], strict=True) if t and y is not None]
    values = sorted({y for _, y in pairs})
    if len(values) != 2:
        raise InputError(f"{name} has {len(values)} classes and not two: install sae-probes again ({INSTALL})")
    texts, labels = [t for t, _ in pairs], [values.index(y) for _, y in pairs]
    return LabelledTexts(name, texts, labels, (str(values[0]), str(values[1])))


@cache
def _paths() -> dict[str, Path]:
    found = importlib.util.find_spec("sae_probes")
    if found is None or found.origin is None:
        raise InputError(f"the data sets lie in the wheel of sae-probes, which is not installed: {INSTALL}")
    folder = Path(found.origin).parent / "data"
    listed = _table(folder / "probing_datasets_MASTER.csv.zst")
    files = [
        file
        for file, kind in zip(listed["Dataset save name"], listed["Data type"], strict=True)
        if kind == "Binary Classification"
    ]
    return {Path(file).stem: folder / f"{file}.zst" for file in files}


def _table(path: Path) -> dict[str, Sequence[Any]]:
    """The columns of a compressed CSV file by name."""
    import pyarrow as pa
    from pyarrow import csv

    try:
        with pa.OSFile(str(path)) as file, pa.CompressedInputStream(file, "zstd") as stream:
            table = csv.read_csv(stream, parse_options=csv.ParseOptions(newlines_in_values=True))
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{path} cannot be read ({error}): install sae-probes again ({INSTALL})") from error
    return {name: table[name].to_pylist() for name in table.column_names}
