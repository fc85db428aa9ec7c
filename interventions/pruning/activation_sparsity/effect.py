"""The cost of masks: relative error of a map's output, and cross-entropy of the model.

    prefill   inputs are masked at every usable position, and the loss is taken there
    decode    the first half of every passage is read as it is; masks and loss are of the second half

In a causal model one pass over prompt and continuation with masks on the latter is what decoding with a cache computes.
Special tokens and the first of a row pass unmasked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from ....lab.errors import unknown
from ....lab.evidence import Evidence
from ....lab.models.hooked_model import HookedModel
from ....lab.text.packing import TokenBatch
from ....saes.edit import predicting
from ....saes.evaluation.document_sums import DocumentSums, ratio
from .masks import Mask, masking
from .modules import LinearModule, blocks, halves

SPLITS = ("prefill", "decode")
Variant = Mapping[LinearModule, Mask]
ROWS_AT_ONCE = 4


def masked_positions(passages: TokenBatch, split: str) -> Bool[Tensor, "passages tokens"]:
    """Where inputs are masked.

    Raises:
        InputError: an unknown split.
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if split == "prefill":
        return passages.usable
    later = torch.arange(passages.tokens.shape[1]) >= halves(passages)
    return passages.usable & later


@torch.no_grad()
def losses_of(
    model: HookedModel,
    passages: TokenBatch,
    variants: Mapping[str, Variant],
    *,
    splits: Sequence[str] = SPLITS,
    progress: bool = False,
) -> dict[str, DocumentSums]:
    """Cross-entropy of the model as it is and with every variant's masks, by split; one pass for each.

    Returns:
        Sums by passage for each split: columns `predictions`, `ce_clean` and `ce_NAME`.
    """
    sums_by_split = {split: DocumentSums() for split in splits}
    parts = list(blocks(passages, ROWS_AT_ONCE))
    with tqdm(total=len(parts) * (1 + len(splits) * len(variants)), desc="cross-entropy", disable=not progress) as bar:
        for first, part in parts:
            clean = _losses(model, part)
            bar.update()
            for split, sums in sums_by_split.items():
                positions = masked_positions(part, split).to(model.device)
                counted = predicting(part) & positions.cpu()
                columns = {"predictions": torch.ones(int(counted.sum())), "ce_clean": clean[counted]}
                for name, masks in variants.items():
                    with masking(masks, positions, first):
                        columns[f"ce_{name}"] = _losses(model, part)[counted]
                    bar.update()
                passage = first + counted.nonzero()[:, 0]
                sums.add(passage, columns)
    return sums_by_split


def _losses(model: HookedModel, part: TokenBatch) -> Float[Tensor, "passages tokens"]:
    """Cross-entropy of the next token at every position, nats; 0 at the last."""
    logits = model.logits(part.tokens)
    target = part.tokens.to(logits.device)
    # a passage at a time: all of them in fp32 are a quarter of a gigabyte
    pairs = zip(logits, target, strict=True)
    rows = [F.cross_entropy(predicted[:-1].float(), wanted[1:], reduction="none") for predicted, wanted in pairs]
    return F.pad(torch.stack(rows), (0, 1)).cpu()


def delta_ce(sums: DocumentSums, name: str, nulls: Mapping[str, str], note: str = "", seed: int = 0) -> Evidence:
    """Cross-entropy with the variant's masks less that of the model as it is, nats a token.

    Args:
        nulls: what each null is called, and the variant it is.
    """

    def formula(variant: str) -> Callable[[Mapping[str, np.ndarray]], float]:
        return lambda s: ratio(s[f"ce_{variant}"] - s["ce_clean"], s["predictions"])

    total = sums.total
    return Evidence(
        "delta_ce", formula(name)(total), sums.interval(formula(name), seed=seed),
        {null: formula(variant)(total) for null, variant in nulls.items()},
        len(sums), "passages", held_out="thresholds and global cores are from other passages", note=note,
    )  # fmt: skip


class OutputErrors:
    """Squared error of one map's output under masks, and what of an oracle's choice they keep, summed by passage."""

    def __init__(self, weight: Float[Tensor, "d_out d_in"]) -> None:
        self.weight = weight
        self.sums = DocumentSums()

    @torch.no_grad()
    def add(
        self,
        x: Float[Tensor, "rows d_in"],
        passage: Int[Tensor, " rows"],
        kept: Mapping[str, Bool[Tensor, "rows d_in"]],
        weights: Mapping[str, Float[Tensor, "d_out d_in"]] | None = None,
        oracle: Bool[Tensor, "rows d_in"] | None = None,
    ) -> None:
        """Rows and what each mask keeps of them; call it once with all masks.

        Args:
            weights: what an input left out costs under a mask, where that is not the whole weight.
            oracle: the choice in hindsight.
        """
        columns = {"output": (x @ self.weight.T).square().sum(1)}
        for name, mask in kept.items():
            lacking = self.weight if weights is None else weights.get(name, self.weight)
            columns[f"error_{name}"] = ((x * ~mask) @ lacking.T).square().sum(1)
            columns[f"kept_{name}"] = mask.float().mean(1)
            columns["rows"] = torch.ones(len(x))
            if oracle is not None:
                columns[f"recalled_{name}"] = (mask & oracle).sum(1)
        if oracle is not None:
            columns["oracle"] = oracle.sum(1)
        self.sums.add(passage, columns)

    def relative_error(self, name: str, nulls: Sequence[str] = (), seed: int = 0) -> Evidence:
        """||y - y_hat|| / ||y|| over all rows, the root of a ratio of sums of squares."""
        return self._evidence("rel_error", lambda mask: lambda s: ratio(s[f"error_{mask}"], s["output"]) ** 0.5,
                              name, nulls, "lower", seed)  # fmt: skip

    def recall(self, name: str, nulls: Sequence[str] = (), seed: int = 0) -> Evidence:
        """The share of the oracle's inputs that a mask keeps."""
        return self._evidence("recall_vs_oracle", lambda mask: lambda s: ratio(s[f"recalled_{mask}"], s["oracle"]),
                              name, nulls, "higher", seed)  # fmt: skip

    def kept(self, name: str) -> float:
        """The share of inputs that a mask kept."""
        return ratio(self.sums.total[f"kept_{name}"], self.sums.total["rows"])

    def _evidence(
        self, score: str, formula: Callable, name: str, nulls: Sequence[str], better: str, seed: int
    ) -> Evidence:
        total = self.sums.total
        return Evidence(
            score, formula(name)(total), self.sums.interval(formula(name), seed=seed),
            {null: formula(null)(total) for null in nulls}, len(self.sums), "passages",
            held_out="thresholds and global cores are from other passages", better=better,
        )  # fmt: skip
