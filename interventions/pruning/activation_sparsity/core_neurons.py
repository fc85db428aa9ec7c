"""CoreInfer: the neurons that a prompt uses most, fixed for all that follows (Wang et al. 2024, arXiv 2410.18311).

    token core      the top share a of the entries of one token that are positive
    sentence core   the share b of all neurons that are most often in token cores

A gated MLP has no zeros of its own and the sign of its neurons means nothing: `abs` takes |A| and `abs_norm` |A| times
the length of the neuron's output weight. Cores of frequent neurons alone already overlap: compare with the global
core, which knows no sentence.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ....lab.errors import InputError, unknown

MAGNITUDES = ("positive", "abs", "abs_norm")


class Core(NamedTuple):
    """A sentence core."""

    neurons: Int[Tensor, " core"]
    """Ascending."""
    counts: Int[Tensor, " n"]
    """In how many token cores every neuron is."""

    @property
    def mask(self) -> Bool[Tensor, " n"]:
        """True for the neurons in it."""
        return torch.zeros_like(self.counts, dtype=torch.bool).index_fill_(0, self.neurons, True)


def token_cores(
    acts: Float[Tensor, "tokens n"], share: float, magnitude: str = "positive", norms: Tensor | None = None
) -> Bool[Tensor, "tokens n"]:
    """Which neurons are in the core of each token: the share of its eligible entries that are largest, rounded down.

    Args:
        magnitude: one of `MAGNITUDES`; only `positive` makes some entries ineligible.
        norms: lengths [n] of the output weights, for `abs_norm`.

    Raises:
        InputError: a share outside (0, 1], an unknown magnitude, or `abs_norm` without norms.
    """
    _check_share("token_share", share)
    if magnitude not in MAGNITUDES:
        raise unknown("magnitude", magnitude, MAGNITUDES)
    if magnitude == "abs_norm" and norms is None:
        raise InputError("magnitude 'abs_norm' takes the lengths of the output weights: give norms")
    sizes = acts.clamp_min(0) if magnitude == "positive" else acts.abs() * (1 if norms is None else norms)
    eligible = sizes > 0
    counts = (share * eligible.sum(1) + 1e-9).long()  # 0.4 of 5 is 2, whatever 0.4 is in binary
    order = sizes.argsort(dim=1, descending=True, stable=True)
    ranks = torch.empty_like(order).scatter_(1, order, torch.arange(acts.shape[1], device=acts.device).expand_as(order))
    return (ranks < counts[:, None]) & eligible


def sentence_core(cores: Bool[Tensor, "tokens n"], share: float) -> Core:
    """The share of all neurons most often in the cores, earlier neurons first among equals; none that is in no core.

    Raises:
        InputError: a share outside (0, 1].
    """
    return core_of_counts(cores.sum(0), share)


def core_of_counts(counts: Int[Tensor, " n"], share: float) -> Core:
    """The sentence core, from how often each neuron is in a token core."""
    _check_share("sentence_share", share)
    most = int(share * len(counts) + 1e-9)
    first = counts.argsort(descending=True, stable=True)[:most]
    return Core(first[counts[first] > 0].sort().values, counts)


def core_neurons(
    acts: Float[Tensor, "tokens n"], token_share: float = 0.4, sentence_share: float = 0.2,
    magnitude: str = "positive", norms: Tensor | None = None,
) -> Core:  # fmt: skip
    """The sentence core of activations."""
    return sentence_core(token_cores(acts, token_share, magnitude, norms), sentence_share)


def jaccard(a: Bool[Tensor, "*batch n"], b: Bool[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
    """Intersection over union of masks; 1 for two that are empty."""
    union = (a | b).sum(-1)
    return torch.where(union == 0, 1.0, (a & b).sum(-1) / union.clamp_min(1))


def recall(core: Bool[Tensor, " n"], cores: Bool[Tensor, "tokens n"]) -> Float[Tensor, " tokens"]:
    """The share of every token's core that lies in `core`; nan for a token whose core is empty."""
    sizes = cores.sum(1)
    return (cores & core).sum(1) / sizes.where(sizes > 0, torch.nan)


def growing_cores(cores: Bool[Tensor, "tokens n"], share: float, lengths: Int[Tensor, " m"]) -> Bool[Tensor, "m n"]:
    """The sentence cores of the first tokens, so many each time."""
    counts = cores.long().cumsum(0)
    return torch.stack([core_of_counts(counts[length - 1], share).mask for length in lengths.tolist()])


def _check_share(name: str, share: float) -> None:
    if not 0 < share <= 1:
        raise InputError(f"{name} must be above 0 and at most 1, got {share}")
