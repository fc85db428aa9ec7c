"""Splits that keep every group on one side: folds, stratified by class, with no entity or document in two of them."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ...lab.errors import InputError
from ...lab.rng import derive_seed
from ...lab.sequences import by_position
from ..labels import Labels, group_numbers

Split = tuple[np.ndarray, np.ndarray]
"""Indexes of training and of test units."""


def folds_of_share(share: float) -> int:
    """Number of folds of which each holds about this share of all units."""
    return max(2, round(1 / share))


def group_folds(y: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> list[Split]:
    """Training and test units of every fold, stratified by class, all units of a group in one.

    Args:
        y: the class of every unit, from 0; or numbers of any shape [units, ...], which are not stratified.

    Raises:
        InputError: a class has too few groups, or the groups leave a side without a class.
    """
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    y = y if isinstance(y, np.ndarray) and y.dtype != object else np.array(by_position(y, "labels"))
    groups = group_numbers(groups, len(y))
    state = derive_seed(seed, "probe split") % 2**32
    if y.dtype.kind not in "iub":
        if (held := len(np.unique(groups))) < folds:
            raise InputError(f"there are {held} different groups, too few for a split into {folds}: give more")
        return list(GroupKFold(folds, shuffle=True, random_state=state).split(y, groups=groups))
    if (held := min(len(np.unique(groups[y == c])) for c in np.unique(y))) < folds:
        raise InputError(
            f"one class has {held} different rows or groups, too few for a split into {folds}: give more rows of it, "
            "or a larger test_share"
        )
    splits = list(StratifiedGroupKFold(folds, shuffle=True, random_state=state).split(y[:, None], y, groups))
    if min(len(np.unique(y[side])) for split in splits for side in split) < len(np.unique(y)):
        raise InputError("the groups leave one side of the split without a class: give smaller or more groups")
    return splits


@lru_cache(maxsize=16)
def split_labels(labels: Labels, folds: int, seed: int) -> list[Split]:
    """`group_folds` of labels, which takes a second for some thousand groups; remembered, as many sites share them."""
    return group_folds(labels.y.numpy(), labels.groups.numpy(), folds, seed)
