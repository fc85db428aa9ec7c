"""The first-letter task: words that a tokenizer writes as one token, in prompts that ask how they begin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...lab.errors import InputError
from ...lab.rng import derive_seed
from ...lab.runs.prompts import Prompt, mark
from ...lab.sequences import texts_of
from ...lab.text.tokenization import TextTokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz"
SHORTEST = 3
"""Letters of a word; shorter ones are mostly pieces of words."""


def vocabulary_words(tokenizer: Any, per_letter: int, seed: int = 0) -> list[str]:
    """At most `per_letter` lower-case words for every letter, each one token after a space, in alphabetical order.

    Raises:
        InputError: the vocabulary has none.
    """
    reading = TextTokenizer(tokenizer)
    texts = {reading.decode([token]).strip() for token in range(len(tokenizer))}
    plain = sorted(text for text in texts if len(text) >= SHORTEST and set(text) <= set(LETTERS))
    tokens = reading.encode([f" {word}" for word in plain])
    words = [word for word, ids in zip(plain, tokens, strict=True) if len(ids) == 1]
    if not words:
        raise InputError(f"{reading.label} writes no word of a to z as one token, which the first-letter task needs")
    rng = np.random.default_rng(derive_seed(seed, "vocabulary words"))
    kept = []
    for letter in LETTERS:
        mine = [word for word in words if word[0] == letter]
        kept += [mine[i] for i in sorted(rng.choice(len(mine), min(per_letter, len(mine)), replace=False).tolist())]
    return kept


def letter_prompts(tokenizer: Any, words: Sequence[str], shots: int, seed: int = 0) -> list[Prompt]:
    """For every word a prompt that asks for its first letter, marked at the word, after `shots` answered ones.

    A prompt ends at its word: what would follow cannot change the word's activation in a causal model.
    """
    rng = np.random.default_rng(derive_seed(seed, "answered words"))
    texts, words = [], texts_of(words, "words")
    for word in words:
        shown = [words[i] for i in rng.choice(len(words), min(shots + 1, len(words)), replace=False).tolist()]
        shown = [other for other in shown if other != word][:shots]
        answered = "".join(f" {other} has the first letter: {other[0].upper()}\n" for other in shown)
        texts.append((f"{answered} {word}", ""))
    return mark(TextTokenizer(tokenizer), texts)
