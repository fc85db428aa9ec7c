"""Explanations of latents from windows in which they fire, without a language model.

`LexicalExplainer` weighs strings by tf-idf: how many of the windows have the string where the latent fires (or, for the
context, before it), times the logarithm of how rare windows with that string are. What it cannot say (a position, a
grammatical form, a topic that has no words of its own) a judge cannot read: its scores are a floor.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from .windows import Window

STRONG = 0.3
"""Share of a window's largest activation from which on a token counts as one that the latent fires on."""


@dataclass(frozen=True)
class Explanation:
    """A sentence that says on which tokens a latent fires."""

    latent: int
    firing: tuple[str, ...]
    """Strings it fires on, best first; stripped and in lower case."""
    context: tuple[str, ...] = ()
    """Strings that stand before those, best first."""

    @property
    def text(self) -> str:
        """A sentence for readers and for judges that read."""
        words = ", ".join(f'"{word}"' for word in self.firing) or "no particular word"
        near = f" in text about {', '.join(self.context)}" if self.context else ""
        return f"the word {words}{near}"


class Explainer(Protocol):
    """Makes explanations."""

    def explain(self, latent: int, firing: Sequence[Window]) -> Explanation:
        """Explain a latent from windows in which it fires."""
        ...


class LexicalExplainer:
    """The strings with the highest tf-idf.

    Args:
        background: windows of any kind, which tell how rare a string is.
        words: strings a latent fires on, at most.
        context: strings before them, at most.
    """

    def __init__(self, background: Iterable[Sequence[str]], words: int = 8, context: int = 6) -> None:
        self.words, self.context = words, context
        self.n, self.windows_with = 0, Counter[str]()
        for strings in background:
            self.n += 1
            self.windows_with.update({plain(string) for string in strings})

    def explain(self, latent: int, firing: Sequence[Window]) -> Explanation:
        """The best strings; one that a single window has is taken only where no other is left."""
        on, before = Counter[str](), Counter[str]()
        for window in firing:
            least = STRONG * max(window.acts)
            strong = [i for i, act in enumerate(window.acts) if act > 0 and act >= least]
            on.update({plain(window.strings[i]) for i in strong})
            before.update({plain(string) for string in window.strings[: strong[-1]]} if strong else ())
        words = self._best(on, self.words)
        others = Counter({string: n for string, n in before.items() if string not in words and len(string) > 2})
        return Explanation(latent, words, self._best(others, self.context))

    def _best(self, counts: Counter[str], n: int) -> tuple[str, ...]:
        weight = {
            string: count * math.log((1 + self.n) / (1 + self.windows_with[string]))
            for string, count in counts.items()
            if string
        }
        order = sorted(weight, key=lambda string: (-weight[string], string))
        often = [string for string in order if counts[string] > 1]
        return tuple((often or order)[:n])


def plain(string: str) -> str:
    """A token's text as explanations have it: without the spaces around it, in lower case."""
    return string.strip().lower()
