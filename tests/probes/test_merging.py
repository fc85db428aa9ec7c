"""What probes gather of two halves of a stream merges into what they gather of the whole."""

from __future__ import annotations

import pytest
import torch
from monosem.lab.errors import InputError
from monosem.lab.models.hooked_model import HookedModel
from monosem.lab.streams.token_stream import TokenStream
from monosem.lab.text.corpus import Corpus
from monosem.probes.fitting.moments import Moments
from monosem.probes.fitting.streaming import StreamedProbes
from monosem.probes.labels import Bags, Labels
from monosem.probes.pooling import PooledTexts
from tiny_models import Letters, build

SITE = "resid_post.1"
TEXTS = ["".join(chr(33 + (i * i + j * (7 + i % 5)) % 90) for j in range(12 + i % 9)) for i in range(40)]
LABELS = Labels.of([i % 2 for i in range(40)])


@pytest.fixture(scope="module")
def model() -> HookedModel:
    return HookedModel(build("llama"), name="tiny-llama")


def halves(model: HookedModel, make):
    """Packed rows: a text goes on where the halves are cut."""
    whole, first, rest, sent = make(), make(), make(), make()
    corpus = Corpus(TEXTS, Letters(), context=16, batch_rows=4)
    for number, batch in enumerate(TokenStream.reading(model, corpus, SITE)):
        whole.step(batch)
        (first if number < 5 else rest).step(batch)
    sent.load_state_dict(rest.state_dict())
    first.merge(sent)
    return whole, first


@pytest.mark.parametrize("pooling", ["last", "mean", "max", "bag"])
def test_pooled_texts(model: HookedModel, pooling: str) -> None:
    whole, merged = halves(model, lambda: PooledTexts(LABELS, [SITE], model, pooling=pooling))
    ours, theirs = merged.gathered()[SITE], whole.gathered()[SITE]
    assert torch.equal(merged.counts, whole.counts)
    if pooling == "mean":
        torch.testing.assert_close(ours.x, theirs.x, rtol=1e-6, atol=1e-7)
    else:
        assert torch.equal(ours.x, theirs.x)
    if isinstance(ours, Bags) and isinstance(theirs, Bags):
        assert torch.equal(ours.bag, theirs.bag)
    with pytest.raises(InputError, match="merge equal measures"):
        merged.merge(PooledTexts(LABELS, ["resid_post.0"], model, pooling=pooling))


def test_moments_of_numbers() -> None:
    rows = torch.Generator().manual_seed(0)
    x, y = torch.randn(90, 6, generator=rows), torch.randn(90, 2, generator=rows)
    whole, first, rest, sent = (Moments(6, 0, 2) for _ in range(4))
    for moments, part in ((whole, slice(None)), (first, slice(50)), (rest, slice(50, None))):
        moments.add(x[part], y[part])
    sent.load_state_dict(rest.state_dict())
    first.merge(sent)
    scaling = whole.scaling("coordinate")
    assert first.rows == whole.rows == 90
    for ours, theirs in zip(first.cross(scaling), whole.cross(scaling), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_probes_in_closed_form(model: HookedModel) -> None:
    site = model.site(SITE)
    make = lambda: StreamedProbes(LABELS, ["mean_difference", "ridge", "lda"], site)  # noqa: E731
    whole, merged = halves(model, make)
    for kind, probe in whole.probes().items():
        torch.testing.assert_close(merged.probes()[kind].weight, probe.weight, rtol=1e-5, atol=1e-6)
    assert torch.equal(merged.seen, whole.seen)
    with pytest.raises(InputError, match="logistic probes take one step after the other and cannot be merged"):
        merged.merge(StreamedProbes(LABELS, ["logistic"], site))
