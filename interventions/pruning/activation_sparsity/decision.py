"""`SparsityDecision`: what is left out of a layer, by which rule, and what it was seen to cost; JSON, never changed."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, Self

import torch

from ....lab.errors import InputError, unknown
from ....lab.evidence import Evidence
from ...decision import GENERAL, Decision, Effect, evidence_of
from .masks import Fixed, Mask, scale_of
from .modules import LinearModule
from .rank_aware import Factors, Threshold

GRANULARITIES = ("token", "sentence", "global")


@dataclass(frozen=True, repr=False)
class SparsityDecision(Decision):
    """One layer's decision, the same for R-Sparse (token by token) and CoreInfer (a passage, or everything).

    Raises:
        InputError: an unknown granularity, a budget outside [0, 1], or no mask.
    """

    kind: ClassVar[str] = "activation sparsity"

    layer: int
    criterion: str
    """The size by which inputs are chosen: abs, abs_norm, or for core neurons `positive`, `abs` or `abs_norm`."""
    granularity: Literal["token", "sentence", "global"]
    """How long a choice holds: one token, one passage, or all text."""
    budget: float
    """Share of the weights that are read (token), or of the neurons that are kept."""
    mask: dict[str, dict[str, Any]]
    """By module path. A token's rule: `criterion`, `threshold`, `rank`. A core: `kept`, neurons in rising order, or
    `kept_of`, the same for each document by its id."""
    recall_vs_oracle: Evidence | None
    """How much of the choice made in hindsight it keeps; of the module where it keeps least."""
    rel_error: Evidence
    """Of the output, relative to its length; of the module where it is largest."""
    delta_ce: Evidence
    """Nats a token, decoding after a prompt that was read in full."""

    def __post_init__(self) -> None:
        if self.granularity not in GRANULARITIES:
            raise unknown("granularity", self.granularity, GRANULARITIES)
        if not 0 <= self.budget <= 1:
            raise InputError(f"budget is a share from 0 to 1, got {self.budget}")
        if not self.mask:
            raise InputError("a decision needs a mask for at least one module")
        scores = {"rel_error": self.rel_error, "recall_vs_oracle": self.recall_vs_oracle}
        derived = {
            "chosen": {
                "weights": {
                    f"layer {self.layer}": [f"{path}: {self.budget:.0%} by {self.criterion}" for path in self.mask]
                }
            },
            "evidence": {name: score for name, score in scores.items() if score is not None},
            "effect": {"cross_entropy": Effect(self.delta_ce)},
        }
        for name in GENERAL:
            object.__setattr__(self, name, derived[name])

    def masks(self, modules: list[LinearModule], documents: list[int] | None = None) -> dict[LinearModule, Mask]:
        """The masks of this layer's modules, to run the model with (`masking`).

        Args:
            documents: for a sentence's decision, which document each passage is.

        Raises:
            InputError: a module is missing, or a document has no core here.
        """
        own = {module.path: module for module in modules if module.layer == self.layer}
        masks: dict[LinearModule, Mask] = {}
        for path, rule in self.mask.items():
            if path not in own:
                raise unknown(f"linear module of layer {self.layer}", path, own)
            masks[own[path]] = _mask(own[path], rule, documents)
        return masks

    @classmethod
    def _of(cls, written: dict[str, Any]) -> Self:
        known = {field.name for field in fields(cls)} - {*GENERAL}
        own = {name: value for name, value in written.items() if name in known}
        scores = ("recall_vs_oracle", "rel_error", "delta_ce")
        return cls(**{**own, **{name: own[name] and evidence_of(own[name]) for name in scores}})


def _mask(module: LinearModule, rule: dict[str, Any], documents: list[int] | None) -> Mask:
    if "threshold" in rule:
        scale, factors = scale_of(module, rule["criterion"]), Factors.of(module.weight)
        rank = rule["rank"]
        return Threshold(scale, rule["threshold"], factors.left[:, :rank], factors.right[:rank])
    if "kept" in rule:
        chosen = [rule["kept"]]
    else:
        missing = [doc for doc in documents or [] if str(doc) not in rule["kept_of"]]
        if missing or not documents:
            raise InputError(
                f"the decision has no core for document {missing[0] if missing else None}: name those it has"
            )
        chosen = [rule["kept_of"][str(doc)] for doc in documents]
    kept = torch.zeros(len(chosen), module.weight.shape[1], dtype=torch.bool)
    for row, neurons in zip(kept, chosen, strict=True):
        row[neurons] = True
    return Fixed(kept.to(module.weight.device))
