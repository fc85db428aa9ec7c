"""FVU, L0 and silent latents of a dictionary on held-out rows, as every benchmark of trainers reports them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float32
from torch import Tensor

from ....saes.dictionary import Dictionary

CHUNK = 2048
"""Rows encoded at once."""


class Score(NamedTuple):
    """A dictionary on held-out rows."""

    l0: float
    """Mean number of codes a row that are not zero."""
    fvu: float
    """Squared error over the squared distance of the rows from their mean."""
    unfired: float
    """Share of the latents that no held-out row activates."""


@torch.no_grad()
def score(dictionary: Dictionary, held: Float32[Tensor, "rows d"]) -> Score:
    """Score a dictionary by its rule at inference."""
    active, fired = 0, torch.zeros(dictionary.n_latents, dtype=torch.bool)

    def reconstruct(x: Tensor) -> Tensor:
        nonlocal active
        code = dictionary.encode(x)
        on = code.values != 0
        active += int(on.sum())
        fired[code.indices[on].long()] = True
        return dictionary.decode(code)

    found = fvu(reconstruct, held)
    return Score(active / len(held), found, 1 - float(fired.float().mean()))


@torch.no_grad()
def fvu(reconstruct: Callable[[Tensor], Tensor], held: Float32[Tensor, "rows d"]) -> float:
    """E||x - x_hat||^2 / (E||x||^2 - ||E x||^2) over all held-out rows."""
    error = sum(float((reconstruct(part) - part).square().sum()) for part in held.split(CHUNK))
    return error / float((held - held.mean(0)).square().sum())
