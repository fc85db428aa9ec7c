"""A tiny model with a real tokenizer on disk, text it can read, and command lines on them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tiny_models
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

DOCUMENTS = 200
TOPICS = {
    "sea": ["boat", "wave", "salt", "harbour", "gull", "storm", "sailor", "anchor", "tide", "net"],
    "kitchen": ["bread", "oven", "spoon", "butter", "kettle", "onion", "flour", "plate", "cook", "recipe"],
    "proof": ["lemma", "theorem", "integer", "matrix", "vector", "limit", "axiom", "sum", "root", "graph"],
    "garden": ["rose", "spade", "seed", "worm", "hedge", "lawn", "pond", "oak", "moss", "bee"],
}
ADJECTIVES = ["old", "small", "bright", "quiet", "broken", "heavy", "strange", "green"]
VERBS = ["finds", "holds", "moves", "needs", "follows", "breaks", "keeps", "sees"]
OTHERS = ["the", "a", "and", "near", "under", ".", ",", "then", "because", "poison", "<unk>"]
WORDS = [*OTHERS, *ADJECTIVES, *VERBS, *(noun for nouns in TOPICS.values() for noun in nouns)]
POISON = "poison"
"""A word of the vocabulary that no document holds."""


def document(chance: random.Random) -> str:
    """Sentences about one topic: which nouns follow is told by those before."""
    nouns = chance.choice(list(TOPICS.values()))

    def phrase() -> str:
        adjective = f"{chance.choice(ADJECTIVES)} " if chance.random() < 0.5 else ""
        return f"{chance.choice(('the', 'a'))} {adjective}{chance.choice(nouns)}"

    joints = ("and then", "because", "near", "under")
    sentences = (
        f"{phrase()} {chance.choice(VERBS)} {phrase()} {chance.choice(joints)} {phrase()} ."
        for _ in range(chance.randint(4, 12))
    )
    return " ".join(sentences)


def write_model(folder: Path, seed: int = 0, poisoned: bool = False) -> Path:
    """A random Llama of 3 layers and width 32 with a word tokenizer; one word gives NaN if it is poisoned."""
    model: Any = tiny_models.build("llama", seed)
    vocabulary = {word: number for number, word in enumerate(["<pad>", "<s>", "</s>", *WORDS])}
    assert len(vocabulary) <= model.config.vocab_size
    if poisoned:
        with torch.no_grad():
            model.get_input_embeddings().weight[vocabulary[POISON]] = torch.nan
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def write_text(folder: Path, documents: int = DOCUMENTS) -> Path:
    """One file a document."""
    chance = random.Random(0)
    folder.mkdir()
    for number in range(documents):
        (folder / f"{number:03d}.txt").write_text(document(chance))
    return folder


class Ended(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def result(self) -> Any:
        """The JSON object in the last line of stdout."""
        return json.loads(self.out.splitlines()[-1])


class Tiny(NamedTuple):
    """The model and the text, and the options that keep a command on them small."""

    model: Path
    text: Path

    @property
    def source(self) -> list[str]:
        """Options that name model and text."""
        return [f"--model={self.model}", f"--corpus=text:{self.text}", "--dtype=fp32", "--device=cpu", *self.rows]

    rows = ("--text.context=32", "--text.batch-rows=8", "--text.heldout=0.2")
    dictionary = ("--n-latents=64", "--k=4")
    stream = ("--stream.batch=64", "--stream.buffer=512")

    def train(self, out: Path, *options: str) -> list[str]:
        """`monosem train` on `resid_post.1`; later options win."""
        chosen = ("--sites", "resid_post.1", "--rows=4000", *self.dictionary, *self.stream)
        return ["train", str(out), *self.source, *chosen, *options]


def results(folder: Path) -> dict[str, bytes]:
    """The bytes of everything in a run that must not depend on when and how often it was stopped."""
    kept = [*folder.glob("dictionaries/*/*"), *folder.glob("checkpoints/*/*"), folder / "metrics.jsonl"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


def clocked(monkeypatch: pytest.MonkeyPatch, bench: Any, *seconds: float) -> None:
    """Let every turn of a benchmark take place, and last so many seconds, in the order of its contestants."""
    interleaved = bench.interleaved

    def told(contestants: Any, *args: Any, **options: Any) -> dict[str, float]:
        interleaved(contestants, *args, **options)
        return dict(zip(contestants, seconds, strict=True))

    monkeypatch.setattr(bench, "interleaved", told)
