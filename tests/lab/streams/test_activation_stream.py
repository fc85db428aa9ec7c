from __future__ import annotations

import copy
import gc
import threading
from typing import Any

import pytest
import torch
from monosem.lab.errors import InputError
from monosem.lab.models.hooked_model import HookedModel
from monosem.lab.models.sites import Site
from monosem.lab.streams.activation_stream import ActivationStream, Batch, StreamConfig
from monosem.lab.streams.harvest import CALIBRATION_ROWS
from monosem.lab.text.corpus import Corpus
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from toys import WIDTHS, A, B, TinyCorpus, TinyModel, tiny_stream
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


def same(left: list[Batch], right: list[Batch]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a.origin, b.origin) and all(torch.equal(a.acts[site], b.acts[site]) for site in a.acts)
        for a, b in zip(left, right, strict=True)
    )


def harvest_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "monosem-harvest"]


def test_serves_every_usable_row_once_and_the_rows_are_the_models() -> None:
    model, corpus = TinyModel(), TinyCorpus(batches=6)
    stream = tiny_stream(model=model, corpus=corpus, max_norm_multiple=None)
    truth: dict[tuple[int, int], dict[Site, torch.Tensor]] = {}
    for batch, _ in corpus.iterate():
        captured = model.capture(batch.tokens, (A, B))
        for row, column in batch.usable.nonzero().tolist():
            key = (int(batch.doc[row, column]), column)
            truth[key] = {site: captured[site][row, column].flatten() for site in (A, B)}
    served = 0
    for batch in stream:
        for i, key in enumerate(map(tuple, batch.origin.tolist())):
            for site in (A, B):
                assert torch.equal(batch.acts[site][i], truth[key][site])
            served += 1
    assert served == len(truth) == corpus.usable == stream.counts["served"]
    assert {site: batch.acts[site].shape[1] for site in (A, B)} == stream.widths == WIDTHS


def test_counts_add_up_and_say_why_rows_were_dropped() -> None:
    stream = tiny_stream()
    served = sum(len(batch.origin) for batch in stream)
    counts, corpus = stream.counts, TinyCorpus()
    assert counts["tokens"] == 20 * 8 * 17
    assert counts["dropped_special"] == counts["tokens"] - corpus.usable
    sinks = sum(int((batch.usable & (batch.tokens == 7)).sum()) for batch, _ in corpus.iterate())
    assert counts["dropped_norm"] == {str(A): sinks, str(B): sinks} and sinks > 10
    assert counts["kept"] == served == corpus.usable - sinks


def test_norm_limit_is_a_multiple_of_the_median_of_the_first_rows() -> None:
    corpus = TinyCorpus(batches=60)
    stream = tiny_stream(corpus=corpus, max_norm_multiple=4.0)
    norms, model = [], TinyModel(sink=7)
    for batch, _ in corpus.iterate():
        norms.append(model.capture(batch.tokens, [A])[A][batch.usable].norm(dim=-1))
        if sum(map(len, norms)) >= CALIBRATION_ROWS:
            break
    assert len(norms) < 60
    assert stream.norm_limit[A] == pytest.approx(4 * float(torch.cat(norms).median()))
    before = stream.norm_limit
    largest = max(float(batch.acts[A].norm(dim=-1).max()) for batch in stream)
    assert largest <= before[A] * (1 + 1e-6) and stream.norm_limit == before


def test_evaluation_can_use_the_training_limit() -> None:
    strict = {A: 5.0, B: 1e9}
    stream = tiny_stream(norm_limit=strict)
    assert max(float(batch.acts[A].norm(dim=-1).max()) for batch in stream) <= 5.0
    assert stream.norm_limit == strict and stream.counts["dropped_norm"][str(A)] > 0


@pytest.mark.parametrize("reuse", [1, 2])
def test_prefetching_changes_no_byte(reuse: int) -> None:
    assert same(list(tiny_stream(prefetch=0, reuse=reuse)), list(tiny_stream(prefetch=4, reuse=reuse)))
    assert not harvest_threads()


def test_seed_decides_the_order() -> None:
    assert same(list(tiny_stream(seed=1)), list(tiny_stream(seed=1)))
    assert not same(list(tiny_stream(seed=1)), list(tiny_stream(seed=2)))


@pytest.mark.parametrize("prefetch", [0, 3])
@pytest.mark.parametrize("after", [0, 1, 9, 30, 65, 72])
def test_state_continues_exactly(after: int, prefetch: int) -> None:
    whole = list(reference := tiny_stream())
    stream = tiny_stream(prefetch=prefetch)
    start = [next(stream) for _ in range(after)]
    state = copy.deepcopy(stream.state_dict())
    next(stream, None)  # what happens after the state was taken has no say
    stream.close()
    restored = tiny_stream(prefetch=3 - prefetch)
    restored.load_state_dict(state)
    assert same(start + list(restored), whole)
    assert restored.counts == reference.counts and restored.norm_limit == reference.norm_limit


def test_a_state_of_another_stream_is_refused() -> None:
    with pytest.raises(InputError, match="options it was saved with"):
        tiny_stream(sites=[A]).load_state_dict(tiny_stream().state_dict())


@pytest.mark.parametrize("prefetch", [0, 3])
def test_non_finite_activations_name_the_place_and_lose_nothing(prefetch: int) -> None:
    whole = list(tiny_stream(model=TinyModel()))
    model = TinyModel(broken=(9, 4))  # the ninth forward pass, row 2, column 4
    stream = tiny_stream(model=model, prefetch=prefetch, norm_limit=tiny_stream(model=TinyModel()).norm_limit)
    got: list[Batch] = []
    with pytest.raises(InputError, match=r"nan or inf at resid_post.0 for document 66, offset 4: leave"):
        got.extend(stream)
    assert not harvest_threads() and 0 < len(got) < len(whole)
    got.extend(stream)  # the model has recovered: nothing was lost on the way
    assert same(got, whole)


def test_padding_may_hold_anything() -> None:
    model, corpus = TinyModel(broken=(2, 15)), TinyCorpus(batches=4, rows=3)
    assert sum(len(batch.origin) for batch in tiny_stream(model=model, corpus=corpus)) > 0
    with pytest.raises(InputError, match="document 5, offset 13"):  # document 5 has padding from 14 on
        list(tiny_stream(model=TinyModel(broken=(2, 13)), corpus=corpus))


def test_thread_ends_when_the_stream_is_dropped_or_closed() -> None:
    stream = tiny_stream(prefetch=2)
    next(stream)
    assert len(harvest_threads()) == 1
    del stream
    gc.collect()
    assert not harvest_threads()
    stream = tiny_stream(prefetch=2)
    first = next(stream)
    stream.close()
    assert not harvest_threads()
    assert same([first, *stream], list(tiny_stream()))


def test_errors_in_the_thread_arrive_here() -> None:
    class Broken(TinyCorpus):
        def iterate(self, state: Any = None) -> Any:
            yield from list(super().iterate(state))[:2]
            raise OSError("the disk went away")

    with pytest.raises(OSError, match="went away"):
        list(tiny_stream(corpus=Broken(), prefetch=2))
    assert not harvest_threads()


def test_cancel_raises_between_reads_and_continues_exactly() -> None:
    stream = tiny_stream()
    got = [next(stream) for _ in range(5)]
    stream.cancel()
    with pytest.raises(KeyboardInterrupt):
        got.extend(stream)
    assert len(got) < 12
    assert same(got + list(stream), list(tiny_stream()))


def test_mixing_is_measured() -> None:
    stream = tiny_stream()
    next(stream)
    metrics = stream.metrics()
    assert metrics["same_document_expected"] < 0.04  # about 25 documents of 16 rows each in the buffer
    assert metrics["same_document"] < 0.12  # a batch read in order would have 0.48
    assert set(metrics) > {"dropped_special", f"dropped_norm.{A}"}


def test_a_mask_is_given_only_where_there_is_padding() -> None:
    model = TinyModel()
    list(tiny_stream(model=model, corpus=TinyCorpus(batches=3)))
    assert model.calls == [True] * 3
    model, corpus = TinyModel(), TinyCorpus(batches=3, rows=1)  # documents 0, 1, 2
    list(tiny_stream(model=model, corpus=corpus))
    assert model.calls == [False, True, False]


def test_bad_options_are_one_sentence() -> None:
    for options, message in [
        ({"sites": []}, "at least one site"),
        ({"sites": "resid_pots.1"}, "resid_post"),
        ({"bufer": 100}, "unknown stream option 'bufer': did you mean 'buffer'"),
        ({"dtype": "float8"}, "unknown dtype 'float8'"),
        ({"max_norm_multiple": 0.5}, "max_norm_multiple=0.5"),
        ({"norm_limit": {"mlp_out.1": 3.0}}, r"no limit for resid_post.0"),
        ({"prefetch": -1}, "prefetch=-1"),
        ({"buffer": 40}, "at least two batches"),
    ]:
        with pytest.raises(InputError, match=message):
            ActivationStream(TinyModel(), TinyCorpus(), **{"sites": [A], **options})  # ty: ignore
    with pytest.raises(InputError, match=r"not TinyCorpus: give ActivationStream\(model, corpus, sites\)"):
        ActivationStream(TinyCorpus(), TinyModel(), [A])
    with pytest.raises(InputError, match="not one usable row"):
        next(tiny_stream(corpus=TinyCorpus(length=1)))


def test_dtype_is_kept_and_recorded() -> None:
    stream = tiny_stream(dtype="bfloat16")
    assert next(stream).acts[A].dtype == stream.dtype == torch.bfloat16
    assert stream.fingerprint()["stream"]["dtype"] == "bfloat16"
    assert "prefetch" not in stream.fingerprint()["stream"]
    assert StreamConfig(dtype="float16").dtype == "float16"
    with pytest.raises(InputError, match="overflows in half precision"):
        next(tiny_stream(model=TinyModel(scale=1e5), dtype="float16"))


def small_llama() -> HookedModel:
    config = LlamaConfig(
        vocab_size=100,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return HookedModel(LlamaForCausalLM(config))


def words() -> PreTrainedTokenizerFast:
    """A tokenizer of the words w0 to w96."""
    vocabulary = {"<s>": 0, "</s>": 1, "?": 2, **{f"w{i}": 3 + i for i in range(97)}}
    plain = Tokenizer(WordLevel(vocabulary, unk_token="?"))
    plain.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=plain, bos_token="<s>", eos_token="</s>", unk_token="?")


def test_on_a_real_model() -> None:
    """A transformer through its hooks, at two sites; z comes with heads flattened."""
    model = small_llama()
    corpus, sites = TinyCorpus(batches=6), ["z.0", "resid_post.1"]
    stream = ActivationStream(model, corpus, sites, batch=32, buffer=128)
    before = model.forwards
    batches = list(stream)
    assert model.forwards - before == 6  # one pass feeds both sites
    served = {tuple(key): i for i, key in enumerate(torch.cat([b.origin for b in batches]).tolist())}
    assert len(served) == stream.counts["kept"]
    site = model.site("z.0")
    rows = torch.cat([batch.acts[site] for batch in batches])
    tokens, _ = next(corpus.iterate())
    expected = model.capture(tokens.tokens, [site], attention_mask=tokens.attention)[site].flatten(2)
    assert torch.equal(rows[served[0, 5]], expected[0, 5]) and rows.shape[1] == 16
    assert same(batches, list(ActivationStream(model, corpus, sites, batch=32, buffer=128, prefetch=2)))


@pytest.mark.parametrize("pack", [True, False])
def test_on_a_real_model_and_a_real_corpus(pack: bool) -> None:
    """One pass over a corpus gives every token of every document but the first of a row, exactly once."""
    model = small_llama()
    texts = [" ".join(f"w{(i * j) % 97}" for j in range(5 + (i * 7) % 40)) for i in range(50)]
    corpus = Corpus(texts, words(), context=24, batch_rows=4, pack=pack)
    settings = {"batch": 32, "buffer": 128, "epochs": 1, "max_norm_multiple": None}
    batches = list(stream := ActivationStream(model, corpus, "resid_post.1", **settings))
    origins = [tuple(pair) for batch in batches for pair in batch.origin.tolist()]
    assert sorted(origins) == [(i, j) for i, text in enumerate(texts) for j in range(len(text.split()))]
    assert stream.counts["tokens"] == len(origins) + stream.counts["dropped_special"]
    first, rest = (ActivationStream(model, corpus, "resid_post.1", **settings) for _ in range(2))
    start = [next(first) for _ in range(10)]
    rest.load_state_dict(first.state_dict())
    assert same(start + list(rest), batches)


def test_a_module_of_ones_own() -> None:
    """Widths of `path:` sites are not known before a first pass; the stream finds them out."""
    torch.manual_seed(0)
    model = HookedModel(torch.nn.Sequential(torch.nn.Embedding(100, 8), torch.nn.Linear(8, 6)))
    stream = ActivationStream(model, TinyCorpus(batches=1, rows=1), "path:1", batch=8, buffer=16)
    assert list(stream.widths.values()) == [6] and next(stream).acts[stream.sites[0]].shape == (8, 6)
