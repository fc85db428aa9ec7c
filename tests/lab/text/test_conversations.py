"""Conversations: made without a download, read one by one or in blocks, and every vector where it belongs."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
import tiny_commands
import torch
from monosem.lab.errors import InputError
from monosem.lab.models.hooked_model import HookedModel
from monosem.lab.models.loading import load_model
from monosem.lab.storage import read_json, write_json
from monosem.lab.streams.activation_stream import ActivationStream
from monosem.lab.text.conversations import DocsChats, GeneratedChats, answer, exchanges
from monosem.lab.text.corpus import Corpus, TextConfig
from monosem.lab.text.documents import Document
from monosem.lab.text.filters import Deduplicated, Without
from monosem.lab.text.sources import Rows, open_source

SITE = "resid_post.1"
TURNS = "{% for message in messages %}<s>{{ message['content'] }}</s>{% endfor %}"
TEMPLATE = TURNS + "{% if add_generation_prompt %}<s>{% endif %}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> HookedModel:
    """A tiny random model with a chat template: turns between <s> (1) and </s> (2), nothing else."""
    found = load_model(tiny_commands.write_model(tmp_path_factory.mktemp("chat") / "model"), dtype="fp32", device="cpu")
    found.tokenizer.chat_template = TEMPLATE
    return found


@pytest.fixture(scope="module")
def chats() -> list[list[dict[str, str]]]:
    """40 conversations of one or two exchanges, about 20 to 120 tokens."""
    chance = random.Random(1)

    def turn(role: str) -> dict[str, str]:
        return {"role": role, "content": " ".join(tiny_commands.document(chance).split()[: chance.randint(8, 30)])}

    return [[turn(role) for role in ("user", "assistant") * chance.randint(1, 2)] for _ in range(40)]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MONOSEM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def passages() -> Rows:
    """Texts of prose that only holds words the tiny tokenizer knows, and one without prose."""
    chance = random.Random(2)

    def sentence() -> str:
        words = tiny_commands.document(chance).replace(".", "").split()[: chance.randint(9, 14)]
        return " ".join(words).capitalize() + "."

    prose = ["\n\n".join(f"{sentence()} {sentence()}" for _ in range(4)) for _ in range(5)]
    return Rows([*prose[:2], ">>> print(1)\n1", *prose[2:]])


# made from the docs


def test_conversations_quote_their_file_and_are_the_same_from_anywhere():
    source = DocsChats(passages=passages())
    found = list(source.read())
    assert [document.id for document in found] == [0, 1, 3, 4, 5]  # the text without prose gives none
    assert list(source.read(3)) == found[2:] and list(DocsChats(passages=passages()).read()) == found
    assert [d.content for d in DocsChats(1, passages()).read()] != [d.content for d in found]
    texts = {d.id: str(d.content) for d in passages().read()}
    for document in found:
        turns: Any = document.content
        assert [turn["role"] for turn in turns] == ["user", "assistant"] * (len(turns) // 2)
        assert all(turn["content"] in texts[document.id] for turn in turns[1::2])  # answers are the text's own words
    assert source.fingerprint() == DocsChats(passages=passages()).fingerprint() != DocsChats(1).fingerprint()


def test_the_embedded_docs_give_varied_questions_under_the_ids_of_their_files():
    found = list(itertools.islice(open_source("chat:").read(), 8))
    docs = {d.id: d for d in itertools.islice(open_source("docs:").read(), 20)}
    openers = {str(d.content[0]["content"])[:12] for d in found}  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert len(openers) >= 4
    for document in found:
        assert document.name == f"chat:{docs[document.id].name}"
        words = " ".join(str(docs[document.id].content).split())
        assert all(turn["content"] in words for turn in document.content[1::2])  # pyright: ignore[reportArgumentType]


def test_a_name_in_backquotes_is_asked_about():
    text = "The function `eigh` returns all eigenvalues of a symmetric matrix in ascending order every time."
    [exchange] = exchanges(Document(0, text, "numpy/linalg.py"))
    assert "`eigh`" in exchange.question and "numpy.linalg" in exchange.question and exchange.answer == text
    with pytest.raises(InputError, match="is a conversation already"):
        exchanges(Document(0, [{"role": "user", "content": text}], "row 0"))


# generated


def test_generated_answers_are_kept_on_disk_under_all_that_decides_them(model, cache):
    source = GeneratedChats(model, 5, passages=passages())
    found = list(source.read())
    asked = list(DocsChats(passages=passages()).read())
    assert [d.id for d in found] == [d.id for d in asked]
    for mine, docs in zip(found, asked, strict=True):
        assert [t["content"] for t in mine.content[::2]] == [t["content"] for t in docs.content[::2]]
        assert all(len(t["content"].split()) <= 5 for t in mine.content[1::2])
    first = answer(model, [found[0].content[:1]], 5)
    assert first == [found[0].content[1]["content"]] != [""]  # alone as in a padded batch

    [path] = source.folder.glob("*.json")
    rows = read_json(path)
    rows[0][2][1]["content"] = "edited"
    write_json(path, rows)
    again = GeneratedChats(model, 5, passages=passages())
    assert next(again.read()).content[1]["content"] == "edited" and next(again.read(3)) == found[2]
    others = [GeneratedChats(model, *options, passages=passages()) for options in ((6,), (5, 0.5))]
    folders = {one.folder for one in (source, again, *others, GeneratedChats(model, 5, seed=1, passages=passages()))}
    assert len(folders) == 4 and len({one.fingerprint()["hash"] for one in (source, *others)}) == 3


def test_sampling_follows_its_seed_and_leaves_the_global_generator_alone(model):
    chat = [[{"role": "user", "content": "the old boat finds a wave"}]]
    before = torch.random.get_rng_state()
    texts = [answer(model, chat, 12, 2.0, seed) for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2] and torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("form", ["chat:m:many", "chat:m:8:0.5:1", "chat:m:1.5", "chat::8"])
def test_misspelt_forms_are_refused(form):
    with pytest.raises(InputError, match="MODEL"):
        open_source(form)


@pytest.mark.parametrize("options", [(0,), (8, -1.0), (8, float("nan"))])
def test_answers_that_cannot_be_generated(options):
    with pytest.raises(InputError, match="cannot be generated"):
        GeneratedChats("smollm2-135m", *options)


# left out


def test_repeats_are_left_out_in_order_and_before_the_template(model):
    def chat(*turns: str) -> list[dict[str, str]]:
        return [{"role": role, "content": turn} for role, turn in zip(("user", "assistant") * 2, turns, strict=False)]

    rows = [
        chat("a b c d", "e f"),
        chat("x b c d y", "z"),  # shares b c d with the first: left out
        chat("d x b", "c y"),  # shares only what the second held, which counts as not seen
        chat("c d", "e f"),  # c d e spans two messages of the first: no repeat
    ]
    assert [d.id for d in Deduplicated(Rows(rows), 3).read()] == [0, 2, 3]
    assert [d.id for d in Deduplicated(Rows(rows[1:2] + rows[:1]), 3).read()] == [0]
    from_the_middle = Deduplicated(Rows(rows), 3)
    assert [d.id for d in from_the_middle.read(1)] == [2, 3] and from_the_middle.repeats == {1}
    assert [d.id for d in from_the_middle.read()] == [0, 2, 3]
    corpus = Corpus(rows, model.tokenizer, TextConfig(dedup=3).sequential())
    assert {int(doc) for batch in corpus for doc in batch.doc.unique()} - {-1} == {0, 2, 3}
    assert corpus.repeats == 1 and "repeats" in corpus._repr_html_()
    assert corpus.fingerprint() != Corpus(rows, model.tokenizer, TextConfig(dedup=2).sequential()).fingerprint()


def test_a_deduplicated_corpus_resumes_exactly(model, chats):
    corpus = Corpus([*chats, *chats[::3]], model.tokenizer, TextConfig(dedup=6, batch_rows=3).sequential())
    whole = list(corpus.iterate(epochs=2))
    assert corpus.repeats >= 14
    for number in (0, 5, len(whole) - 2):
        fresh = Corpus([*chats, *chats[::3]], model.tokenizer, TextConfig(dedup=6, batch_rows=3).sequential())
        rest = list(fresh.iterate(json.loads(json.dumps(whole[number][1])), epochs=2))
        assert [state for _, state in rest] == [state for _, state in whole[number + 1 :]]
        assert all(torch.equal(a.tokens, b.tokens) for (a, _), (b, _) in zip(rest, whole[number + 1 :], strict=True))


def test_documents_can_be_left_out_by_id():
    source = Without(Rows(["a", "b", "c"]), {1, 9})
    assert [d.content for d in source.read()] == ["a", "c"] and [d.content for d in source.read(1)] == ["c"]
    assert source.fingerprint()["hash"] != Without(Rows(["a", "b", "c"]), {1}).fingerprint()["hash"]


# what is used


def ids(model: HookedModel, chat: Any) -> list[int]:
    rendered = model.tokenizer.apply_chat_template(chat, tokenize=False)
    return model.tokenizer(rendered, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("keep_special", [False, True])
@pytest.mark.parametrize("keep_first", [False, True])
@pytest.mark.parametrize("pack", [False, True])
def test_template_tokens_and_position_0_are_kept_or_dropped_each_alone(model, chats, keep_special, keep_first, pack):
    fields = {"keep_special": keep_special, "keep_first": keep_first, "context": 64, "batch_rows": 4}
    corpus = Corpus(chats, model.tokenizer, pack=pack, long="truncate", bos=False, separator=False, **fields)
    cells = usable = 0
    for batch in corpus:
        special = torch.isin(batch.tokens, torch.tensor(model.tokenizer.all_special_ids))
        first = torch.zeros_like(special)
        first[:, 0] = True
        expected = batch.attention & (keep_special | ~special) & (keep_first | ~first)
        assert torch.equal(batch.usable, expected)
        cells, usable = cells + batch.usable.numel(), usable + int(batch.usable.sum())
    lost = sum(count for reason, count in corpus.dropped.items() if reason != "truncated")
    assert cells == usable + lost and bool(corpus.dropped["first"]) == (not keep_first and (keep_special or pack))


def test_sequential_rows_are_conversations_and_blocks_are_the_same_tokens_end_to_end(model, chats):
    text = TextConfig(context=64, batch_rows=4, keep_first=True)
    one_by_one = Corpus(chats, model.tokenizer, text.sequential())
    for batch in one_by_one:
        for tokens, usable, doc in zip(batch.tokens, batch.usable, batch.doc, strict=True):
            assert tokens[usable].tolist() == ids(model, chats[int(doc[0])])[:64]
    blocks = Corpus(chats, model.tokenizer, text.blocks())
    joined = [token for batch in blocks for token in batch.tokens[batch.usable].tolist()]
    assert joined == [token for chat in chats for token in ids(model, chat)]
    inserted = Corpus(chats, model.tokenizer, TextConfig(context=64, keep_first=True, keep_special=True))
    used = sum(int(batch.usable.sum()) for batch in inserted)
    assert used == len(joined)  # separators and BOS come in, and are not used


# where vectors come from


def drained(model: HookedModel, corpus: Corpus, **options: Any) -> dict[tuple[int, int], torch.Tensor]:
    """Every row a stream serves, by its origin; each must be served once."""
    found: dict[tuple[int, int], torch.Tensor] = {}
    given = {"batch": 16, "buffer": 128, "max_norm_multiple": None, "epochs": 1, **options}
    for batch in ActivationStream(model, corpus, [SITE], **given):
        for origin, row in zip(batch.origin.tolist(), next(iter(batch.acts.values())), strict=True):
            assert tuple(origin) not in found
            found[origin[0], origin[1]] = row
    return found


def alone(model: HookedModel, chats: list[Any], context: int) -> dict[tuple[int, int], torch.Tensor]:
    """Every token's activation in a forward pass of its conversation and nothing else."""
    acts = {
        n: model.capture(torch.tensor([ids(model, chat)[:context]]), [SITE])[SITE][0] for n, chat in enumerate(chats)
    }
    return {(n, offset): row for n, rows in acts.items() for offset, row in enumerate(rows)}


def test_every_vector_is_that_of_its_conversation_alone(model, chats):
    text = TextConfig(context=64, keep_first=True)
    expected = alone(model, chats, 64)
    found = drained(model, Corpus(chats, model.tokenizer, text.sequential(), batch_rows=1))
    assert found.keys() == expected.keys()  # what went in comes out, each once
    assert all(torch.equal(found[origin], row) for origin, row in expected.items())
    padded = drained(model, Corpus(chats, model.tokenizer, text.sequential(), batch_rows=8))
    assert padded.keys() == expected.keys()
    scale = max(float(row.abs().max()) for row in expected.values())
    assert max(float((padded[o] - row).abs().max()) for o, row in expected.items()) < 1e-5 * scale


def test_nothing_leaks_between_conversations_but_in_blocks(model, chats):
    text = TextConfig(context=64, keep_first=True, batch_rows=8, sort_by_length=False)
    words = chats[0][0]["content"].split()
    changed = [[{"role": "user", "content": " ".join(reversed(words))}, *chats[0][1:]], *chats[1:]]
    for config, leaks in ((text.sequential(), False), (text.blocks(), True)):
        before, after = (drained(model, Corpus(rows, model.tokenizer, config)) for rows in (chats, changed))
        others = {origin[0] for origin in before if origin[0] and not torch.equal(before[origin], after[origin])}
        assert bool(others) == leaks
        assert any(not torch.equal(before[0, offset], after[0, offset]) for offset in range(1, len(words)))
