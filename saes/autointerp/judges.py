"""Judges: given an explanation and a window, how probably does the latent fire in it? No service, no key.

    rule        1 if the window has one of the words the latent is said to fire on, else 0
    embedding   cosine of MiniLM's vectors of the explanation and of the window
    model       a small language model's log odds of "yes" against "no", one window a prompt

A score has no zero of its own: `threshold` finds where it parts the windows that the explanation was made from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...lab.errors import InputError
from ...lab.models.hooked_model import HookedModel
from ...lab.runs.prompts import Prompt, read_prompts
from ...lab.text.sentence_encoder import SentenceEncoder
from ...lab.text.tokenization import TextTokenizer
from .explain import Explanation, plain
from .windows import Window

PROMPT = """Some texts contain {explanation}. Others do not.
Text: {window}
Question: Does the text contain {explanation}?
Answer (yes or no):"""


class Judge(Protocol):
    """Reads an explanation and windows, never activations."""

    def scores(self, explanation: Explanation, windows: Sequence[Window]) -> Float[np.ndarray, " windows"]:
        """One number a window, higher where the latent is more probably said to fire."""
        ...


class RuleJudge:
    """True if a word of the explanation is among the window's tokens."""

    def scores(self, explanation: Explanation, windows: Sequence[Window]) -> Float[np.ndarray, " windows"]:
        """1 or 0."""
        words = set(explanation.firing)
        return np.array([float(any(plain(string) in words for string in window.strings)) for window in windows])


class EmbeddingJudge:
    """Cosine of two sentence vectors; every text is embedded once."""

    def __init__(self, encoder: SentenceEncoder | None = None) -> None:
        self.encoder = encoder or SentenceEncoder(tokens=64)
        self._known: dict[str, Tensor] = {}

    def scores(self, explanation: Explanation, windows: Sequence[Window]) -> Float[np.ndarray, " windows"]:
        """From -1 to 1."""
        texts = [explanation.text, *(window.text for window in windows)]
        if new := [text for text in dict.fromkeys(texts) if text not in self._known]:
            self._known |= dict(zip(new, self.encoder.embed(new), strict=True))
        about, *vectors = (self._known[text] for text in texts)
        return (torch.stack(vectors) @ about).numpy() if vectors else np.zeros(0)


class ModelJudge:
    """A causal language model asked about one window at a time.

    Raises:
        InputError: the model has no tokenizer, or spells yes and no alike.
    """

    def __init__(self, model: HookedModel, batch: int = 8) -> None:
        if model.tokenizer is None:
            raise InputError(f"{model.name} has no tokenizer, so it cannot judge: load it with one")
        self.model, self.batch = model, batch
        self.tokenizer = TextTokenizer(model.tokenizer)
        self.yes, self.no = (int(ids[0]) for ids in self.tokenizer.encode([" yes", " no"]))
        if self.yes == self.no:
            raise InputError(
                f"{model.name}'s tokenizer spells ' yes' and ' no' alike, so it cannot judge: take another"
            )

    @torch.no_grad()
    def scores(self, explanation: Explanation, windows: Sequence[Window]) -> Float[np.ndarray, " windows"]:
        """Log odds, nats."""
        start = [] if self.tokenizer.bos is None else [self.tokenizer.bos]
        texts = [PROMPT.format(explanation=explanation.text, window=window.text.strip()) for window in windows]
        prompts = [Prompt((*start, *ids.tolist())) for ids in (self.tokenizer.encode(texts) if texts else [])]
        site = self.model.site(f"resid_post.{self.model.n_layers - 1}")
        found = []
        for part in read_prompts(self.model, [site], prompts, batch=self.batch, by_length=False):
            logits = self.model.unembed(part.at_last(site)).float()
            found.append((logits[:, self.yes] - logits[:, self.no]).cpu())
        return torch.cat(found).numpy() if found else np.zeros(0)


def threshold(scores: Float[np.ndarray, " n"], fires: Bool[np.ndarray, " n"]) -> float:
    """The score above which "fires" has the best balanced accuracy; the middle between two scores of the data."""
    levels = np.unique(scores)
    cuts = np.concatenate([[levels[0] - 1], (levels[:-1] + levels[1:]) / 2, [levels[-1] + 1]])
    return float(cuts[np.argmax([balanced_accuracy(scores > cut, fires) for cut in cuts])])


def balanced_accuracy(told: Bool[np.ndarray, " n"], fires: Bool[np.ndarray, " n"]) -> float:
    """The mean of the shares of firing and of silent windows that are told right."""
    return float((told[fires].mean() + (~told[~fires]).mean()) / 2)
