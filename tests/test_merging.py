"""Two parts of a corpus, measured apart and merged, are the measure of the whole: for every measure that there is."""

from __future__ import annotations

import copy
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monosem.lab.errors import InputError
from monosem.lab.evidence import Evidence
from monosem.lab.models.hooked_model import HookedModel
from monosem.lab.models.sites import Site
from monosem.lab.runs.consumers import Consumer, Measuring
from monosem.lab.runs.first_rows import DocumentIds, FirstRows, FullTokenRows
from monosem.lab.storage import flatten
from monosem.lab.streams.activation_stream import Batch
from monosem.lab.streams.token_stream import TokenStream
from monosem.lab.text.corpus import Corpus
from monosem.lab.text.tokenization import TextTokenizer
from monosem.probes.fitting.moments import Moments
from monosem.probes.fitting.streaming import StreamedProbes
from monosem.probes.labels import POOLINGS, Labels
from monosem.probes.outliers.texts import DistinctBeginnings
from monosem.probes.pooling import PooledTexts
from monosem.saes.analysis.atoms.coordinates import WhitenedTrainer
from monosem.saes.analysis.atoms.faithfulness import Faithfulness
from monosem.saes.analysis.atoms.inner_product import AtomicInnerProduct, SecondMoment
from monosem.saes.analysis.similarity.moments import CrossMoments
from monosem.saes.architectures.clt.cross_layer import CrossLayer, CrossLayerConfig
from monosem.saes.architectures.sae import SAEConfig
from monosem.saes.architectures.topk import TopK
from monosem.saes.autointerp.windows import WindowCollector
from monosem.saes.evaluation.clt.scores import CrossLayerReconstruction
from monosem.saes.evaluation.document_sums import DocumentSums
from monosem.saes.evaluation.nulls import untrained
from monosem.saes.evaluation.reading import EvaluationRows
from monosem.saes.evaluation.reconstruction import Reconstruction
from monosem.saes.evaluation.special_tokens import FirstConversations, SpecialTokens, TokenMeans
from monosem.saes.evaluation.splicing import Splices, splices
from monosem.saes.features.collect import FeatureCollector
from monosem.saes.features.examples import FeatureExamples
from monosem.saes.training.clt.trainer import CrossLayerTrainer
from monosem.saes.training.end_to_end import EndToEnd
from monosem.saes.training.itda.trainer import ITDATrainer
from monosem.saes.training.trainer import Trainer
from tiny_models import Letters, build

LEARNERS = (Trainer, CrossLayerTrainer, ITDATrainer, EndToEnd, WhitenedTrainer)
"""Consumers that depend on the order of rows, and so have no `merge`."""
SITE, WIDTH, CUT = Site.parse("resid_post.1"), 32, 5
READ, WRITTEN = ([Site(kind, layer) for layer in (0, 1)] for kind in ("resid_mid", "mlp_out"))
SPECIAL = [40, 41, 42]


@cache
def model() -> HookedModel:
    return HookedModel(build("llama"), name="tiny-llama")


def corpus(**fields: Any) -> Corpus:
    """By default documents are packed, so that one goes on where the parts are cut."""
    texts = ["".join(chr(33 + (i % 7 * i + j * (7 + i % 5)) % 90) for j in range(12 + i % 9)) for i in range(60)]
    return Corpus(texts, Letters(), **{"context": 16, "batch_rows": 4, **fields})


@cache
def packed() -> list[Batch]:
    return list(TokenStream.reading(model(), corpus(), [SITE, *READ, *WRITTEN]))


@cache
def conversations() -> list[Batch]:
    text = corpus(pack=False, long="truncate", keep_first=True, keep_special=True, sort_by_length=False)
    return list(TokenStream.reading(model(), text, SITE))


def dictionary(seed: int = 0) -> TopK:
    made = TopK(SAEConfig(WIDTH, 64, 4))
    made.W_dec.copy_(F.normalize(torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(seed)), dim=1))
    made.W_enc.copy_(0.5 * made.W_dec)
    made.place = SITE
    return made


@cache
def cross_layer() -> CrossLayer:
    found = CrossLayer(CrossLayerConfig.over(2, WIDTH, 24, d_out=WIDTH, k=3))
    rng = torch.Generator().manual_seed(0)
    for parameter in found.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=rng) / 6)
    return found


@cache
def norm_limit() -> float:
    return float(packed()[0].acts[SITE].norm(dim=1).median())


def evidence(of: Callable[[Any], dict[str, Evidence]]) -> Callable[[Any], Any]:
    return lambda measure: {
        name: [one.value, one.interval, dict(one.nulls), one.n] for name, one in of(measure).items()
    }


@dataclass
class Case:
    """A measure, what it measures, and the numbers that come of it."""

    measures: type
    make: Callable[[], Any]
    numbers: Callable[[Any], Any]
    parts: Callable[[], Sequence[Any]] = packed
    add: Callable[[Any, Any], None] = lambda measure, batch: None if measure.done else measure.step(batch)
    later: Callable[[Any], Any] | None = None
    """Makes the measure of the later part, given that of the first; by default as the first is made."""
    name: str = ""
    tolerance: float = field(default=0.0)
    """Relative; 0 where the merge is exact."""


def rows_case(name: str, **options: Any) -> Case:
    return Case(FirstRows, lambda: FirstRows(SITE, **options), lambda m: [m.acts, m.origin, m.rows, m.done], name=name)


def examples_of(table: Any) -> list[Any]:
    return [*table[:3], *table.windows]


def evaluation_rows(nulls: EvaluationRows | None = None) -> EvaluationRows:
    """Fits an untrained dictionary on the first rows; for later rows the fitted one is taken over."""

    def begin(x: torch.Tensor | None, y: torch.Tensor | None) -> dict[str, Reconstruction]:
        if nulls is not None:
            fitted = nulls.measures["null"].dictionary
        else:
            assert x is not None
            fitted = untrained(dictionary(), x, 4, torch.Generator().manual_seed(0))
            fitted.place = SITE
        return {"dictionary": Reconstruction(dictionary()), "null": Reconstruction(fitted)}

    made = EvaluationRows(
        [SITE], [], {SITE: norm_limit()}, 0 if nulls else 40, begin, dtype=torch.float32, device="cpu"
    )
    made.fitted = nulls.fitted if nulls else made.fitted
    return made


def faithfulness() -> Faithfulness:
    moment = SecondMoment(SITE)
    for batch in packed():
        moment.step(batch)
    both = {"one": dictionary(), "null": dictionary(1)}
    return Faithfulness(both, SITE, AtomicInnerProduct.of_moment(moment), subjects=("one",))


def token_means(special: Sequence[int] = SPECIAL) -> TokenMeans:
    return TokenMeans(SITE, special)


@cache
def whole_means() -> TokenMeans:
    means = token_means()
    for batch in conversations():
        means.step(batch)
    return means


def labels() -> Labels:
    return Labels.of([i % 2 for i in range(60)])


@cache
def planted() -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Rows x [n, 6], rows y [n, 5], classes [n], documents [n]."""
    rng = torch.Generator().manual_seed(0)
    draw = lambda width: torch.randn(30, width, generator=rng)  # noqa: E731
    return [(draw(6), draw(5), torch.arange(30) % 3, torch.arange(30) // 5 + 6 * number) for number in range(10)]


CASES = [
    rows_case("short", rows=70),
    rows_case("across", rows=230),
    rows_case("whole batches", rows=230, whole=True),
    rows_case("all", rows=10**6),
    Case(FullTokenRows, lambda: FullTokenRows(33), lambda m: [*m.kept, m.length]),
    Case(FullTokenRows, lambda: FullTokenRows(10**6, length=16), lambda m: [*m.kept, m.length], name="of a length"),
    Case(DocumentIds, DocumentIds, lambda m: sorted(m.ids)),
    Case(DistinctBeginnings, lambda: DistinctBeginnings(TextTokenizer(Letters()), 50, 15), lambda m: list(m.texts)),
    *(
        Case(
            WindowCollector,
            lambda tokens=tokens: WindowCollector({"a": dictionary(), "b": dictionary(1)}, tokens=tokens, length=4),
            lambda m: [
                (w := m.windows(Letters())).tokens, w.doc, w.texts,
                *(part for codes in w.codes.values() for part in (codes.indptr, codes.indices, codes.data)),
            ],
            name=f"{tokens} tokens",
        )
        for tokens in (300, 10**6)
    ),
    Case(SecondMoment, lambda: SecondMoment(SITE), lambda m: [m.mean, m.covariance, m.rows], tolerance=1e-9),
    Case(
        Faithfulness, faithfulness,
        lambda m: [evidence(lambda one: one.evidence("one", {"null": "null"}))(m), m.firing, m.magnitudes, m.rows],
        tolerance=1e-6,
    ),
    Case(Reconstruction, lambda: Reconstruction(dictionary()),
         lambda m: [evidence(lambda one: one.evidence())(m), m.firing, m.rows], tolerance=1e-9),
    Case(CrossLayerReconstruction, lambda: CrossLayerReconstruction(cross_layer(), READ, target=WRITTEN),
         lambda m: [evidence(lambda one: one.evidence())(m), m.firing, m.rows], tolerance=1e-9),
    Case(
        EvaluationRows, evaluation_rows,
        lambda m: [{key: evidence(lambda one: one.evidence())(one) for key, one in m.measures.items()}, m.counts],
        later=evaluation_rows, tolerance=1e-9,
    ),
    *(
        Case(FirstConversations, lambda rows=rows: FirstConversations([SITE], rows),
             lambda m: [[part.acts[SITE], part.tokens, part.doc, part.first] for part in m.parts],
             parts=conversations, name=f"{rows} rows")
        for rows in (300, 10**6)
    ),
    Case(TokenMeans, token_means, lambda m: m.means, parts=conversations, tolerance=1e-12),
    Case(
        SpecialTokens, lambda: SpecialTokens({"dictionary": dictionary(), "means": whole_means()}, SPECIAL),
        lambda m: [m.counts(), evidence(lambda one: one.evidence("dictionary", {"null": "means"}))(m)],
        parts=conversations, tolerance=1e-9,
    ),
    Case(
        Splices,
        lambda: splices(model(), SITE, {"mine": dictionary()}, torch.zeros(WIDTH), tokens=10**6,
                        norm_limit=norm_limit()),
        lambda m: [dict(m.losses.counts), evidence(lambda one: one.losses.evidence("mine"))(m)],
        tolerance=1e-9,
    ),
    Case(
        FeatureExamples, lambda: FeatureExamples(dictionary(), np.arange(40), top=3, site=SITE),
        lambda m: m.metrics(),
    ),
    Case(
        FeatureCollector,
        lambda: FeatureCollector(model(), corpus(), dictionary(), tokens=None, latents=40, top=3, per_octave=2),
        lambda m: [(f := m.features()).count, f.maximum, f.bins, f.l0, f.source, f.texts,
                   examples_of(f.strongest), examples_of(f.random)],
    ),
    *(
        Case(PooledTexts, lambda pooling=pooling: PooledTexts(labels(), [SITE], model(), pooling=pooling),
             lambda m: flatten(m.state_dict())[0], name=pooling, tolerance=1e-6 * (pooling == "mean"))
        for pooling in POOLINGS
    ),
    Case(
        StreamedProbes, lambda: StreamedProbes(labels(), ["mean_difference", "ridge", "lda"], SITE),
        lambda m: [m.seen, {kind: [probe.weight, probe.bias] for kind, probe in m.probes().items()}], tolerance=1e-4,
    ),
    Case(
        Moments, lambda: Moments(6, 3), lambda m: [m.counts, m.sums, m.seconds],
        parts=planted, add=lambda m, part: m.add(part[0], part[2]), name="classes", tolerance=1e-12,
    ),
    Case(
        Moments, lambda: Moments(6, 0, 5, products=False),
        lambda m: [m.counts, m.sums, m.seconds, *m.cross(m.scaling("coordinate"))],
        parts=planted, add=lambda m, part: m.add(part[0], part[1]), name="numbers", tolerance=1e-12,
    ),
    Case(
        DocumentSums, DocumentSums, lambda m: [len(m), flatten(m.state_dict())[0]],
        parts=planted, add=lambda m, part: m.add(part[3], {"x": part[0], "one": part[1][:, 0]}), tolerance=1e-12,
    ),
    Case(
        CrossMoments, lambda: CrossMoments((torch.zeros(6), torch.zeros(5))), evidence(lambda one: one.evidence()),
        parts=planted, add=lambda m, part: m.add(part[0], part[1], part[3]), tolerance=1e-8,
    ),
]  # fmt: skip


def filled(measure: Any, case: Case, parts: Iterable[Any]) -> Any:
    for part in parts:
        case.add(measure, part)
    return measure


def same(merged: Any, whole: Any, tolerance: float) -> None:
    """Compare nested numbers; integers and text exactly."""
    if isinstance(whole, dict):
        assert list(merged) == list(whole)
        merged, whole = list(merged.values()), list(whole.values())
    if isinstance(whole, list | tuple):
        assert len(merged) == len(whole)
        for one, other in zip(merged, whole, strict=True):
            same(one, other, tolerance)
    elif isinstance(whole, torch.Tensor | np.ndarray | float):
        one, other = (torch.as_tensor(value) for value in (merged, whole))
        assert one.dtype == other.dtype
        exact = tolerance if other.is_floating_point() else 0.0
        torch.testing.assert_close(one, other, rtol=exact, atol=exact, equal_nan=True)
    else:
        assert merged == whole


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.measures.__name__} {case.name}".strip())
def test_parts_merge_into_the_whole(case: Case) -> None:
    parts = case.parts()
    whole, first = filled(case.make(), case, parts), filled(case.make(), case, parts[:CUT])
    rest = filled(case.later(first) if case.later else case.make(), case, parts[CUT:])
    expected = case.numbers(whole)
    with pytest.raises((AssertionError, InputError)):  # the numbers tell a part from the whole
        same(case.numbers(filled(case.make(), case, parts[:1])), expected, case.tolerance)
    if hasattr(rest, "state_dict"):  # as a rank would send it
        sent = case.later(first) if case.later else case.make()
        sent.load_state_dict(copy.deepcopy(rest.state_dict()))
        rest = sent
    before = copy.deepcopy(case.numbers(rest))
    first.merge(rest)
    same(case.numbers(first), expected, case.tolerance)
    same(case.numbers(rest), before, 0.0)  # the later one stays as it is
    if case.later is None:
        empty = case.make()
        empty.merge(whole)
        empty.merge(case.make())
        same(case.numbers(empty), expected, case.tolerance)


def classes() -> Iterator[type]:
    """Every class of the packages but those of the application."""
    for top in ("lab", "saes", "probes", "interventions"):
        package = importlib.import_module(f"monosem.{top}")
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not found.name.startswith("monosem.lab.app"):
                module = importlib.import_module(found.name)
                yield from (one for one in vars(module).values()
                            if inspect.isclass(one) and one.__module__ == found.name)  # fmt: skip


def merges(kind: type) -> bool:
    """True if `merge` takes in one measure more."""
    return callable(getattr(kind, "merge", None)) and len(inspect.signature(kind.merge).parameters) == 2  # type: ignore[attr-defined]


def test_every_measure_merges_and_has_a_case() -> None:
    parts = [name for name in dir(Consumer) if not name.startswith("_")]
    found = {kind for kind in classes() if not getattr(kind, "_is_protocol", False)}
    consumers = {kind for kind in found if all(hasattr(kind, part) for part in parts if part not in ("name", "sites"))}
    assert set(LEARNERS) <= consumers
    for kind in consumers - set(LEARNERS):
        assert merges(kind), f"{kind.__name__} measures and has no merge: add it, or name the class among LEARNERS"
    cases = {case.measures for case in CASES}
    lacking = {kind.__name__ for kind in found if merges(kind)} - {kind.__name__ for kind in cases}
    assert not lacking, f"{', '.join(sorted(lacking))} can be merged: give CASES one of each"
    assert all(isinstance(case.make(), Measuring) for case in CASES if case.measures in consumers)
