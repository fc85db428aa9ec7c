"""Bags of token activations: what a model holds at a site for every token of a statement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from ...lab.errors import InputError, unknown
from ...lab.models.hooked_model import HookedModel
from ...lab.models.sites import Site
from ...lab.runs.prompts import Prompt, mark, read_prompts
from ...lab.sequences import texts_of
from ...lab.storage import atomic_path, read_json, write_json
from ...lab.text.tokenization import TextTokenizer

Pooling = Literal["max", "last", "mean"]
COMPLETE = 2
"""Last tokens of a statement, at which its claim is complete: its last word and the full stop."""
SCHEMA = 1


@dataclass(frozen=True)
class StatementBags:
    """The tokens of many statements, one after the other.

    Raises:
        InputError: a bag without a token, columns that differ in length, or activations that are not finite.
    """

    x: Float32[Tensor, "tokens d"]
    """Activations."""
    lengths: Int64[Tensor, " bags"]
    """Tokens of every bag."""
    complete: int = COMPLETE
    """Number of last tokens of each bag at which the claim is complete (the intra-bag mask)."""

    def __post_init__(self) -> None:
        if not len(self.lengths) or int(self.lengths.min()) < 1:
            empty = int(self.lengths.argmin()) if len(self.lengths) else 0
            raise InputError(f"bag {empty} has no tokens: leave its statement out")
        if int(self.lengths.sum()) != len(self.x):
            raise InputError(f"the bags hold {int(self.lengths.sum())} tokens and there are {len(self.x)} rows")
        if not torch.isfinite(self.x).all():
            bad = int((~torch.isfinite(self.x)).any(1).sum())
            raise InputError(
                f"{bad} of {len(self.x)} token activations are nan or infinite: leave their statements out"
            )

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def owner(self) -> Int64[Tensor, " tokens"]:
        """The bag of every token."""
        return torch.repeat_interleave(torch.arange(len(self)), self.lengths)

    @cached_property
    def from_end(self) -> Int64[Tensor, " tokens"]:
        """Number of tokens of the bag that come after each token."""
        return self.lengths.cumsum(0)[self.owner] - 1 - torch.arange(len(self.x))

    @property
    def mask(self) -> Bool[Tensor, " tokens"]:
        """Tokens that may be what makes a bag positive."""
        return self.from_end < self.complete

    def take(self, bags: Int64[Tensor, " some"]) -> StatementBags:
        """Some of the bags, in the order given."""
        begins = self.lengths.cumsum(0) - self.lengths
        lengths = self.lengths[bags]
        places = torch.arange(int(lengths.sum())) - torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
        return StatementBags(self.x[torch.repeat_interleave(begins[bags], lengths) + places], lengths, self.complete)

    def shortened(self, limit: int, rng: torch.Generator) -> StatementBags:
        """At most `limit` tokens of each bag: the last `complete`, and a draw from the others, in their order."""
        rank = torch.rand(len(self.x), generator=rng)
        rank[self.mask] = -1
        order = torch.argsort(rank.double() + 2.0 * self.owner)
        begins = (self.lengths.cumsum(0) - self.lengths)[self.owner]
        kept = torch.zeros(len(self.x), dtype=torch.bool)
        kept[order] = torch.arange(len(self.x)) - begins < limit
        return StatementBags(self.x[kept], self.lengths.clamp(max=limit), self.complete)

    def with_rows(self, x: Float32[Tensor, "tokens d"]) -> StatementBags:
        """Copy of the bags with other activations."""
        return replace(self, x=x)

    def means(self) -> Float32[Tensor, "bags d"]:
        """The mean activation of every bag."""
        return self.x.new_zeros(len(self), self.x.shape[1]).index_add_(0, self.owner, self.x) / self.lengths[:, None]

    def last(self) -> Float32[Tensor, "bags d"]:
        """The activation at the last token of every bag."""
        return self.x[self.lengths.cumsum(0) - 1]

    def most(self, scores: Float[Tensor, "tokens k"]) -> Float[Tensor, "bags k"]:
        """The largest score of any token of every bag."""
        owner = self.owner[:, None].expand_as(scores)
        return scores.new_empty(len(self), scores.shape[1]).scatter_reduce(0, owner, scores, "amax", include_self=False)

    def pooled(self, pooling: Pooling) -> StatementBags:
        """Bags of one row each: the last token, or the mean; `max` leaves them as they are."""
        if pooling == "max":
            return self
        if pooling not in ("last", "mean"):
            raise unknown("pooling", pooling, ("max", "last", "mean"))
        return StatementBags(self.last() if pooling == "last" else self.means(), torch.ones_like(self.lengths), 1)


class BagStore:
    """Bags of the same statements at many sites, in a folder: one array a site, read when it is asked for."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        about = read_json(self.folder / "bags.json", "store of bags")
        if about.get("schema") != SCHEMA:
            raise InputError(f"{self.folder} holds bags of schema {about.get('schema')!r}, not {SCHEMA}: harvest again")
        self.sites: list[str] = about["sites"]
        self.lengths = torch.tensor(about["lengths"])
        self.ids: list[list[int]] = about["ids"]
        """Token ids of every statement."""

    def at(self, site: Site | str, bags: Int64[Tensor, " some"] | None = None) -> StatementBags:
        """The bags of a site, all or some.

        Raises:
            InputError: the site was not harvested.
        """
        if str(site) not in self.sites:
            raise unknown("harvested site", str(site), self.sites)
        x = torch.from_numpy(np.load(self.folder / f"{self.sites.index(str(site))}.npy")).view(torch.bfloat16)
        found = StatementBags(x.float(), self.lengths)
        return found if bags is None else found.take(bags)


@torch.no_grad()
def harvest_bags(
    model: HookedModel,
    texts: Sequence[str],
    sites: list[Site],
    folder: Path | str,
    *,
    tokens: int = 100,
    batch: int = 32,
    progress: bool = False,
) -> BagStore:
    """Run the model once over every statement and keep its tokens at all sites, whole or not at all.

    The first token of a row (BOS where the tokenizer has one) is left out: models park huge activations there. Of a
    statement of more than `tokens` tokens the last ones are kept. Activations are stored in bfloat16, 2 bytes each.

    Raises:
        InputError: a statement has no token beyond the first, or a site the model has not.
    """
    texts = tuple(texts_of(texts, "statements"))
    prompts = mark(TextTokenizer(model.tokenizer), [(text, "") for text in texts])
    lengths = [min(len(prompt.ids) - 1, tokens) for prompt in prompts]
    for text, length in zip(texts, lengths, strict=True):
        if not length:
            raise InputError(f"the statement {text!r} has no token beyond the first of its row: leave it out")
    begins = np.cumsum([0, *lengths])
    with atomic_path(folder) as beside:
        beside.mkdir(parents=True)
        arrays = [
            np.lib.format.open_memmap(beside / f"{i}.npy", "w+", np.int16, (int(begins[-1]), model.width(site)))
            for i, site in enumerate(sites)
        ]
        for part in read_prompts(
            model, sites, prompts, batch=batch, description="harvest", unit="statement", progress=progress
        ):
            for array, site in zip(arrays, sites, strict=True):
                rows = part.acts[site].to("cpu", torch.bfloat16).view(torch.int16).numpy()
                for i, row in zip(part.chosen, rows, strict=True):
                    end = len(prompts[i].ids)
                    array[begins[i] : begins[i + 1]] = row[end - lengths[i] : end]
        for array in arrays:
            array.flush()
        about = {"schema": SCHEMA, "sites": [str(site) for site in sites], "lengths": lengths,
                 "ids": [_kept(prompt, length) for prompt, length in zip(prompts, lengths, strict=True)]}  # fmt: skip
        write_json(beside / "bags.json", about)
    return BagStore(folder)


def _kept(prompt: Prompt, length: int) -> list[int]:
    return list(prompt.ids[len(prompt.ids) - length :])
