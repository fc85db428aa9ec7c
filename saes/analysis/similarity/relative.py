"""Relative representations: each row as its cosines to a few anchor rows (Moschella et al. 2023, arXiv 2209.15430).

Anchors are the same tokens in both models, so the two sets of cosines can be compared number by number; the score is
the mean over held-out rows of the cosine between a row's relative representations. It does not change when a
representation is rotated or scaled. Rows are taken as they are, without centring: where all activations lie in one
cone all cosines are near 1 and so is the score, also for shuffled rows, which is why the null stands beside it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ....lab.errors import InputError
from ....lab.rng import generator
from ...evaluation.document_sums import ratio
from .rows import Fold


def relative(fold: Fold, anchors: int, seed: int) -> Float[Tensor, "test anchors"]:
    """Cosines of the held-out rows to anchors drawn from the fitted ones, each row scaled to unit norm.

    Args:
        anchors: at most the number of fitted rows are used.
        seed: of the draw; the same for both representations.

    Raises:
        InputError: fewer than 2 anchors, or more than there are fitted rows.
    """
    if not 2 <= anchors <= len(fold.fit):
        raise InputError(f"anchors={anchors} must be from 2 to the {len(fold.fit)} fitted rows")
    drawn = torch.randperm(len(fold.fit), generator=generator(seed, "anchors"))[:anchors]
    cosines = F.normalize(fold.test, dim=1) @ F.normalize(fold.fit[drawn], dim=1).T
    return F.normalize(cosines, dim=1)


def agreement(a: Float[Tensor, "test anchors"], b: Float[Tensor, "test anchors"]) -> dict[str, Float[Tensor, " test"]]:
    """The cosine of every held-out row's two relative representations."""
    return {"cosine": (a * b).sum(1), "n": torch.ones(len(a))}


def mean_agreement(sums: Mapping[str, np.ndarray]) -> float:
    """The mean cosine, from summed columns."""
    return ratio(sums["cosine"], sums["n"])
