"""Scores of a probe token by token, and the units with its largest errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..lab.models.hooked_model import HookedModel
from ..lab.sequences import texts_of
from ..lab.text.tokenization import TextTokenizer
from ..saes.dictionary import Dictionary
from .labels import Bags, Labels
from .layer_sweep import ReadConfig, read_texts, read_tokens
from .measure import Measured
from .pooling import PooledTexts
from .probe import Probe


@dataclass(frozen=True, eq=False)
class TokenScores:
    """One text, token by token."""

    tokens: list[str]
    scores: Float[Tensor, "tokens outputs"]
    """Score of each token's own activation, without the pooling of the fit."""


def score_tokens(
    model: HookedModel,
    probe: Probe,
    texts: Sequence[str],
    read: ReadConfig | None = None,
    *,
    dictionary: Dictionary | None = None,
) -> list[TokenScores]:
    """Scores of every token that is read, special tokens left out.

    Args:
        dictionary: whose codes the probe reads, if it reads codes.

    Raises:
        InputError: the probe is of another model, or a text has no token.
    """
    read, texts = read or ReadConfig(), texts_of(texts)
    site = probe.matching_site(model)
    tokens = read_tokens(model, texts, read)
    labels = Labels(torch.zeros(len(texts), dtype=torch.int64), ("all",), torch.arange(len(texts)))
    heads, codes = probe.source.head is not None, [dictionary] if dictionary else []
    consumer = PooledTexts(
        labels, [] if codes else [site], model, pooling="bag", heads=heads, dictionaries=codes, name="tokens"
    )
    read_texts(model, texts, [consumer], read)
    bags = consumer.gathered()[str(probe.source)]
    assert isinstance(bags, Bags), "a pooling of bags gives bags"
    scores, tokenizer = probe.scores(bags.x), TextTokenizer(model.tokenizer)
    strings = tokenizer.strings(tokens.ids.tolist())
    ends = bags.sizes.cumsum(0).tolist()
    return [TokenScores(strings[begin:end], scores[begin:end]) for begin, end in zip([0, *ends], ends, strict=False)]


def worst_errors(measured: Measured, labels: Labels, n: int = 12) -> Int[Tensor, " some"]:
    """The tested units it is wrong about by most, worst first: by margin of classes, by squared error of numbers."""
    y, read = labels.y[measured.tested], measured.read
    if not labels.classes:
        spread = labels.y.double().std(0)
        wrong = ((read - y) / spread).square().sum(1)
    elif read.shape[1] == 1:
        wrong = read[:, 0] * (1 - 2 * y)
    else:
        own = read.gather(1, y[:, None])
        wrong = read.scatter(1, y[:, None], -torch.inf).max(1).values - own[:, 0]
    order = wrong.argsort(descending=True, stable=True)[:n]
    if labels.classes:
        order = order[wrong[order] > 0]
    return measured.tested[order]
