"""Nulls of an ITDA: as many atoms, encoded the same way, that nobody chose.

random_rows         activations drawn at random: what greedy selection must beat
random_directions   random unit vectors: what activations must beat
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from ...lab.errors import InputError
from ...lab.rng import generator
from ..architectures.itda.dictionary import ITDA


def itda_nulls(itda: ITDA, x: Float[Tensor, "rows d"], seed: int = 0) -> dict[str, ITDA]:
    """Both nulls by name, of the size and with the encoder of `itda`.

    Args:
        x: rows of its site to draw from, at least as many as it has atoms that are not zero.

    Raises:
        InputError: there are fewer.
    """
    x = itda.rows(x.to(itda.W_dec.device))
    x, n = x[x.any(1)], itda.n_latents
    if len(x) < n:
        raise InputError(f"{n} atoms cannot be drawn from {len(x)} rows: give more rows")
    chosen = torch.randperm(len(x), generator=generator(seed, "random rows"))[:n]
    directions = torch.randn(n, itda.d_in, generator=generator(seed, "random directions")).to(x.device)
    shape = {"k": itda.config.k, "encoder": itda.config.encoder, "tolerance": itda.config.tolerance}
    nulls = {"random_rows": ITDA.of(x[chosen.to(x.device)], **shape), "random_directions": ITDA.of(directions, **shape)}
    for name, null in nulls.items():
        null.place = itda.place
        null.provenance = replace(itda.provenance, training={"null": name, "seed": seed})
    return nulls
