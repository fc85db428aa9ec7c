"""Copies of a model that are known to be alike, and how much: what measures of similarity are tried on.

rotated        every layer through a rotation of its own: nothing that measures of geometry should notice
noise:SHARE    every row moved by that share of its length in a random direction, at every layer anew
weights:SHARE  every weight matrix moved by that share of its root mean square: a model of its own, run again
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ....lab.errors import InputError, unknown
from ....lab.models.hooked_model import HookedModel
from ....lab.rng import generator
from .representations import Representations
from .rows import one_thread, random_rotation

KINDS = ("rotated", "noise", "weights")


@dataclass(frozen=True)
class Copy:
    """One way to copy a model.

    Raises:
        InputError: an unknown kind, a share that is not above 0 and finite, or one where there is none.
    """

    kind: str
    """rotated, noise or weights."""
    share: float | None = None
    """How strong the noise is."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown("copy of a model", self.kind, KINDS)
        if self.kind == "rotated" and self.share is not None:
            raise InputError(f"a rotation has no strength, got {self}: write rotated")
        if self.kind != "rotated" and (self.share is None or not 0 < self.share < float("inf")):
            raise InputError(f"{self} is no copy: give a share above 0, as in {self.kind}:0.1")

    @classmethod
    def parse(cls, text: str) -> Copy:
        """Read `rotated`, `noise:0.1` or `weights:0.02`.

        Raises:
            InputError: it is none of these.
        """
        kind, colon, share = text.strip().partition(":")
        try:
            return cls(kind, float(share) if colon else None)
        except ValueError as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{text!r} is no copy of a model: {share!r} is no number, write {kind}:0.1") from None

    def __str__(self) -> str:
        return self.kind if self.share is None else f"{self.kind}:{self.share:g}"


def copied(original: Representations, how: Copy, seed: int = 0) -> Representations:
    """Rotated or noisy rows; for `weights` see `moved_weights`.

    Raises:
        InputError: `how` is a copy of the weights, which rows do not tell.
    """
    if how.kind == "weights":
        raise InputError(f"{how} needs the model: harvest moved_weights(model, {how.share})")

    def rotated(site: str, x: Tensor) -> Tensor:
        return (x.double() @ random_rotation(x.shape[1], generator(seed, site, "turn"))).float()

    def noisy(site: str, x: Tensor) -> Tensor:
        noise = torch.randn(x.shape, generator=generator(seed, site, "noise"))
        return x + (how.share or 0) * noise * (x.norm(dim=1, keepdim=True) / x.shape[1] ** 0.5)

    change: Callable[[str, Tensor], Tensor] = rotated if how.kind == "rotated" else noisy
    with one_thread():
        acts = {site: change(site, x) for site, x in original.acts.items()}
    return replace(original, name=f"{original.name} {how}", acts=acts)


@torch.no_grad()
def moved_weights(model: HookedModel, share: float, seed: int = 0) -> HookedModel:
    """A copy of the model with Gaussian noise on every weight matrix; the model itself is left alone."""
    module = copy.deepcopy(model.module)
    rng = generator(seed, "moved weights")
    for parameter in module.parameters():
        if parameter.ndim > 1:
            size = float(parameter.float().square().mean().sqrt())
            noise = torch.randn(parameter.shape, generator=rng) * (share * size)
            parameter.add_(noise.to(parameter.device, parameter.dtype))
    return HookedModel(
        module, tokenizer=model.tokenizer, name=f"{model.name} weights:{share:g}", wiring=None, checks=False
    )
