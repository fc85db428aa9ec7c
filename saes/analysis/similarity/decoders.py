"""Decoder rows of two dictionaries against each other, by |cosine|.

    mmcs         mean over the rows of one of the largest |cosine| with any row of the other (Sharkey et al. 2022)
    one_to_one   mean |cosine| of the pairing with the largest sum, each row in at most one pair (Hungarian method)
    found        share of those pairs with |cosine| of at least 0.9

Two dictionaries of one site share directions only because both have many: the best of n random directions is far from
orthogonal, and the more so where activations are spread unevenly. So beside each score stands that of a random
dictionary of the second's size (`random`), and of random rows with the covariance of the activations (`covariance`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from torch import Tensor

from ....lab.errors import InputError
from ....lab.evidence import Evidence, bootstrap
from ....lab.rng import generator
from ...dictionary import Dictionary
from ...evaluation.recovery import FOUND, match

ROWS_AT_ONCE = 2048
LARGEST_PAIRING = 1 << 28
"""Entries of a cosine matrix up to which rows are paired one to one: the method is cubic."""


def compare_decoders(
    a: Dictionary | Float[Tensor, "n d"],
    b: Dictionary | Float[Tensor, "m d"],
    activations: Float[Tensor, "rows d"] | None = None,
    *,
    seed: int = 0,
) -> dict[str, Evidence]:
    """`mmcs` and `mmcs_back` (from b to a), `one_to_one` and `found`, with intervals over latents and both nulls.

    Signs do not count, as in `recovery`.

    Args:
        activations: rows of the site; without them there is no null `covariance`.

    Raises:
        InputError: different widths, rows that are zero or not finite, or too many latents to pair.
    """
    first, second = (_unit(side, name) for side, name in ((a, "the first"), (b, "the second")))
    require_one_width(first, second)
    others = {"random": _random(second, None, generator(seed, "random rows"))}
    if activations is not None:
        require_one_width(first, activations)
        others["covariance"] = _random(second, activations, generator(seed, "rows of that covariance"))
    scores = {
        "mmcs": _evidence("mmcs", nearest(first, second), {n: nearest(first, o) for n, o in others.items()}, seed),
        "mmcs_back": _evidence(
            "mmcs_back", nearest(second, first), {n: nearest(o, first) for n, o in others.items()}, seed
        ),
    }
    if len(first) * len(second) <= LARGEST_PAIRING:
        pairs = match(first, second).cosines.double()
        null_cosines = {name: match(first, other).cosines.double() for name, other in others.items()}
        scores["one_to_one"] = _evidence("one_to_one", pairs, null_cosines, seed)
        close = {name: (cosines >= FOUND).double() for name, cosines in null_cosines.items()}
        scores["found"] = _evidence("found", (pairs >= FOUND).double(), close, seed)
    return scores


def nearest(first: Float[Tensor, "n d"], second: Float[Tensor, "m d"]) -> Float64[Tensor, " n"]:
    """The largest |cosine| of each row of the first with any of the second; both have unit rows."""
    return torch.cat([(part @ second.T).abs().amax(1) for part in first.split(ROWS_AT_ONCE)]).double().clamp(max=1)


def require_one_width(first: Tensor, second: Tensor) -> None:
    """Refuse rows of different spaces.

    Raises:
        InputError: names both widths.
    """
    if first.shape[1] != second.shape[1]:
        raise InputError(
            f"rows of width {first.shape[1]} and {second.shape[1]} share no space: compare dictionaries of one site, "
            "or their codes by compare_rows"
        )


def _unit(decoder: Dictionary | Tensor, name: str) -> Tensor:
    rows = (decoder.W_dec if isinstance(decoder, Dictionary) else decoder).detach().float().cpu()
    norms = rows.norm(dim=1, keepdim=True)
    bad = (~(norms.isfinite() & (norms > 0)))[:, 0].nonzero()
    if len(bad):
        raise InputError(f"decoder row {int(bad[0])} of {name} is zero or not finite: leave dead latents out")
    return rows / norms


def _random(like: Tensor, activations: Tensor | None, rng: torch.Generator) -> Tensor:
    """Random unit rows in the shape of `like`: uniform, or Gaussian with the covariance of the activations."""
    if activations is None:
        return F.normalize(torch.randn(like.shape, generator=rng), dim=1)
    centred = activations.float().cpu() - activations.float().cpu().mean(0)
    mixed = torch.randn(len(like), len(centred), generator=rng) @ centred  # Gaussian with covariance of the rows
    return F.normalize(mixed, dim=1)


def _evidence(name: str, values: Tensor, nulls: dict[str, Tensor], seed: int) -> Evidence:
    scores = values.numpy()
    interval = bootstrap(lambda weights: float(weights @ scores / weights.sum()), len(scores), seed=seed)
    null_means = {null: float(null_values.mean()) for null, null_values in nulls.items()}
    return Evidence(name, float(scores.mean()), interval, null_means, len(scores), "latents", better="higher")


def pairing(
    a: Dictionary | Float[Tensor, "n d"], b: Dictionary | Float[Tensor, "m d"], shown: int = 64
) -> Float[Tensor, "shown shown"]:
    """|cosine| of every two latents of some matched pairs, spread evenly from the best pair to the worst.

    Where latents are matched well, only the diagonal stands out. Empty where there are too many latents to pair.

    Raises:
        InputError: as `compare_decoders`.
    """
    first, second = _unit(a, "the first"), _unit(b, "the second")
    require_one_width(first, second)
    if len(first) * len(second) > LARGEST_PAIRING:
        return torch.zeros(0, 0)
    pairs = match(first, second)
    best = pairs.cosines.argsort(descending=True)
    count = min(shown, len(best))
    chosen = best[torch.arange(count) * len(best) // count]
    return (first[pairs.latents[chosen]] @ second[pairs.features[chosen]].T).abs().clamp(max=1)
