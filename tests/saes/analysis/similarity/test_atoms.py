"""Atoms as places: the rotation and the shuffled streams of section 1.9 e, chance, warm-up, texts, characters."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from monosem.lab.errors import InputError
from monosem.lab.text.corpus import Corpus
from monosem.saes.analysis.similarity.atoms import AtomSet, atoms_of, chance, jaccard
from monosem.saes.analysis.similarity.copies import Copy, copied
from monosem.saes.analysis.similarity.growth import grow_atoms
from monosem.saes.analysis.similarity.representations import Representations
from monosem.saes.analysis.similarity.spans import Spans, shared_places
from monosem.saes.architectures.itda.dictionary import ITDA
from monosem.saes.training.itda.growth_config import GrowthConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

torch.set_num_threads(1)

SITE, D, N = "resid_post.0", 32, 4000
GROWTH = GrowthConfig(k=6, tau=0.1, max_atoms=2000)


def stream(seed: int = 0) -> Representations:
    """Rows of sparse mixtures of 48 directions, in documents of 50."""
    rng = torch.Generator().manual_seed(seed)
    directions = torch.randn(48, D, generator=rng)
    codes = (torch.rand(N, 48, generator=rng) < 0.12) * torch.rand(N, 48, generator=rng)
    x = codes @ directions + 0.02 * torch.randn(N, D, generator=rng)
    places = torch.stack([torch.arange(N) // 50, torch.arange(N) % 50], 1)
    return Representations("toy", {SITE: x}, places, "one text")


def atoms(places: list[tuple[int, int]], text: str = "one text", **fields: Any) -> AtomSet:
    identities = torch.tensor(places, dtype=torch.int64).reshape(-1, 2)
    given = {"rows": 100, "read_at": torch.arange(len(places)), "width": 4, **fields}
    return AtomSet(identities, text, name=given.pop("name", "toy"), **given)


def test_a_rotated_model_has_the_very_same_atoms() -> None:
    found = stream()
    mine = grow_atoms(found, GROWTH)[SITE]
    theirs = grow_atoms(copied(found, Copy("rotated")), GROWTH)[SITE]
    assert torch.equal(mine.identities, theirs.identities)
    scores = jaccard(mine, theirs)
    assert scores["jaccard"].value == 1 and scores["jaccard_raw"].value == 1
    assert scores["jaccard"].interval == (1.0, 1.0) and "past row 256" in scores["jaccard"].note


def test_shuffled_streams_are_near_chance_past_the_warm_up_and_raw_far_above() -> None:
    found = stream()
    grown = [grow_atoms(found, GROWTH, shuffle=seed)[SITE] for seed in range(4)]
    past, raw = [], []
    for i, first in enumerate(grown):
        for second in grown[:i]:
            scores = jaccard(first, second)
            past.append(scores["jaccard"])
            raw.append(scores["jaccard_raw"])
    mean = lambda values: sum(values) / len(values)  # noqa: E731
    by_formula = mean([one.nulls["chance"] for one in past])
    assert by_formula / 3 < mean([one.value for one in past]) < 3 * by_formula
    assert mean([one.value for one in raw]) > 4 * mean([one.nulls["chance"] for one in raw])


def test_noise_lowers_the_index_and_the_null_stands_beside_it() -> None:
    found = stream()
    mine, null = grow_atoms(found, GROWTH)[SITE], grow_atoms(found, GROWTH, shuffle=1)[SITE]
    last = 1.0
    for share in (0.05, 0.3, 3.0):
        noisy = grow_atoms(copied(found, Copy("noise", share)), GROWTH)[SITE]
        score = jaccard(mine, noisy, shuffled=null)["jaccard"]
        assert score.value < last and {"chance", "shuffled"} == score.nulls.keys()
        last = score.value
    assert last < 0.3


@pytest.mark.parametrize(("size", "expected"), [(4096, 0.0016), (20_000, 0.0079), (100_000, 0.041)])
def test_chance_has_the_stated_values(size: int, expected: float) -> None:
    assert chance(size, size, 1_280_000) == pytest.approx(expected, rel=0.02)


def test_chance_is_what_drawn_subsets_have() -> None:
    rng = random.Random(0)
    draws = [[set(rng.sample(range(3000), size)) for size in (300, 150)] for _ in range(100)]
    found = sum(len(a & b) / len(a | b) for a, b in draws) / len(draws)
    assert found == pytest.approx(chance(300, 150, 3000), rel=0.1)


def test_the_index_counts_places_and_leaves_the_warm_up_out() -> None:
    a = atoms([(0, 0), (0, 1), (1, 0), (1, 1)], read_at=torch.tensor([0, 1, 50, 51]))
    b = atoms([(0, 0), (0, 1), (1, 0), (2, 0)], read_at=torch.tensor([0, 1, 50, 60]))
    found = jaccard(a, b, warm_up=32)
    assert found["jaccard_raw"].value == 3 / 5 and found["jaccard"].value == 1 / 3
    assert found["jaccard"].nulls["chance"] == chance(2, 2, 68)
    assert found["jaccard"].n == 2 and found["jaccard_raw"].n == 3
    assert "different orders" in jaccard(a, atoms([(0, 0)], order="x"), warm_up=0)["jaccard"].note


def test_what_cannot_be_compared_is_refused() -> None:
    a = atoms([(0, 0)])
    with pytest.raises(InputError, match="tokenizer one text and another text"):
        jaccard(a, atoms([(0, 0)], "another text"))
    with pytest.raises(InputError, match="has no atoms"):
        jaccard(a, atoms([]))
    with pytest.raises(InputError, match="a warm-up of 400 rows leaves none of the 100"):
        jaccard(a, atoms([(0, 0)], width=50))
    with pytest.raises(InputError, match="have no atoms past row 50"):
        jaccard(a, a, warm_up=50)
    with pytest.raises(InputError, match="warm-up of -1"):
        jaccard(a, a, warm_up=-1)
    with pytest.raises(InputError, match="101 and 5 atoms cannot be places among 100"):
        chance(101, 5, 100)
    with pytest.raises(InputError, match="identities of shape"):
        AtomSet(torch.zeros(3, 2).long(), "t", 9, torch.zeros(2), 4)


def words(*vocabulary: str, pieces: bool = False) -> PreTrainedTokenizerFast:
    """A word tokenizer, or one that splits words into known pieces."""
    ids = {token: number for number, token in enumerate(("[UNK]", *vocabulary))}
    made = Tokenizer(models.WordPiece(ids, unk_token="[UNK]") if pieces else models.WordLevel(ids, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]")


TEXTS = ["unlike things", "things alike unlike"]


def test_tokenizers_meet_where_tokens_end() -> None:
    whole, split = words("unlike", "things", "alike"), words("un", "##like", "thing", "##s", "alike", pieces=True)
    spans = [Spans(Corpus(TEXTS, tokenizer), tokenizer) for tokenizer in (whole, split)]
    assert spans[0].ends(0).tolist() == [6, 13] and spans[1].ends(0).tolist() == [2, 6, 12, 13]
    places = [one.places(torch.tensor([[d, i] for d in range(2) for i in range(len(one.ends(d)))])) for one in spans]
    ours, theirs = shared_places(*places)
    assert ours.tolist() == [0, 1, 2, 3, 4] and theirs.tolist() == [1, 3, 5, 6, 8]
    assert torch.equal(places[0][ours], places[1][theirs])


def itda(corpus: Corpus, identities: list[list[int]]) -> ITDA:
    made = ITDA.of(torch.eye(4)[: len(identities)], torch.tensor(identities), torch.arange(len(identities)), k=1)
    made.provenance.training = {"rows": 40, "text": corpus.fingerprint(), "order_hash": "0"}
    return made


def test_itdas_of_different_tokenizers_compare_by_character() -> None:
    tokenizers = words("unlike", "things", "alike"), words("un", "##like", "thing", "##s", "alike", pieces=True)
    corpora = [Corpus(TEXTS, tokenizer) for tokenizer in tokenizers]
    first, second = itda(corpora[0], [[0, 0], [1, 1], [1, 2]]), itda(corpora[1], [[0, 1], [0, 2], [1, 2]])
    with pytest.raises(InputError, match="made from different text"):
        jaccard(atoms_of(first), atoms_of(second), warm_up=0)
    spans = [Spans(*pair) for pair in zip(corpora, tokenizers, strict=True)]
    sets = [atoms_of(one, span) for one, span in zip((first, second), spans, strict=True)]
    assert jaccard(*sets, warm_up=0)["jaccard_raw"].value == 2 / 4
    other = Corpus(["another text"], tokenizers[0])
    with pytest.raises(InputError, match=corpora[0].content_hash):
        atoms_of(first, Spans(other, tokenizers[0]))
    with pytest.raises(InputError, match="does not know its text"):
        atoms_of(ITDA.of(torch.eye(4)))


def test_a_tokenizer_without_offsets_is_refused() -> None:
    with pytest.raises(InputError, match="tells no character offsets"):
        Spans(Corpus(TEXTS, words("a")), object())
