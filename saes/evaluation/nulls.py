"""Dictionaries that learned nothing, or second moments only: the nulls of every score."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from ...lab.errors import InputError
from ...lab.rng import generator
from ..dictionary import Dictionary
from ..place import CROSSCODER
from ..registry import architectures, build_trainable
from ..training.initialise import initialise, scale_encoder

if TYPE_CHECKING:
    from ..architectures.sae import SparseAutoencoder

ROWS_AT_ONCE = 16384


@torch.no_grad()
def untrained(
    dictionary: Dictionary,
    x: Float32[Tensor, "rows d_in"],
    k: int,
    rng: torch.Generator,
    target: Float32[Tensor, "rows d_out"] | None = None,
) -> SparseAutoencoder:
    """A dictionary of the same size and kind of selection that has seen only the mean and the scale of `x`.

    A dictionary with different numbers of codes a row gets a BatchTopK with the threshold that leaves k a
    row on `x`; any other a TopK. A transcoder also gets decoder rows from `target`, as training starts with them: a
    random one would predict the mean alone.
    """
    shape = dictionary.config
    null = build_trainable(
        "batchtopk" if getattr(dictionary, "ragged", False) else "topk", d_in=dictionary.d_in,
        n_latents=dictionary.n_latents, k=min(k, dictionary.n_latents), d_out=shape.d_out, sources=shape.sources,
    ).to(x.device)  # fmt: skip
    mean = x.double().mean(0).float()
    initialise(null, x if target is None else x - mean, rng, 0, target)
    null.b_dec.copy_((x if target is None else target).double().mean(0))
    centred = x - mean
    scale_encoder(null, centred, centred if target is None else target - null.b_dec)
    null.observe(null.training_code(centred, None), 0)
    if target is not None:
        null.shift(-(null.W_enc @ mean))
    return null


def fit_nulls(
    x: Float[Tensor, "rows d_in"],
    dictionary: Dictionary,
    seed: int = 0,
    target: Float[Tensor, "rows d_out"] | None = None,
) -> dict[str, Dictionary]:
    """The nulls `untrained`, `pca` and `neurons`, with as many codes a row as `dictionary` has on `x`.

    A transcoder's are `untrained` and `linear`, which is dense.

    Args:
        x: rows that the scores are not measured on.
        target: what a transcoder should predict from them.

    Raises:
        InputError: fewer than two rows, another width than the dictionary's, or no target for a transcoder.
    """
    x = dictionary.rows(x.to(dictionary.W_dec.device))
    require_rows(x)
    if (target is None) == bool(dictionary.place.targets):
        raise InputError(f"nulls of a transcoder, and only those, take the target rows too: {dictionary!r}")
    active = sum(int(dictionary.encode(part).l0.sum()) for part in x.split(ROWS_AT_ONCE))
    k = max(1, round(active / len(x)))
    target = None if target is None else target.to(x.device).float()
    nulls: dict[str, Dictionary] = {"untrained": untrained(dictionary, x, k, generator(seed, "untrained null"), target)}
    if target is None:
        place = dictionary.place
        sources = tuple(port.width for port in place.sources) if place.kind == CROSSCODER else ()
        nulls |= {name: _fitted(name, x, k, sources) for name in ("pca", "neurons")}
    else:
        nulls["linear"] = _fitted("linear", x, target)
    for name, null in nulls.items():
        training = {"null": name, "rows": len(x), "seed": seed}
        null.place, null.provenance = dictionary.place, replace(dictionary.provenance, training=training)
    return nulls


def _fitted(architecture: str, *rows: Any) -> Dictionary:
    """A dictionary of an architecture that is fitted in closed form."""
    return cast("Any", architectures()[architecture]).fit(*rows)


def require_rows(x: Float32[Tensor, "rows d"]) -> None:
    """Refuse fewer rows than a null can be fitted on.

    Raises:
        InputError: there are fewer than two.
    """
    if len(x) < 2:
        raise InputError(f"nulls need at least 2 rows to be fitted on, got {len(x)}: give a few thousand")
