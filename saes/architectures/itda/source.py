"""The text that an atom is from: read again by document and offset, and only from the very corpus that gave it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ....lab.errors import InputError
from ....lab.markup import element
from ....lab.models.loading import load_model
from ....lab.text.corpus import Corpus, TextConfig


@dataclass(frozen=True)
class AtomSource:
    """One token in its document."""

    atom: int
    """Index in the dictionary."""
    document: int
    """Id in the corpus."""
    offset: int
    """The token's place among those of the document."""
    before: str
    """Text of the tokens before it."""
    token: str
    """Its own text."""
    after: str
    """Text of the tokens after it."""

    def __str__(self) -> str:
        return f"{self.before}«{self.token}»{self.after}"

    def _repr_html_(self) -> str:
        where = f"atom {self.atom}: document {self.document}, token {self.offset}"
        return element("span", self.before, element("mark", self.token), self.after, title=where)


def place_in_text(
    atom: int, document: int, offset: int, text: dict[str, Any], corpus: Corpus, before: int, after: int
) -> AtomSource:
    """A token of a corpus, once it is known to be the one that `text` is the fingerprint of.

    Raises:
        InputError: the fingerprint is empty, or the corpus has another hash, tokenizer or chat template.
    """
    _require_same_text(text, corpus)
    ids, index = corpus.window(document, offset, before, after)
    parts = (ids[:index], ids[index : index + 1], ids[index + 1 :])
    return AtomSource(atom, document, offset, *map(corpus.decode, parts))


def _require_same_text(text: dict[str, Any], corpus: Corpus) -> None:
    if "hash" not in text:
        raise InputError("this ITDA does not know its text: build it from a stream of a model and a corpus")
    fingerprint = corpus.fingerprint()
    ours, theirs = _decides(text), _decides(fingerprint)
    for name, value in ours.items():
        if value != theirs[name]:
            raise InputError(
                f"the corpus is not the one the atoms are from: its {name} is {theirs[name]}, the atoms' {value};"
                f" give {text.get('source')} as it was"
            )


def _decides(text: dict[str, Any]) -> dict[str, Any]:
    """Text options that decide which token a document and an offset name."""
    return {
        "text hash": text["hash"],
        "tokenizer hash": text.get("tokenizer", {}).get("hash"),
        "chat setting": text.get("settings", {}).get("chat"),
    }


def reopened(text: dict[str, Any], model: dict[str, Any]) -> Corpus:
    """The corpus of a fingerprint, with the tokenizer of the model of another.

    Raises:
        InputError: the text was given as Python values or is not known, or source or model cannot be opened.
    """
    name, settings = text.get("source"), text.get("settings", {})
    if name is None or name.endswith("rows:"):
        raise InputError("the text of this ITDA cannot be opened by name: give the corpus it was built from")
    if "name" not in model:
        raise InputError("this ITDA does not know its model, so not its tokenizer: give the corpus it was built from")
    tokenizer = load_model(model["name"], revision=_hub_revision(model), device="cpu").tokenizer
    return Corpus(name, tokenizer, TextConfig(**settings))


def _hub_revision(model: dict[str, Any]) -> str | None:
    revision = model.get("revision")
    return None if revision is None or revision.startswith("gguf-") else revision
