"""Names of places that do not exist, each of the length and token count of a real one.

A probe that tells invented places from real ones may only have noticed that their names are longer or fall into more
tokens. A name made up here replaces one real name character for character and token for token, so that it cannot.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import accumulate

import numpy as np

from ...lab.rng import derive_seed
from ...lab.text.tokenization import TextTokenizer

ORDER = 3
"""Letters that decide the next one."""
START, END = "^", "$"
SHORTEST, LONGEST = 4, 14
"""Letters of a word."""
FIRST_WORDS = (
    "New", "North", "South", "East", "West", "Upper", "Lower", "Central", "United", "Free", "Royal", "Great", "Inner",
    "Outer", "Northern", "Southern", "Eastern", "Western", "Saint", "Port", "Fort", "Lake", "San", "Santa", "El",
)  # fmt: skip
LAST_WORDS = (
    "City", "Shores", "Rivers", "Valleys", "Provinces", "Lands", "Crown", "Marches", "Coast", "Islands", "Union",
    "Republic", "Kingdom", "Territory", "Hills", "Lakes", "Plains", "Confederation", "Peninsula", "Bay", "Moor",
)  # fmt: skip


class InventedNames:
    """Makes up names in the manner of real ones: letters follow each other as they do there.

    Args:
        real: names to learn from.
        taken: names that must not come out, casefolded.
        tokenizer: decides how many tokens a name has, after a space.
        seed: of the draws; the same seed and calls give the same names.
    """

    def __init__(self, real: Sequence[str], taken: Iterable[str], tokenizer: TextTokenizer, seed: int) -> None:
        self._tokenizer = tokenizer
        self._rng = np.random.default_rng(derive_seed(seed, "invented names"))
        self._taken = set(taken)
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for word in (word for name in real for word in name.split() if word.isalpha() and len(word) > 2):
            letters = START * ORDER + word + END
            for i in range(len(word) + 1):
                counts[letters[i : i + ORDER]][letters[i + ORDER]] += 1
        self._next = {
            context: (list(following), [count / following.total() for count in accumulate(following.values())])
            for context, following in counts.items()
        }
        self._ready: dict[tuple[int, int], list[str]] = defaultdict(list)

    def shape(self, name: str) -> tuple[int, int]:
        """Characters and tokens of a name."""
        return len(name), len(self._tokenizer.encode([f" {name}"])[0])

    def prepare(self, candidates: int) -> None:
        """Make up `candidates` more names of one and of two words, and sort them by their shape."""
        words = [self._word(draws) for draws in self._rng.random((candidates, LONGEST)).tolist()]
        words = [word for word in words if word]
        first = self._rng.choice(FIRST_WORDS, candidates // 2)
        last = self._rng.choice(LAST_WORDS, candidates // 4)
        names = list(words)
        names += [f"{a} {b}" for a, b in zip(first, words, strict=False)]
        names += [f"{a} {b}" for a, b in zip(words, last, strict=False)]
        names += [f"{a} {b}" for a in FIRST_WORDS for b in LAST_WORDS]
        fresh = [name for name in dict.fromkeys(names) if name.casefold() not in self._taken]
        self._rng.shuffle(fresh)
        self._taken |= {name.casefold() for name in fresh}
        for name, tokens in zip(fresh, self._tokenizer.encode([f" {name}" for name in fresh]), strict=True):
            self._ready[len(name), len(tokens)].append(name)

    def like(self, name: str) -> str | None:
        """An invented name with the characters and tokens of `name`, never the same twice; None where there is none."""
        ready = self._ready[self.shape(name)]
        return ready.pop() if ready else None

    def _word(self, draws: list[float]) -> str:
        """One word, letter by letter; empty where it grew too long or stayed too short."""
        letters = START * ORDER
        for draw in draws:
            choices, shares = self._next[letters[-ORDER:]]
            letter = choices[bisect_right(shares, draw, hi=len(shares) - 1)]
            if letter == END:
                break
            letters += letter
        word = letters[ORDER:]
        return word if SHORTEST <= len(word) < LONGEST else ""
