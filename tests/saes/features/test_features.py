"""Features: planted activations, agreement with brute force, independence of batches, files."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import torch
import transformers as hf
from monosem.lab.errors import InputError
from monosem.lab.models.hooked_model import HookedModel
from monosem.lab.text.corpus import Corpus
from monosem.lab.text.packing import TokenBatch
from monosem.lab.text.token_text import token_texts
from monosem.saes import TopK
from monosem.saes.architectures.sae import SAEConfig
from monosem.saes.dictionary import Dictionary, DictionaryConfig
from monosem.saes.features import examples as feature_examples
from monosem.saes.features.blocks import OUTSIDE
from monosem.saes.features.collect import Features, collect
from monosem.saes.features.examples import FeatureExamples, bin_edges, bin_of
from monosem.saes.sparse_code import SparseCode

CONTEXT = (2, 1)


class Identity(Dictionary):
    """Latent i is dimension i; what is negative does not fire."""

    def __init__(self, n: int) -> None:
        super().__init__(DictionaryConfig(n, n))
        self.W_dec = torch.eye(n)

    def encode(self, x: torch.Tensor) -> SparseCode:
        return SparseCode.from_dense(self.rows(x))


def rows_of(n: int, length: int, seed: int, latents: int = 4) -> tuple[torch.Tensor, TokenBatch]:
    """Rows with ties (values from a short list), repeated contexts (3 words) and two documents in a row."""
    rng = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 3, (n, length), generator=rng)
    place = torch.arange(length)
    doc = 2 * torch.arange(n)[:, None] + (place >= length // 2)
    offset = (place % (length // 2)).expand(n, length).clone()
    usable = torch.rand(n, length, generator=rng) < 0.9
    usable[:, 0] = False
    acts = torch.randint(-2, 5, (n, length, latents), generator=rng).float().clamp_min(-1)
    acts *= torch.rand(n, length, latents, generator=rng) < 0.4
    acts[..., -1] = 0
    return acts, TokenBatch(tokens, torch.ones_like(usable), usable, doc, offset)


def run(acts: torch.Tensor, batch: TokenBatch, size: int, **options) -> FeatureExamples:
    examples = FeatureExamples(Identity(acts.shape[-1]), np.arange(acts.shape[-1]), context=CONTEXT, **options)
    for rows in torch.arange(len(acts)).split(size):
        examples.update(acts[rows], TokenBatch(*(column[rows] for column in batch)))
    return examples


def window_of(batch: TokenBatch, row: int, place: int) -> tuple[int, ...]:
    """Tokens around a place, by the definition."""
    near = range(place - CONTEXT[0], place + CONTEXT[1] + 1)
    inside = [0 <= p < batch.tokens.shape[1] and batch.doc[row, p] == batch.doc[row, place] for p in near]
    return tuple(int(batch.tokens[row, p]) if ok else OUTSIDE for p, ok in zip(near, inside, strict=True))


def strongest_by_force(acts: torch.Tensor, batch: TokenBatch, latent: int, top: int) -> list[tuple]:
    """(value, doc, offset, copies, window), from the definition and nothing else."""
    cells = [(r, p) for r in range(len(acts)) for p in range(acts.shape[1]) if batch.usable[r, p]]
    copies = Counter(window_of(batch, *cell) for cell in cells)
    best: dict[int, tuple] = {}
    for r, p in cells:
        value, doc = float(acts[r, p, latent]), int(batch.doc[r, p])
        if value > best.get(doc, (0,))[0]:
            best[doc] = (
                value,
                doc,
                int(batch.offset[r, p]),
                copies[window_of(batch, r, p)],
                window_of(batch, r, p),
            )
    kept, seen = [], set()
    for example in sorted(best.values(), key=lambda e: -e[0]):
        if example[-1] not in seen:
            seen.add(example[-1])
            kept.append(example)
    return kept[:top]


def listed(table, latent: int) -> list[tuple]:
    mine = table.latent == latent
    windows = table.windows.take(np.flatnonzero(mine))
    return [
        (float(v), int(d), int(o), int(c), tuple(t.tolist()))
        for v, d, o, c, t in zip(
            windows.value, windows.doc, windows.offset, table.copies[mine], windows.tokens, strict=True
        )
    ]


@pytest.mark.parametrize("seed", range(4))
def test_strongest_examples_agree_with_brute_force(seed):
    acts, batch = rows_of(12, 10, seed)
    strongest, _ = run(acts, batch, 5, top=6).tables()
    for latent in range(4):
        assert listed(strongest, latent) == strongest_by_force(acts, batch, latent, 6)


def test_planted_activations_are_found():
    acts = torch.zeros(2, 6, 3)
    tokens = torch.arange(12).reshape(2, 6)
    usable = torch.ones(2, 6, dtype=torch.bool)
    usable[:, 0] = False
    batch = TokenBatch(
        tokens, usable, usable, torch.tensor([[5], [6]]).expand(2, 6), torch.arange(6).expand(2, 6) + 100
    )
    acts[0, 0, 0] = 99  # unusable: not measured
    acts[0, 2, 0], acts[0, 3, 0], acts[1, 5, 0], acts[0, 4, 1] = 4, 9, 5, -3
    examples = run(acts, batch, 1, top=2)
    strongest, random = examples.tables()
    assert examples.count.tolist() == [3, 0, 0]
    assert examples.maximum.tolist() == [9, 0, 0]
    assert (examples.measured, examples.unusable) == (10, 2)
    assert examples.histogram.sum(1).tolist() == [3, 0, 0]
    assert np.flatnonzero(examples.histogram[0]).tolist() == sorted(bin_of(np.array([4, 5, 9], np.float32)))
    assert listed(strongest, 0) == [(9, 5, 103, 1, (1, 2, 3, 4)), (5, 6, 105, 1, (9, 10, 11, OUTSIDE))]
    assert strongest.windows.acts[0].tolist() == [0, 4, 9, 0]
    assert sorted(random.octave.tolist()) == [2, 2, 3]


def test_unmeasured_tokens_of_a_window_are_nan():
    acts, batch = rows_of(1, 4, 0)
    batch = batch._replace(usable=torch.tensor([[False, True, False, False]]), doc=torch.zeros(1, 4, dtype=torch.int64))
    acts[0, 1, 0] = 2
    strongest, _ = run(acts, batch, 1).tables()
    assert np.isnan(strongest.windows.acts[0]).tolist() == [True, True, False, True]
    assert strongest.windows.tokens[0, 0] == OUTSIDE


def test_bins_hold_what_their_edges_say():
    edges = np.array(bin_edges())
    assert (bin_of(edges[:-1].astype(np.float32)[::4]) == np.arange(len(edges) - 1)[::4]).all()
    values = np.float32([1e-9, 0.3, 1, 17, 1e9])
    bins = bin_of(values)
    assert (bins[0], bins[-1]) == (0, len(edges) - 2)
    assert ((edges[bins] <= values) & (values < edges[bins + 1]))[1:-1].all()


@pytest.mark.parametrize(("size", "block"), [(1, 1), (5, 37), (40, 1 << 15)])
def test_nothing_depends_on_batches_or_blocks(size, block, monkeypatch):
    acts, batch = rows_of(40, 10, 7)
    one = run(acts, batch, 8, top=5, per_octave=2)
    expected = one.tables()
    monkeypatch.setattr(feature_examples, "BLOCK_CELLS", block)
    other = run(acts, batch, size, top=5, per_octave=2)
    for mine, its in zip(expected, other.tables(), strict=True):
        for column, same in zip([*mine[:3], *mine.windows], [*its[:3], *its.windows], strict=True):
            np.testing.assert_array_equal(column, same)
    for name in ("count", "maximum", "histogram", "l0"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_random_examples_follow_the_seed_and_stay_in_their_octave():
    acts, batch = rows_of(60, 10, 3)
    draws = [run(acts, batch, 20, per_octave=2, seed=seed).tables()[1] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(draws[0].windows.doc, draws[1].windows.doc)
    assert draws[0].windows.doc.tolist() != draws[2].windows.doc.tolist()
    octaves = np.floor(np.log2(draws[0].windows.value))
    assert (octaves == draws[0].octave).all()
    assert max(Counter(zip(draws[0].latent, draws[0].octave, strict=True)).values()) == 2


def test_random_examples_are_drawn_evenly():
    """Every distinct context of an octave has the same chance, whatever the order of the corpus."""
    tokens = torch.arange(8).reshape(8, 1).expand(8, 2).clone()
    usable = torch.tensor([[False, True]]).expand(8, 2)
    batch = TokenBatch(tokens, usable, usable, tokens, torch.arange(2).expand(8, 2))
    drawn = Counter()
    for seed in range(400):
        drawn.update(run(torch.ones(8, 2, 1), batch, 8, per_octave=2, seed=seed).tables()[1].windows.doc.tolist())
    assert sum(drawn.values()) == 800
    assert all(abs(drawn[doc] - 100) < 45 for doc in range(8))  # five standard deviations


def test_rows_over_the_norm_limit_are_left_out():
    acts, batch = rows_of(6, 10, 1)
    acts[2, 3] = torch.tensor([1000.0, 0, 0, 0])
    batch.usable[2, 3] = True
    examples = FeatureExamples(Identity(4), np.arange(4), context=CONTEXT)
    examples.dictionary.place = examples.dictionary.place.limited([100])
    examples.update(acts, batch)
    examples.tables()
    assert examples.too_long == 1
    assert examples.measured == int(batch.usable.sum()) - 1
    assert examples.maximum.max() < 100


# from a model


WORDS = ("<s>", "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota")


class WordTokenizer:
    bos_token_id, all_special_ids = 0, (0,)

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return [WORDS.index(word) for word in text.split()]

    def decode(self, ids: list[int]) -> str:
        return "".join(" " + WORDS[i] for i in ids)


@pytest.fixture(scope="module")
def model() -> HookedModel:
    config = hf.LlamaConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = hf.LlamaForCausalLM(config)
        for parameter in module.parameters():
            parameter.data.mul_(3)
    return HookedModel(module, tokenizer=WordTokenizer(), name="tiny")


@pytest.fixture(scope="module")
def dictionary(model) -> TopK:
    """Twelve directions, the last one dead."""
    rng = torch.Generator().manual_seed(0)
    made = TopK(SAEConfig(16, 12, k=3))
    made.W_enc.copy_(torch.randn(12, 16, generator=rng))
    made.W_dec.copy_(torch.nn.functional.normalize(made.W_enc, dim=1))
    made.b_enc[-1] = -1e6
    made.place = "resid_post.0"
    return made


def corpus(**options) -> Corpus:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS[1:], size=rng.integers(3, 30))) for _ in range(60)]
    return Corpus(texts, WordTokenizer(), context=16, **options)


@pytest.fixture(scope="module")
def features(model, dictionary) -> Features:
    return collect(model, corpus(), dictionary, tokens=400, context=(3, 2), top=4, seed=1)


def test_counts_and_values_are_those_of_the_dictionary(model, dictionary, features):
    left, count, maximum = 400, torch.zeros(12), torch.zeros(12)
    values: dict[tuple[int, int], torch.Tensor] = {}
    for batch in corpus().batches():
        rows = model.capture(batch.tokens, ["resid_post.0"], attention_mask=batch.attention)["resid_post.0"]
        codes = dictionary.encode(rows).to_dense()[batch.usable.flatten()][:left]
        origin = torch.stack([batch.doc, batch.offset], -1)[batch.usable][:left]
        values |= {tuple(o): row for o, row in zip(origin.tolist(), codes, strict=True)}
        left -= len(codes)
        count, maximum = count + (codes > 0).sum(0), maximum.maximum(codes.amax(0) if len(codes) else maximum)
    assert features.measured == len(values) == 400
    assert features.count.tolist() == count.tolist()
    l0 = torch.bincount(torch.stack([(row > 0).sum() for row in values.values()]))
    assert features.l0.tolist() == l0.tolist()
    torch.testing.assert_close(torch.from_numpy(features.maximum), maximum)
    torch.testing.assert_close(torch.from_numpy(features.density), count / 400)
    for latent in range(11):
        for example in features.examples(latent):
            assert example.value == pytest.approx(float(values[example.doc, example.offset][latent]), rel=1e-5)
            assert example.acts[example.focus] == pytest.approx(example.value)
            tokens, focus = corpus().window(example.doc, example.offset, 3, 2)
            assert tokens[focus] == example.tokens[example.focus]
            assert " ".join(WORDS[t] for t in example.tokens) in corpus().text(example.doc)
            assert example.text == "".join(example.strings) == WordTokenizer().decode(example.tokens)
        first = features.examples(latent)[0]
        assert first.value == pytest.approx(float(features.maximum[latent]))


def test_a_dead_latent_says_so(features):
    assert features.dead.tolist() == [11]
    assert features.examples(11) == features.buckets(11) == []
    assert features.histogram(11) == ([], [])
    assert 11 not in features.sample(12)
    assert "1 dead" in repr(features)
    assert "<td>tiny</td>" in features._repr_html_()


def test_buckets_partition_the_firings(features):
    for latent in range(11):
        buckets = features.buckets(latent)
        assert sum(bucket.share for bucket in buckets) == pytest.approx(1)
        assert [b.low for b in buckets] == sorted((b.low for b in buckets), reverse=True)
        assert all(b.low <= e.value < b.high for b in buckets for e in b.examples)
        shown = {(e.doc, e.offset) for e in features.examples(latent)}
        assert not shown & {(e.doc, e.offset) for b in buckets for e in b.examples}
        edges, counts = features.histogram(latent)
        assert sum(counts) == features.count[latent]
        assert counts[0] and counts[-1] and edges[-2] <= features.maximum[latent] < edges[-1]


def test_logits_are_the_ends_of_the_direct_effect(model, dictionary, features):
    effects = model.logit_directions(dictionary.W_dec.detach())
    for latent in (0, 5, 11):
        order = effects[latent].argsort(descending=True)
        found = features.top_logits(latent)
        assert [word for word, _ in found.top] == [" " + WORDS[i] for i in order.tolist()]
        assert [word for word, _ in found.bottom] == [" " + WORDS[i] for i in order.flip(0).tolist()]
        assert found.top[0][1] == pytest.approx(float(effects[latent].max()), rel=1e-5)


@pytest.mark.parametrize(("site", "writes"), [("mlp_out.1", True), ("resid_mid.1", True), ("z.1", False)])
def test_only_sites_that_write_to_the_residual_have_logits(model, dictionary, site, writes):
    made = collect(model, corpus(), dictionary, site=site, tokens=50)
    assert (made.logits is not None) == (made.top_logits(0) is not None) == writes


def test_files_return_the_same_features(features, tmp_path):
    folder = features.save(tmp_path / "features")
    again = Features.load(folder)
    assert repr(again) == repr(features)
    for latent in range(12):
        assert again.examples(latent) == features.examples(latent)
        assert again.buckets(latent) == features.buckets(latent)
        assert again.top_logits(latent) == features.top_logits(latent)
        assert again.histogram(latent) == features.histogram(latent)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {path.name: path.read_bytes() for path in again.save(tmp_path / "again").iterdir()} == before


def test_files_that_are_missing_or_foreign_are_named(features, tmp_path):
    with pytest.raises(InputError, match="no such description of features"):
        Features.load(tmp_path)
    folder = features.save(tmp_path / "features")
    (folder / "texts.parquet").unlink()
    with pytest.raises(InputError, match=r"texts\.parquet is missing"):
        Features.load(folder)
    (folder / "texts.parquet").write_bytes(b"not parquet")
    with pytest.raises(InputError, match=r"texts\.parquet is damaged"):
        Features.load(folder)
    (folder / "features.json").write_text(json.dumps({"schema": 99}))
    with pytest.raises(InputError, match="schema 99, this version reads 1"):
        Features.load(folder)


def test_chosen_latents_get_examples_and_all_get_counts(model, dictionary, features):
    some = collect(model, corpus(), dictionary, tokens=400, latents=[7, 2], context=(3, 2), top=4, seed=1)
    assert some.latents.tolist() == [2, 7]
    assert some.examples(7) == features.examples(7)
    assert some.buckets(2) == features.buckets(2)
    assert some.top_logits(7) == features.top_logits(7)
    assert (some.count == features.count).all()
    with pytest.raises(InputError, match=r"latent 3 has no examples, 2 of 12"):
        some.examples(3)
    drawn = collect(model, corpus(), dictionary, tokens=50, latents=5)
    assert len(drawn.latents) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latents": [3, 12]}, "latent 12 is outside the dictionary: latents go from 0 to 11"),
        ({"latents": 13}, "latents=13 cannot be drawn"),
        ({"top": 0}, "top=0 keeps nothing"),
        ({"context": (-1, 2)}, r"context=\(-1, 2\)"),
        ({"tokens": 0}, "tokens=0 reads nothing"),
        ({"site": "mlp_act.0"}, "activations of width 24"),
    ],
)
def test_what_cannot_be_collected(model, dictionary, options, message):
    with pytest.raises(InputError, match=message):
        collect(model, corpus(), dictionary, **options)


def test_a_dictionary_without_a_site_asks_for_one(model):
    with pytest.raises(InputError, match="names no site"):
        collect(model, corpus(), Identity(16))


# text of tokens


class ByteLevel:
    """Two ids that are halves of a character, and one that is whole."""

    pieces = ("Ã", "©", "Ġcat", "<0xE2>")

    def decode(self, ids: list[int]) -> str:
        return [
            "\N{REPLACEMENT CHARACTER}",
            "\N{REPLACEMENT CHARACTER}",
            " cat",
            "\N{REPLACEMENT CHARACTER}",
        ][ids[0]]

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [self.pieces[i] for i in ids]


def test_parts_of_characters_show_their_bytes():
    assert token_texts(ByteLevel(), [0, 1, 2, 3]) == {0: "<0xC3>", 1: "<0xA9>", 2: " cat", 3: "<0xE2>"}
