"""Model diffing: latents that two models share or that one has alone, by a crosscoder (Lindsey et al. 2024).

    only_first, only_second   share of latents whose decoder rows lie in one source alone
    shared                    share of latents with rows of about equal norm in both
    shared_cosine             mean cosine of both rows of a shared latent
    genuine                   share of the exclusive latents that latent scaling finds nothing of in the other source

An L1 penalty invents exclusive latents: it shrinks a row that helps one source little to nothing, and lets both
sources hold one concept in latents of their own (Minder et al. 2025, arXiv 2504.02922); BatchTopK does so much less.
Counts of exclusive latents therefore mean little without `genuine`, which asks the activations: how much of an
exclusive latent's direction, times its code, fits what the other source's reconstruction missed (shrunk away), and
what it reconstructed with other latents (decoupled)?
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ...lab.errors import InputError
from ...lab.evidence import Evidence, known_mean, mean_interval
from ...lab.rng import generator
from ..dictionary import Dictionary
from ..place import CROSSCODER

EXCLUSIVE = 0.1
"""A latent with a relative norm closer than this to 0 or 1 is exclusive."""
SHARED = 0.1
"""A latent with a relative norm closer than this to 1/2 is shared."""
SHRUNK, DECOUPLED = 0.2, 0.5
"""Ratios of latent scaling below which an exclusive latent counts as genuine: of the error, of the reconstruction."""
ROWS_AT_ONCE = 4096


class Scaling(NamedTuple):
    """Latent scaling: least-squares factors of a latent in the other source, as shares of those in its own."""

    latents: Int64[Tensor, " m"]
    error: Float[Tensor, " m"]
    """Of what is left of a source once all other latents are subtracted: near 1 for a row that was shrunk away."""
    reconstruction: Float[Tensor, " m"]
    """Of the source's reconstruction: high where other latents write the same direction there."""

    @property
    def genuine(self) -> Bool[Tensor, " m"]:
        """True for latents of which the other source has next to nothing."""
        return (self.error < SHRUNK) & (self.reconstruction < DECOUPLED)


def source_rows(dictionary: Dictionary) -> tuple[Float[Tensor, "n d_first"], Float[Tensor, "n d_second"]]:
    """The decoder rows of both sources in units of training, where both have unit mean square.

    Raises:
        InputError: the dictionary has not two sources.
    """
    place = dictionary.place
    if place.kind != CROSSCODER or len(place.sources) != 2:
        raise InputError(f"model diffing compares two sources, {dictionary!r} has {len(place.sources)}")
    scales = place.scales
    first, second = (part.detach() * s for part, s in zip(dictionary.split(dictionary.W_dec), scales, strict=True))
    return first, second


def relative_norms(dictionary: Dictionary) -> Float[Tensor, " n"]:
    """|second| / (|first| + |second|) of every latent's decoder rows: 0 is the first source alone, 1/2 both."""
    first, second = (rows.norm(dim=1) for rows in source_rows(dictionary))
    return second / (first + second).clamp_min(1e-12)


def shared_cosines(dictionary: Dictionary) -> Float[Tensor, " n"]:
    """The cosine of both rows of every latent: for two models with one basis, as a model and its fine-tuned self.

    Raises:
        InputError: the sources have different widths, and so no common basis.
    """
    first, second = source_rows(dictionary)
    _require_one_basis(first, second)
    return F.cosine_similarity(first, second, dim=1)


def diff(
    dictionary: Dictionary,
    x: Float[Tensor, "rows d_in"] | None = None,
    *,
    alive: Bool[Tensor, " n"] | None = None,
    nulls: Mapping[str, Dictionary] | None = None,
    held_out: str = "",
    seed: int = 0,
) -> dict[str, Evidence]:
    """Every score of the module, with intervals over latents.

    Beside each stands `shuffled`, the same score with the second source's rows dealt to other latents: what norms that
    know nothing of each other give. For `genuine` it is the score of as many shared latents.

    Args:
        x: activations of both sources side by side, not trained on; without them there is no `genuine`.
        alive: latents that count; all by default.
        nulls: other crosscoders by name (of another seed, of a model with itself) to show the same scores of.
        held_out: what `x` was kept out of.

    Raises:
        InputError: the dictionary has not two sources.
    """
    first, second = source_rows(dictionary)
    kept = torch.ones(len(first), dtype=torch.bool) if alive is None else alive.cpu()
    first, second = first[kept], second[kept]
    order = torch.randperm(len(first), generator=generator(seed, "shuffled latents")).to(first.device)
    own, shuffled = _scores(first, second), _scores(first, second[order])
    others = {name: _scores(*source_rows(null)) for name, null in (nulls or {}).items()}
    scores = {
        name: Evidence(
            name, known_mean(values), mean_interval(values, seed=seed),
            {"shuffled": known_mean(shuffled[name])}
            | {null: known_mean(s[name]) for null, s in others.items() if name in s},
            int(np.isfinite(values).sum()), "latents", held_out, "higher" if name.startswith("shared") else "lower",
        )
        for name, values in own.items()
    }  # fmt: skip
    if x is not None:
        scores["genuine"] = _genuine(dictionary, x, kept, held_out, seed)
    return scores


@torch.no_grad()
def latent_scaling(dictionary: Dictionary, x: Float[Tensor, "rows d_in"], latents: Int64[Tensor, " m"]) -> Scaling:
    """How much of each latent, along its row in the source where that is longer, the other source holds as well.

    For a source with activations y, reconstruction y_hat and the latent's row r, the factor is
    argmin_b sum |b f d - target|^2 over rows, with f the code, d the row in the longer source, and target
    y - y_hat + f r for `error` or y_hat for `reconstruction` (arXiv 2504.02922).

    Raises:
        InputError: not two sources, of different widths, or a latent that never fires on `x` (a ratio of nothing).
    """
    rows = source_rows(dictionary)
    _require_one_basis(*rows)
    scales = dictionary.place.scales
    owner = (relative_norms(dictionary)[latents] > 0.5).long()
    long = torch.stack(rows)[owner, latents]  # [m, d]
    fits = x.new_zeros(2, 2, len(latents), dtype=torch.float64)  # error, reconstruction; by source
    energy = x.new_zeros(len(latents), dtype=torch.float64)
    for part in x.split(ROWS_AT_ONCE):
        code = dictionary.encode(part)
        f = code.to_dense()[:, latents]
        energy += f.double().square().sum(0)
        x_hat = dictionary.reconstruct(part, code)
        for source, (y, y_hat) in enumerate(zip(*map(dictionary.split, (dictionary.rows(part), x_hat)), strict=True)):
            for kind, target in enumerate((y - y_hat, y_hat)):
                fits[kind, source] += (f * (target * scales[source] @ long.T)).double().sum(0)
    if not bool((energy > 0).all()):
        silent = int(latents[int((energy == 0).nonzero()[0])])
        raise InputError(f"latent {silent} is never active on these {len(x)} rows: give more rows, or leave it out")
    for source, written in enumerate(rows):
        fits[0, source] += energy * (written[latents] * long).sum(1)
    place = torch.arange(len(latents), device=x.device)
    error, reconstruction = (fit[1 - owner, place] / fit[owner, place] for fit in fits)
    return Scaling(latents, error.float(), reconstruction.float())


def _genuine(
    dictionary: Dictionary, x: Float[Tensor, "rows d_in"], kept: Bool[Tensor, " n"], held_out: str, seed: int
) -> Evidence:
    relative = relative_norms(dictionary)
    fires = torch.zeros(dictionary.n_latents, dtype=torch.bool, device=relative.device)
    for part in x.split(ROWS_AT_ONCE):
        fires |= dictionary.encode(part).firing_counts() > 0
    counted = fires & kept.to(fires.device)
    exclusive = (counted & ((relative - 0.5).abs() > 0.5 - EXCLUSIVE)).nonzero()[:, 0]
    shared = (counted & ((relative - 0.5).abs() < SHARED)).nonzero()[:, 0]
    order = torch.randperm(len(shared), generator=generator(seed, "shared latents")).to(shared.device)
    values, null = (
        latent_scaling(dictionary, x, chosen).genuine.double().cpu().numpy()
        for chosen in (exclusive, shared[order[: max(1, len(exclusive))]])
    )
    return Evidence(
        "genuine", known_mean(values), mean_interval(values, seed=seed), {"shared latents": known_mean(null)},
        len(values), "latents", held_out, "higher",
    )  # fmt: skip


def _scores(first: Tensor, second: Tensor) -> dict[str, np.ndarray]:
    """One value a latent of every score; nan where it does not count."""
    norms = [rows.norm(dim=1) for rows in (first, second)]
    relative = norms[1] / (norms[0] + norms[1]).clamp_min(1e-12)
    both = (relative - 0.5).abs() < SHARED
    masks = {"only_first": relative < EXCLUSIVE, "only_second": relative > 1 - EXCLUSIVE, "shared": both}
    values = {name: mask.double().cpu().numpy() for name, mask in masks.items()}
    if first.shape == second.shape:
        cosines = F.cosine_similarity(first, second, dim=1).double()
        values["shared_cosine"] = cosines.masked_fill(~both, torch.nan).cpu().numpy()
    return values


def _require_one_basis(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape:
        raise InputError(
            f"rows of width {first.shape[1]} and {second.shape[1]} cannot be compared: this takes one site of two"
            " models with a common basis, such as a model and its fine-tuned self"
        )
