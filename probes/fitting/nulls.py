"""Columns that know the text but no model: random vectors for tokens, and a model whose weights are shuffled."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from ...lab.models.hooked_model import HookedModel
from ...lab.rng import generator
from ...lab.text.tokenization import TextTokenizer
from ..labels import Bags, Labels, PooledRows, Source


@dataclass(frozen=True, eq=False)
class TextTokens:
    """The tokens of every text that are read, end to end."""

    ids: Int64[Tensor, " tokens"]
    text: Int64[Tensor, " tokens"]
    """The text of each."""

    @classmethod
    def of(cls, tokenizer: TextTokenizer, texts: Sequence[str], limit: int) -> TextTokens:
        """The first `limit` tokens of every text, special ones left out."""
        special = tokenizer.special_ids
        rows = [ids[: limit + (tokenizer.bos in ids[:1])] for ids in tokenizer.encode(texts)]  # a BOS takes no place
        rows = [ids[~np.isin(ids, special)] for ids in rows]
        lengths = torch.tensor([len(row) for row in rows])
        ids = np.concatenate([*rows, np.zeros(0, np.int64)])
        return cls(torch.from_numpy(ids), torch.repeat_interleave(torch.arange(len(rows)), lengths))

    def vectors(self, d: int, seed: int = 0) -> Float32[Tensor, "tokens d"]:
        """One random vector for every token of the vocabulary, the same wherever it stands."""
        known, place = self.ids.unique(return_inverse=True)
        return torch.randn(len(known), d, generator=generator(seed, "random features", d))[place]

    def features(self, labels: Labels, d: int, pooling: str, seed: int = 0) -> PooledRows | Bags:
        """The vectors of every text, pooled as activations are.

        Raises:
            InputError: a text without a token.
        """
        bags = Bags(self.vectors(d, seed), self.text, labels, Source("random features", pooling="bag"))
        return bags if pooling == "bag" else bags.pooled(pooling)


def shuffled_model(model: HookedModel, seed: int = 0) -> HookedModel:
    """A copy of the model with the entries of every parameter shuffled: as large, as scaled, and untaught."""
    module = copy.deepcopy(model.module)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            order = torch.randperm(parameter.numel(), generator=generator(seed, "shuffled model", name))
            parameter.copy_(parameter.flatten()[order.to(parameter.device)].view_as(parameter))
    return HookedModel(module, tokenizer=model.tokenizer, name=f"{model.name}, weights shuffled")
