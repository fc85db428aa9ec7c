"""`chat:`, conversations without a download: questions about the embedded docs, answered by the docs or by a model.

| form | assistant turns |
| --- | --- |
| `chat:` | the passage of the documentation that was asked about; nothing is generated |
| `chat:MODEL[:TOKENS[:TEMPERATURE]]` | a model's, at most TOKENS (48) each; sampled where TEMPERATURE is above 0 |

User turns fill a template with real sentences: explain, summarise, rewrite, say what follows, define a name. Choices:

- A conversation has the id of the file that it quotes in `docs:`, so either can be left out of the other.
- What is asked depends on the seed and the file alone, and is the same for both kinds of answers.
- Generated turns are kept in the cache directory, a file for `SHARD` documents, under a key of all that decides
  them; they are made when they are first read, so a corpus with a `limit` pays for that many only.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ..errors import InputError
from ..models.gguf import writable_cache
from ..rng import derive_seed, generator
from ..sequences import by_position
from ..storage import read_json, write_json
from .docs import DocsSource
from .documents import Conversation, Document, Source, content_of
from .tokenization import TextTokenizer

if TYPE_CHECKING:
    from ..models.hooked_model import HookedModel

log = logging.getLogger(__name__)

RULES = 1  # part of every hash: raise it when a change below changes the conversations
SHARD = 64  # documents whose answers are generated together and kept in one file
EXCHANGES = 3  # most questions in a conversation
WORDS = range(12, 120)  # of a passage that is asked about
NAMED = re.compile(r"`([A-Za-z_][\w.]*[A-Za-z])`")
FORM = re.compile(r"(?P<model>[^:]+)(:(?P<tokens>\d+)(:(?P<temperature>\d+(\.\d+)?))?)?")
TABLE = re.compile(r"---| : ")  # underlined headings and lists of parameters
SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")

ABOUT_SENTENCE = (
    'Explain this sentence from the documentation of {module} in your own words: "{sentence}"',
    "I do not understand this part of {module}: {sentence} Can you give me the details?",
    'The documentation of {module} says "{sentence}" What else should I know?',
)
ABOUT_PASSAGE = (
    "Summarise the following passage in one sentence.\n\n{passage}",
    "Rewrite this so that a beginner can follow it:\n\n{passage}",
    "What is the main point of this text?\n\n{passage}",
)
ABOUT_NAME = (
    "What is `{name}` in {module}?",
    "How do I use `{name}` from {module}? A short answer will do.",
    "Define `{name}` as the documentation of {module} does.",
)


class Exchange(NamedTuple):
    """A question and what the documentation answers."""

    question: str
    answer: str


def exchanges(document: Document, seed: int = 0) -> list[Exchange]:
    """One to `EXCHANGES` questions about different passages of a document; none where it holds no prose.

    Args:
        document: of a source of texts; its name is the path that questions call a module.
        seed: with the document's name, decides what is asked.
    """
    passages = _passages(document)
    rng = generator(seed, "conversation", document.name)

    def draw(options: Sequence[Any]) -> Any:
        return options[int(torch.randint(len(options), (1,), generator=rng))]

    module = ".".join(PurePosixPath(document.name).with_suffix("").parts)
    asked = torch.randperm(len(passages), generator=rng).tolist()[: draw(range(1, EXCHANGES + 1))]
    written = []
    for place in asked:
        passage, sentences = passages[place], SENTENCE.split(passages[place])
        kind = draw(["passage", "sentence"] * (len(sentences) > 1) + ["name"] * bool(NAMED.search(passage)))
        if kind == "name":
            name = draw(NAMED.findall(passage))
            written.append(Exchange(draw(ABOUT_NAME).format(name=name, module=module), passage))
        elif kind == "sentence":
            question = draw(ABOUT_SENTENCE).format(sentence=sentences[0], module=module)
            written.append(Exchange(question, " ".join(sentences[1:])))
        else:
            written.append(Exchange(draw(ABOUT_PASSAGE).format(passage=passage), sentences[0]))
    return written


def _passages(document: Document) -> list[str]:
    """The paragraphs of prose, on one line each, every one once."""
    if not isinstance(document.content, str):
        raise InputError(f"{document.name} is a conversation already: questions are asked about texts")
    lines = (" ".join(part.split()) for part in re.split(r"\n\s*\n", document.content))
    return list(dict.fromkeys(line for line in lines if _is_prose(line)))


def _is_prose(line: str) -> bool:
    letters = sum(character.isalpha() or character == " " for character in line)
    whole = line[0:1].isupper() and line.endswith(".") and len(line.split()) in WORDS
    flowing = letters > 0.85 * len(line) and not TABLE.search(line)
    return whole and flowing and bool(SENTENCE.search(line) or NAMED.search(line))


def messages(asked: Sequence[Exchange]) -> Conversation:
    """Exchanges as chat messages of a user and an assistant in turn."""
    pairs = (zip(("user", "assistant"), exchange, strict=True) for exchange in asked)
    return [{"role": role, "content": content} for pair in pairs for role, content in pair]


class DocsChats:
    """Conversations whose assistant turns are taken from the documentation.

    Args:
        seed: decides what is asked.
        passages: texts to ask about; the embedded docs if None.
    """

    name = "chat:"

    def __init__(self, seed: int = 0, passages: Source | None = None) -> None:
        self.seed, self.passages = seed, passages or DocsSource()

    def read(self, start: int = 0) -> Iterator[Document]:
        """The conversations about the texts from the `start`-th on; a text without prose gives none."""
        for document in self.passages.read(start):
            if asked := exchanges(document, self.seed):
                yield Document(document.id, messages(asked), f"chat:{document.name}")

    def fingerprint(self) -> dict[str, Any]:
        """The hash of the texts' own hash, the seed and the rules above."""
        passages = self.passages.fingerprint()
        return {"hash": _digest(RULES, self.seed, passages["hash"]), "passages": passages}


class GeneratedChats:
    """Conversations whose assistant turns a model writes, each turn after those before it; kept on disk.

    Args:
        model: a name for `load_model`, loaded when first needed; or a model that is loaded.
        tokens: longest answer.
        temperature: 0 takes the likeliest token; above it, tokens are sampled.
        seed: decides what is asked, and what is sampled.
        passages: texts to ask about; the embedded docs if None.

    Raises:
        InputError: a number out of range; while reading, a model without a chat template or that generates no text.
    """

    def __init__(
        self,
        model: str | HookedModel,
        tokens: int = 48,
        temperature: float = 0.0,
        *,
        seed: int = 0,
        passages: Source | None = None,
    ) -> None:
        if tokens < 1 or not 0 <= temperature < 10:
            raise InputError(
                f"answers of {tokens} tokens at temperature {temperature} cannot be generated: "
                "give at least 1 token and a temperature from 0 to 10"
            )
        self.tokens, self.temperature, self.seed = tokens, temperature, seed
        self.by, self._asking = model, DocsChats(seed, passages)
        called = model if isinstance(model, str) else model.name
        self.name = f"chat:{called}:{tokens}:{temperature:g}"

    @cached_property
    def model(self) -> HookedModel:
        """The model that answers."""
        from ..models.loading import load_model

        return load_model(self.by) if isinstance(self.by, str) else self.by

    def read(self, start: int = 0) -> Iterator[Document]:
        """Read conversations (see `DocsChats.read`); the first read of a shard may take minutes."""
        texts = self._asking.passages.read(start // SHARD * SHARD)
        for shard, documents in groupby(texts, lambda document: document.id // SHARD):
            for document in self._shard(shard, list(documents)):
                if document.id >= start:
                    yield document

    def _shard(self, number: int, documents: list[Document]) -> list[Document]:
        path = self.folder / f"{number:05d}.json"
        if not path.is_file():
            asked = {document: questions for document in documents if (questions := exchanges(document, self.seed))}
            log.info("writing %d conversations to %s", len(asked), path)
            answered = self._answered(list(asked.values()), derive_seed(self.seed, "answers", number))
            rows = zip(asked, answered, strict=True)
            write_json(path, [[about.id, f"chat:{about.name}", content] for about, content in rows])
        return [Document(id, content, name) for id, name, content in read_json(path, "file of conversations")]

    def _answered(self, asked: Sequence[Sequence[Exchange]], seed: int) -> list[Conversation]:
        """Every conversation with the model's own answers, one round of answers after another."""
        written: list[list[Exchange]] = [[] for _ in asked]
        for turn in range(max(map(len, asked), default=0)):
            open_ = [number for number, questions in enumerate(asked) if turn < len(questions)]
            so_far = [messages(written[n]) + messages([Exchange(asked[n][turn].question, "")])[:1] for n in open_]
            answers = answer(self.model, so_far, self.tokens, self.temperature, derive_seed(seed, turn))
            for number, text in zip(open_, answers, strict=True):
                written[number].append(Exchange(asked[number][turn].question, text))
        return [messages(conversation) for conversation in written]

    @cached_property
    def folder(self) -> Path:
        """Folder that keeps the answers: a folder for all that decides them."""
        return writable_cache() / "conversations" / self._hash[:16]

    @cached_property
    def _hash(self) -> str:
        of_model = [self.model.fingerprint()["parameters"], TextTokenizer(self.model.tokenizer).fingerprint()["hash"]]
        options = [self.tokens, self.temperature, str(self.model.dtype), SHARD]
        return _digest(self._asking.fingerprint()["hash"], *of_model, *options)

    def fingerprint(self) -> dict[str, Any]:
        """The hash over the texts, the questions, the model's weights and tokenizer, and the options."""
        return {"hash": self._hash, "passages": self._asking.passages.fingerprint(), "model": self.model.name}


@torch.no_grad()
def answer(
    model: HookedModel, conversations: Sequence[Conversation], tokens: int, temperature: float = 0.0, seed: int = 0
) -> list[str]:
    """The assistant's next turn in every conversation, generated in one batch.

    Raises:
        InputError: the model has no tokenizer, no chat template, or generates no text.
    """
    from transformers import GenerationConfig

    module: Any = model.module
    if model.tokenizer is None or not getattr(module, "can_generate", bool)():
        raise InputError(f"{model.name} cannot answer questions: give an instruct model with its tokenizer")
    rows = by_position(conversations, "conversations")
    checked = [content_of(turns, None, f"conversation {n}") for n, turns in enumerate(rows)]
    conversations = [[{"role": "user", "content": one}] if isinstance(one, str) else one for one in checked]
    tokenizer = TextTokenizer(model.tokenizer)
    rendered = [tokenizer.render(messages, f"conversation {n}", asks=True) for n, messages in enumerate(conversations)]
    prompts = [torch.from_numpy(ids) for ids in tokenizer.encode(rendered)]
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), tokenizer.padding)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):  # on the left, so that all answers begin in one column
        ids[row, width - len(prompt) :], mask[row, width - len(prompt) :] = prompt, 1
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    config = GenerationConfig(
        max_new_tokens=tokens, pad_token_id=tokenizer.padding, eos_token_id=tokenizer.separator, **sampling
    )
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)  # generate() takes no generator; the fork puts the global one back
        out = module.generate(
            ids.to(model.device), attention_mask=mask.to(model.device), generation_config=config
        )  # fmt: skip
    return [tokenizer.decode(row, skip_special=True).strip() for row in out[:, width:].tolist()]


def open_chats(rest: str) -> Source:
    """The source behind `chat:REST`.

    Raises:
        InputError: it has another form.
    """
    if not rest:
        return DocsChats()
    form = FORM.fullmatch(rest)
    if form is None:
        raise InputError(
            f"chat:{rest} is not of the form chat:MODEL[:TOKENS[:TEMPERATURE]], as in chat:smollm2-135m:48"
        )
    return GeneratedChats(form["model"], int(form["tokens"] or 48), float(form["temperature"] or 0))


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
