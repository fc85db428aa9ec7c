"""Texts of the usual kind and of others, all about as long: what `outliers.ood_scores` compares."""

from __future__ import annotations

import re
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from ...lab.errors import InputError, unknown
from ...lab.models.hooked_model import HookedModel
from ...lab.models.sites import Site
from ...lab.rng import derive_seed
from ...lab.runs.read import read
from ...lab.storage import State
from ...lab.streams.activation_stream import Batch
from ...lab.streams.token_stream import TokenStream
from ...lab.text.corpus import Corpus, TextConfig
from ...lab.text.tokenization import TextTokenizer
from ..cities import TEMPLATES, city_facts
from ..tasks.datasets import dataset_names, load_dataset

SHUFFLED = "shuffled"
"""The usual kind with its words in another order: as long, the same words, and no sentence."""
CHARACTERS = 40
"""More than a token has, mostly: the rest of a long text is not tokenised."""
CITIES_AT_ONCE = 8
"""Sentences about cities that are joined to one text, before it is cut."""


class DistinctBeginnings:
    """A consumer that keeps the texts of the first token rows of one length, all different; made for `read`.

    Args:
        n: how many to keep.
        tokens: tokens a row after its BOS.
    """

    kind = "measures"
    needs_text = True
    sites: tuple[Site, ...] = ()

    def __init__(self, tokenizer: TextTokenizer, n: int, tokens: int, *, name: str = "beginnings") -> None:
        self.limit, self.tokens, self.name = n, tokens, name
        self.texts: dict[str, None] = {}
        """Every text once, in order."""
        self._tokenizer = tokenizer

    @property
    def done(self) -> bool:
        """True once there are n texts."""
        return len(self.texts) >= self.limit

    @property
    def progress(self) -> tuple[int, int | None]:
        """Texts kept, and texts asked for."""
        return len(self.texts), self.limit

    def step(self, batch: Batch) -> None:
        """Keep texts of a token batch."""
        assert batch.source is not None, "served by a TokenStream"
        start = int(self._tokenizer.bos is not None)
        for ids, attention in zip(batch.source.batch.tokens, batch.source.batch.attention, strict=True):
            if not self.done and int(attention.sum()) == self.tokens + start:
                self.texts[self._tokenizer.decode(ids[attention][start:].tolist(), skip_special=True)] = None

    def merge(self, other: DistinctBeginnings) -> None:
        """Take in the texts of later documents; exact.

        Raises:
            InputError: the other's texts are of another length.
        """
        if self.tokens != other.tokens:
            raise InputError(f"texts of {other.tokens} tokens do not join those of {self.tokens}: give equal lengths")
        self.texts = dict.fromkeys(list(dict.fromkeys([*self.texts, *other.texts]))[: self.limit])

    def metrics(self) -> dict[str, int | float]:
        """Texts kept so far."""
        return {"texts": len(self.texts)}

    def state_dict(self) -> State:
        """The texts."""
        return {"texts": list(self.texts)}

    def load_state_dict(self, state: State) -> None:
        """Continue where `state_dict` was taken."""
        self.texts = dict.fromkeys(state["texts"])

    def save(self, folder: Path) -> None:
        """Write nothing: texts are for whoever asked for them."""


def passages(
    model: HookedModel,
    form: str,
    n: int,
    tokens: int,
    *,
    split: str = "all",
    heldout: float = 0.3,
    progress: bool = False,
) -> list[str]:
    """The beginnings of the first n documents that have so many tokens, one of each document, all different.

    Args:
        form: names the source, as in `lab.sources`.
        split: all, train or heldout; `heldout` is the expected share of the last.

    Raises:
        InputError: a source that cannot be read, or fewer such documents than 10.
    """
    tokenizer = TextTokenizer(model.tokenizer)
    start = tokenizer.bos is not None
    config = TextConfig(context=max(2, tokens + start), pack=False, long="truncate", sort_by_length=False)
    corpus = Corpus(form, model.tokenizer, replace(config, split=split, heldout=heldout))  # type: ignore[arg-type]
    beginnings = DistinctBeginnings(tokenizer, n, tokens)
    read(TokenStream.reading(model, corpus), beginnings, description="passages", progress=progress)
    return list(beginnings.texts)


def require_kind(name: str) -> None:
    """Refuse a kind of texts that is no source, no kind of `KINDS` and no data set.

    Raises:
        InputError: names the nearest.
    """
    if ":" not in name and name not in (SHUFFLED, *KINDS, *dataset_names()):
        raise unknown("kind of texts", name, [*KINDS, SHUFFLED, *dataset_names()])


def outside_texts(
    model: HookedModel, name: str, n: int, tokens: int, *, usual: str, seed: int = 0, progress: bool = False
) -> list[str]:
    """Texts of another kind, n at most, cut to so many tokens.

    Args:
        name: `cities` (sentences about cities), `code` (Python's own library), `shuffled` (held-out usual texts with
            their words in another order), a data set of `probes.datasets`, or a source such as `jsonl:PATH`.
        usual: names the usual source.

    Raises:
        InputError: none of these (says the nearest), or what it needs is not installed.
    """
    if name == SHUFFLED:
        rng = np.random.default_rng(derive_seed(seed, "shuffled words"))
        texts = passages(model, usual, n, 2 * tokens, split="heldout", progress=progress)
        return _cut(model, (" ".join(rng.permutation(text.split()).tolist()) for text in texts), n, tokens)
    if name in KINDS:
        return _cut(model, KINDS[name](4 * n), n, tokens)
    if ":" in name:
        return passages(model, name, n, tokens, progress=progress)
    require_kind(name)
    data = load_dataset(name)
    return _cut(model, iter(data.take(len(data), seed).texts), n, tokens)


def _cities(n: int) -> Iterator[str]:
    """Questions about cities and their answers, several cities a text."""
    facts = city_facts(n + CITIES_AT_ONCE)
    sentences = [f"{TEMPLATES['country'][0].format(city)} {country}."
                 for city, country in zip(facts.entities, facts.values["country"], strict=True)]  # fmt: skip
    yield from (" ".join(sentences[i : i + CITIES_AT_ONCE]) for i in range(n))


def _code(n: int) -> Iterator[str]:
    """Functions of Python's own library, one a module, from their first line on."""
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("**/[a-z]*.py"))[:n]:
        source = path.read_text(encoding="utf-8", errors="ignore")
        if found := re.search(r"^def .*", source, re.MULTILINE):
            yield source[found.start() :]


KINDS: dict[str, Callable[[int], Iterator[str]]] = {"cities": _cities, "code": _code}
"""Kinds that need no file, by name."""


def _cut(model: HookedModel, texts: Iterator[str], n: int, tokens: int) -> list[str]:
    """The first n different texts that have so many tokens, cut there."""
    tokenizer = TextTokenizer(model.tokenizer)
    found: dict[str, None] = {}
    for text in texts:
        (ids,) = tokenizer.encode([text[: CHARACTERS * tokens]])
        if len(ids) >= tokens:
            found[tokenizer.decode(ids[:tokens].tolist())] = None
        if len(found) == n:
            break
    return list(found)
