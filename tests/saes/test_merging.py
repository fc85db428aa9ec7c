"""Two halves of a corpus, read apart and merged, are the measure of the whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monosem.lab.errors import InputError
from monosem.lab.models.hooked_model import HookedModel
from monosem.lab.rng import generator
from monosem.lab.runs.consumers import Measuring
from monosem.lab.runs.first_rows import FirstRows
from monosem.lab.storage import flatten
from monosem.lab.streams.token_stream import TokenStream
from monosem.lab.text.corpus import Corpus
from monosem.saes.analysis.atoms.faithfulness import Faithfulness
from monosem.saes.analysis.atoms.inner_product import AtomicInnerProduct, SecondMoment
from monosem.saes.analysis.similarity.moments import GROUPS, CrossMoments
from monosem.saes.architectures.clt.cross_layer import CrossLayer, CrossLayerConfig
from monosem.saes.architectures.sae import SAEConfig
from monosem.saes.architectures.topk import TopK
from monosem.saes.autointerp.windows import WindowCollector
from monosem.saes.evaluation.clt.scores import CrossLayerReconstruction
from monosem.saes.evaluation.document_sums import UNITS, DocumentSums
from monosem.saes.evaluation.reconstruction import Reconstruction
from monosem.saes.evaluation.special_tokens import FirstConversations, SpecialTokens, TokenMeans, conversations
from monosem.saes.evaluation.splicing import splices
from monosem.saes.features.collect import FeatureCollector
from monosem.saes.features.examples import ExampleTable, FeatureExamples
from tiny_models import Letters, build

SITE, WIDTH = "resid_post.1", 32


@pytest.fixture(scope="module")
def model() -> HookedModel:
    return HookedModel(build("llama"), name="tiny-llama")


def corpus(documents: int = 60, **fields: Any) -> Corpus:
    """Documents are packed, so that one goes on where the halves are cut."""
    texts = ["".join(chr(33 + (i % 7 * i + j * (7 + i % 5)) % 90) for j in range(12 + i % 9)) for i in range(documents)]
    return Corpus(texts, Letters(), **{"context": 16, "batch_rows": 4, **fields})


def dictionary(seed: int = 0, site: str = SITE) -> TopK:
    made = TopK(SAEConfig(WIDTH, 64, 4))
    made.W_dec.copy_(F.normalize(torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(seed)), dim=1))
    made.W_enc.copy_(0.5 * made.W_dec)
    made.place = site
    return made


def measured(model: HookedModel, make: Callable[[], Measuring], at: int = 5) -> tuple[Any, Any, Any]:
    """Measures of the whole corpus, of its first batches, and of the rest."""
    whole, first, rest = make(), make(), make()
    for number, batch in enumerate(TokenStream.reading(model, corpus(), SITE)):
        whole.step(batch)
        (first if number < at else rest).step(batch)
    return whole, first, rest


def restored(measure: Any, make: Callable[[], Any]) -> Any:
    """The measure after a trip through its state, as a rank would send it."""
    other = make()
    other.load_state_dict(measure.state_dict())
    return other


def test_reconstruction(model: HookedModel) -> None:
    make = lambda: Reconstruction(dictionary())  # noqa: E731
    whole, first, rest = measured(model, make)
    kept = rest.metrics()
    first.merge(restored(rest, make))
    assert first.metrics() == pytest.approx(whole.metrics(), rel=1e-12)
    assert torch.equal(first.firing, whole.firing) and len(first.sums) == len(whole.sums)
    for name, evidence in whole.evidence().items():
        if evidence.interval:
            assert first.evidence()[name].interval == pytest.approx(evidence.interval, rel=1e-9)
    assert rest.metrics() == kept
    empty = make()
    empty.merge(whole)
    empty.merge(make())
    assert empty.metrics() == whole.metrics()
    with pytest.raises(InputError, match="merge measures of one dictionary"):
        first.merge(Reconstruction(dictionary(site="resid_post.0")))


@pytest.mark.parametrize("documents", [30, 2 * UNITS + 17])
def test_document_sums(documents: int) -> None:
    """Groups of documents too, where there are more than units; the halves share one document if they fit."""
    rows = torch.Generator().manual_seed(0)
    doc = torch.arange(documents).repeat_interleave(2)
    x = torch.randn(len(doc), generator=rows)
    whole, first, rest = DocumentSums(), DocumentSums(), DocumentSums()
    cut = 2 * (documents // 3) + (documents <= UNITS)
    for sums, part in ((whole, slice(None)), (first, slice(cut)), (rest, slice(cut, None))):
        sums.add(doc[part], {"x": x[part], "pair": torch.stack([x[part], -x[part]], 1)})
    first.merge(rest)
    assert len(first) == len(whole) == documents
    ours, theirs = first.state_dict(), whole.state_dict()
    assert torch.equal(ours["documents"], theirs["documents"])
    for name in ("x", "pair"):
        torch.testing.assert_close(ours["tables"][name], theirs["tables"][name], rtol=1e-12, atol=1e-12)


def same(one: ExampleTable, other: ExampleTable) -> bool:
    columns = zip((*one[:3], *one.windows), (*other[:3], *other.windows), strict=True)
    return all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in columns)


def test_features_merge_exactly(model: HookedModel) -> None:
    """Strongest and random examples, copies of contexts, counts and histograms: every byte."""
    make = lambda: FeatureCollector(  # noqa: E731
        model, corpus(), dictionary(), tokens=None, latents=40, top=3, per_octave=2, context=(2, 1)
    )
    whole, first, rest = measured(model, make)
    first.merge(restored(rest, make))
    merged, expected = first.features(), whole.features()
    assert same(merged.strongest, expected.strongest) and same(merged.random, expected.random)
    assert int(expected.strongest.copies.max()) > 1  # contexts repeat, across the cut too
    for name in ("count", "maximum", "bins", "l0"):
        assert np.array_equal(getattr(merged, name), getattr(expected, name))
    assert merged.source == expected.source and merged.texts == expected.texts
    other = FeatureExamples(dictionary(), np.arange(40), top=4)
    with pytest.raises(InputError, match="use the same"):
        first.merge(other)


def test_second_moments_and_first_rows(model: HookedModel) -> None:
    site = model.site(SITE)
    for make in (lambda: SecondMoment(site), lambda: FirstRows(site, 130)):
        whole, first, rest = measured(model, make)
        first.merge(restored(rest, make))
        ours, theirs = flatten(first.state_dict())[0], flatten(whole.state_dict())[0]
        for name, tensor in theirs.items():
            torch.testing.assert_close(ours[name], tensor, rtol=1e-12, atol=1e-9)
        assert first.metrics() == pytest.approx(whole.metrics(), rel=1e-12)


def test_cross_moments() -> None:
    rows = torch.Generator().manual_seed(0)
    x, y = torch.randn(300, 6, generator=rows), torch.randn(300, 5, generator=rows)
    doc = torch.arange(300) // 7
    shift = (x.double().mean(0), y.double().mean(0))
    whole, first, rest = (CrossMoments(shift) for _ in range(3))
    cut = 7 * (GROUPS + 3)
    for moments, part in ((whole, slice(None)), (first, slice(cut)), (rest, slice(cut, None))):
        moments.add(x[part], y[part], doc[part])
    first.merge(rest)
    for name, evidence in whole.evidence().items():
        merged = first.evidence()[name]
        assert merged.value == pytest.approx(evidence.value, rel=1e-10) and merged.n == evidence.n
        assert merged.interval == pytest.approx(evidence.interval, rel=1e-8)
    unlike = CrossMoments()
    unlike.add(x[:9], y[:9], doc[:9])
    with pytest.raises(InputError, match="about different means"):
        first.merge(unlike)


def test_splice_losses(model: HookedModel) -> None:
    limit = float(next(TokenStream.reading(model, corpus(), SITE)).acts[model.site(SITE)].norm(dim=1).median())
    make = lambda: splices(  # noqa: E731
        model, SITE, {"mine": dictionary()}, torch.zeros(WIDTH), tokens=10**6, norm_limit=limit
    )
    whole, first, rest = make(), make(), make()
    for number, batch in enumerate(TokenStream.reading(model, corpus())):
        whole.step(batch)
        (first if number < 5 else rest).step(batch)
    first.merge(restored(rest, make))
    assert first.losses.counts == whole.losses.counts and whole.losses.counts["unedited_norm"] > 0
    for name, evidence in whole.losses.evidence("mine").items():
        merged = first.losses.evidence("mine")[name]
        assert merged.value == pytest.approx(evidence.value, rel=1e-12)
        assert merged.interval == pytest.approx(evidence.interval, rel=1e-9)


def test_windows_with_their_codes_merge_exactly(model: HookedModel) -> None:
    make = lambda: WindowCollector({"mine": dictionary(), "other": dictionary(1)}, tokens=10**6, length=5)  # noqa: E731
    whole, first, rest = measured(model, make)
    first.merge(restored(rest, make))
    ours, theirs = first.windows(Letters()), whole.windows(Letters())
    assert np.array_equal(ours.tokens, theirs.tokens) and np.array_equal(ours.doc, theirs.doc) and len(ours) > 50
    for name, codes in theirs.codes.items():
        assert (ours.codes[name] != codes).nnz == 0 and codes.nnz
    with pytest.raises(InputError, match="do not continue windows"):
        first.merge(WindowCollector({"mine": dictionary()}, tokens=10, length=5))


def test_faithfulness(model: HookedModel) -> None:
    site = model.site(SITE)
    _, moment, _ = measured(model, lambda: SecondMoment(site))
    product = AtomicInnerProduct.of_moment(moment, 1e-3, True)
    make = lambda: Faithfulness({"mine": dictionary()}, site, product, subjects=("mine",))  # noqa: E731
    whole, first, rest = measured(model, make)
    first.merge(restored(rest, make))
    assert first.metrics() == pytest.approx(whole.metrics(), rel=1e-12)
    assert first.magnitudes == whole.magnitudes and torch.equal(first.firing["mine"], whole.firing["mine"])
    with pytest.raises(InputError, match="same dictionaries"):
        first.merge(Faithfulness({"other": dictionary()}, site, product, subjects=("other",)))


def test_cross_layer_reconstruction(model: HookedModel) -> None:
    transcoder = CrossLayer(CrossLayerConfig(2 * WIDTH, 40, d_out=2 * WIDTH, layers=2, k=4, base="topk"))
    for name, tensor in transcoder.tensors().items():
        tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator(0, name)))
    sites = [f"{kind}.{layer}" for kind in ("resid_mid", "mlp_out") for layer in (0, 1)]
    made = lambda: CrossLayerReconstruction(transcoder, sites[:2], target=sites[2:])  # noqa: E731
    whole, first, rest = made(), made(), made()
    for number, batch in enumerate(TokenStream.reading(model, corpus(), whole.sites)):
        whole.step(batch)
        (first if number < 5 else rest).step(batch)
    first.merge(restored(rest, made))
    assert first.metrics() == pytest.approx(whole.metrics(), rel=1e-12)
    assert {name for name in whole.evidence() if name.startswith("l0_")} >= {"l0_resid_mid.0", "l0_resid_mid.1"}


def test_first_conversations_merge_exactly(model: HookedModel) -> None:
    text = corpus(pack=False, long="truncate", keep_first=True, keep_special=True, sort_by_length=False)
    make = lambda: FirstConversations([model.site(SITE)], 10**6)  # noqa: E731
    whole, first, rest = make(), make(), make()
    for number, batch in enumerate(conversations(model, text, [model.site(SITE)])):
        whole.step(batch)
        (first if number < 5 else rest).step(batch)
    first.merge(restored(rest, make))
    assert first.progress == whole.progress and len(first.parts) == len(whole.parts) > 5
    for ours, theirs in zip(first.parts, whole.parts, strict=True):
        assert torch.equal(ours.tokens, theirs.tokens)
        assert all(torch.equal(ours.acts[site], x) for site, x in theirs.acts.items())


def test_special_tokens_and_their_means(model: HookedModel) -> None:
    site, special = model.site(SITE), [40, 41, 42]
    text = lambda: corpus(pack=False, long="truncate", keep_first=True, keep_special=True, sort_by_length=False)  # noqa: E731
    means = lambda: TokenMeans(site, special)  # noqa: E731
    first, rest, whole = means(), means(), means()
    for number, batch in enumerate(conversations(model, text(), [site])):
        whole.step(batch)
        (first if number < 5 else rest).step(batch)
    empty = means()
    for part in (first, restored(rest, means), means()):
        empty.merge(part)
    torch.testing.assert_close(empty.means, whole.means, rtol=1e-12, atol=1e-12)
    make = lambda: SpecialTokens({"dictionary": dictionary(), "means": whole}, special)  # noqa: E731
    all_of_it, half, other = make(), make(), make()
    for number, batch in enumerate(conversations(model, text(), [site])):
        all_of_it.step(batch)
        (half if number < 5 else other).step(batch)
    half.merge(restored(other, make))
    assert half.counts() == all_of_it.counts()
    for name, evidence in all_of_it.evidence("dictionary", {"null": "means"}).items():
        merged = half.evidence("dictionary", {"null": "means"})[name]
        assert merged.value == pytest.approx(evidence.value, rel=1e-10, nan_ok=True)
        assert merged.nulls == pytest.approx(evidence.nulls, rel=1e-10, nan_ok=True)
