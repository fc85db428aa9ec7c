"""Bags with a planted answer, and statements to go with them."""

from __future__ import annotations

import numpy as np
import torch
from monosem.probes.truth.bags import StatementBags
from monosem.probes.truth.statements import CLASSES, Statements
from torch import Tensor


def one_shifted(
    shift: float, tokens: int, seed: int, bags: int = 200, d: int = 10
) -> tuple[StatementBags, Tensor, Tensor, Tensor]:
    """Bags of which every other holds one token shifted along a unit vector.

    Returns:
        The bags, which are positive [bags, 1], which tokens are shifted [tokens], and the vector.
    """
    along = torch.nn.functional.normalize(torch.randn(d, generator=torch.Generator().manual_seed(seed % 1000)), dim=0)
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(bags, tokens, d, generator=rng)
    positive = torch.arange(bags) % 2 == 0
    shifted = torch.zeros(bags, tokens, dtype=torch.bool)
    shifted[positive, torch.randint(tokens, (bags,), generator=rng)[positive]] = True
    x[shifted] += shift * along
    made = StatementBags(x.flatten(0, 1), torch.full((bags,), tokens))
    return made, positive[:, None], shifted.flatten(), along


def three_classes(
    entities: int = 60, tokens: int = 6, d: int = 8, shift: float = 5.0, seed: int = 0
) -> tuple[StatementBags, Statements]:
    """Three statements an entity, one of each class, in both polarities; true and false are shifted along two axes."""
    rng = torch.Generator().manual_seed(seed)
    rows = [(e, c, n) for e in range(entities) for c in range(len(CLASSES)) for n in (False, True)]
    x = torch.randn(len(rows), tokens, d, generator=rng)
    for i, (_, label, _) in enumerate(rows):
        if label < 2:
            x[i, tokens - 1 - int(torch.randint(2, (1,), generator=rng)), label] += shift
    split = ["test" if e % 4 == 0 else "calibration" if e % 4 == 1 else "train" for e in range(entities)]
    statements = Statements(
        "planted",
        tuple(f"Statement {i}." for i in range(len(rows))),
        np.array([label for _, label, _ in rows]),
        np.array([negated for *_, negated in rows]),
        tuple(f"entity {e}" for e, *_ in rows),
        tuple(split[e] for e, *_ in rows),
    )
    return StatementBags(x.flatten(0, 1), torch.full((len(rows),), tokens)), statements
