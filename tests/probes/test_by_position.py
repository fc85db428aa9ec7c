"""Every public entry that takes texts, labels, groups, numbers or positions reads them by position."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import tiny_commands
import tiny_truth
import torch
from monosem.lab.models.hooked_model import HookedModel
from monosem.lab.models.loading import load_model
from monosem.lab.models.sites import Site
from monosem.lab.sequences import by_position, flags_of, integers_of, numbers_of, positions_of, texts_of
from monosem.lab.text.conversations import answer
from monosem.lab.text.corpus import Corpus
from monosem.lab.text.sentence_encoder import SentenceEncoder
from monosem.lab.text.sources import open_source
from monosem.lab.text.tokenization import TextTokenizer
from monosem.probes.fitting import sparse
from monosem.probes.fitting.calibration import brier, calibration_scores, ece, reliability
from monosem.probes.fitting.linear import LinearFit
from monosem.probes.fitting.sparse import SparseProbeConfig, by_mean_difference, sparse_probe
from monosem.probes.fitting.splits import group_folds
from monosem.probes.geo.coordinates import CoordinateProbe, coordinate_scores, spatial_blocks
from monosem.probes.geo.maps import cluster_map, value_map
from monosem.probes.geo.measure import SpatialConfig, measure_geography, moran_interval, residualised
from monosem.probes.geo.places import Places, load_places, unit_vectors
from monosem.probes.geo.reading import read_values, readers_of
from monosem.probes.geo.statistics import adjusted, geary, getis_ord, local_moran, moran, permuted_p
from monosem.probes.geo.weights import nearest_neighbours
from monosem.probes.labels import Bags, Labels, PooledRows, labelled
from monosem.probes.layer_sweep import ReadConfig, probe_sweep, read_tokens
from monosem.probes.measure import MeasureConfig, mean_auc, r2
from monosem.probes.outliers.measure import OutlierConfig, ood_scores
from monosem.probes.pooling import PooledTexts
from monosem.probes.prompts import read_texts
from monosem.probes.tasks.absorption import AbsorptionConfig, letter_task
from monosem.probes.tasks.datasets import LabelledTexts
from monosem.probes.tasks.first_letters import letter_prompts
from monosem.probes.tasks.texts import TextProbing, pool
from monosem.probes.tasks.tpp import ErasureConfig, scr, tpp
from monosem.probes.token_scores import score_tokens
from monosem.probes.truth.bags import harvest_bags
from monosem.probes.truth.conformal import Conformal
from monosem.probes.truth.manipulation import Move, causal_effects
from monosem.probes.truth.prompting import verdict_prompts
from monosem.probes.truth.published import labels_of_entities
from monosem.probes.truth.scores import Reading, score_reading
from monosem.probes.truth.statements import Statements, entity_splits
from monosem.saes.architectures.sae import SAEConfig
from monosem.saes.architectures.topk import TopK
from monosem.saes.dictionary import Provenance
from monosem.saes.edit import Edit
from monosem.saes.evaluation.matched_l0 import Curve, pareto, seed_gap
from monosem.saes.features.collect import collect

N = 48
SITE = "resid_post.1"
TEXTS = [
    f"the {adjective} {noun} near a boat"
    for noun in (*tiny_commands.TOPICS["sea"][:6], *tiny_commands.TOPICS["kitchen"][:6])
    for adjective in tiny_commands.ADJECTIVES[:4]
]
OTHERS = [f"a {noun} and a {other} then" for noun in tiny_commands.TOPICS["garden"][:6] for other in ("oak", "rose")]
LABELS, GROUPS = ["sea"] * 24 + ["kitchen"] * 24, [text.split()[2] for text in TEXTS]
RNG = np.random.default_rng(0)
ROWS = torch.tensor(RNG.normal(size=(N, 8)) + np.outer(np.arange(N) < 24, np.ones(8)), dtype=torch.float32)
NUMBERS, POINTS = RNG.normal(size=N).tolist(), RNG.uniform(-9, 9, (N, 2))
CHANCES, TRUTH = RNG.uniform(0.01, 0.99, N).tolist(), (RNG.random(N) < 0.5).astype(int).tolist()
FLAGS, BLOCKS = [bool(one) for one in TRUTH], (np.arange(N) % 4).tolist()
ENTITIES = [f"entity {number // 2}" for number in range(N)]
WEIGHTS = nearest_neighbours(POINTS, 4)
FAST = MeasureConfig(repeats=1, resamples=10)
Hold = Callable[[Any], Any]


def shuffled(values: Any) -> pd.Series:
    """A column whose index is in another order than its rows."""
    return pd.Series(list(values), index=np.random.default_rng(1).permutation(len(values)))


def filtered(values: Any) -> pd.Series:
    """Every second row of a longer table, so that most numbers below its length are no label of its index."""
    return pd.DataFrame({"x": [value for one in values for value in (one, one)]})["x"].iloc[1::2]


def array(values: Any) -> np.ndarray:
    return np.array(list(values))


HOLDS: dict[str, Hold] = {
    "tuple": tuple,
    "shuffled series": shuffled,
    "filtered series": filtered,
    "index": pd.Index,
    "table": lambda values: shuffled(values).to_frame(),
    "array": array,
    "objects": lambda values: np.fromiter(values, dtype=object, count=len(values)),
    "datasets": lambda values: datasets.Dataset.from_dict({"x": list(values)})["x"],
    "tensor": lambda values: list(values) if isinstance(values[0], str) else torch.tensor(np.array(list(values))),
}


class Given:
    """A tiny model, a dictionary of it, and a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = load_model(str(tiny_commands.write_model(folder / "model")), dtype="fp32", device="cpu")
        self.model.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
        self.model.tokenizer.cls_token, self.model.tokenizer.sep_token = "<s>", "</s>"
        self.encoder = HookedModel(self.model.module.model, tokenizer=self.model.tokenizer)
        self.truth = load_model(str(tiny_truth.write_truth_model(folder / "truth")), dtype="fp32", device="cpu")
        self.dictionary = TopK(SAEConfig(32, 64, 4))
        with torch.no_grad():
            for number, parameter in enumerate(self.dictionary.parameters()):
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
        self.dictionary.place, self.dictionary.provenance = SITE, Provenance(self.model.fingerprint())
        self.number = 0

    @property
    def tokenizer(self) -> Any:
        return self.model.tokenizer

    def new(self) -> Path:
        self.number += 1
        return self.folder / str(self.number)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    return Given(tmp_path_factory.mktemp("given"))


def sweep(given: Given, hold: Hold) -> Any:
    found = probe_sweep(given.model, hold(TEXTS), hold(LABELS), [SITE], ["ridge"], config=FAST)
    return found[SITE]["ridge"]["auc"].value


def token_scores(given: Given, hold: Hold) -> Any:
    model: HookedModel = given.model
    probe = probe_sweep(model, TEXTS, LABELS, [SITE], ["mean_difference"], config=FAST)[SITE]["mean_difference"].probe
    return [line.scores.tolist() for line in score_tokens(model, probe, hold(TEXTS[::7]))]


def outliers(given: Given, hold: Hold) -> Any:
    found = ood_scores(given.model, given.dictionary, hold(TEXTS[::2]), hold(TEXTS[1::2]), {"garden": hold(OTHERS)},
                       OutlierConfig(tokens=6))  # fmt: skip
    return {name: score.value for name, score in found.items()}


def effects(given: Given, hold: Hold) -> Any:
    texts = [f"The city of City is {word} located in the {other} ." for word in ("not", "is") for other in ["X", "Y"]]
    move = Move(Site.parse(SITE), torch.eye(32)[3], 5.0)
    found = causal_effects(given.truth, hold(texts), hold([True, False, False, True]), hold(["a", "b", "a", "c"]), move)
    return {name: (score.value, score.interval) for name, score in found.items()}


def reading(hold: Hold) -> Any:
    right = [number % 3 for number in range(N)]
    chances = np.random.default_rng(3).dirichlet([1, 1, 1], N)
    told = Reading(chances, chances > 0.3, chances > 0.2)
    found = score_reading(told, hold(right), hold(ENTITIES), {}, alpha=0.1, resamples=20)
    return {name: (score.value, score.interval) for name, score in found.items()}


def places(hold: Hold) -> Places:
    return Places(hold([f"p{i}" for i in range(N)]), hold(["XX"] * N), hold([f"r{i % 3}" for i in range(N)]),
                  hold(POINTS[:, 0].tolist()), hold(POINTS[:, 1].tolist()))  # fmt: skip


def geography(hold: Hold) -> Any:
    values = {"name": np.stack([np.array(NUMBERS), POINTS[:, 0]], 1)}
    config = SpatialConfig(k=4, permutations=19, alpha=0.2)
    found = measure_geography(values, hold(BLOCKS), WEIGHTS, hold(BLOCKS), config)
    return {name: (score.value, score.interval) for name, score in found.scores.items()}


def table(rows: Any, hold: Hold) -> Any:
    """Rows of numbers as a table with the index of what `hold` makes; as they are for what holds no table."""
    held = hold(list(range(len(rows))))
    return pd.DataFrame(np.asarray(rows), index=held.index) if hasattr(held, "iloc") else rows


def statements(hold: Hold) -> Any:
    splits = [("train", "test", "calibration")[number // 2 % 3] for number in range(N)]
    found = Statements("x", hold(TEXTS), hold([i % 3 for i in range(N)]), hold(FLAGS), hold(ENTITIES), hold(splits))
    return found.hash(), found.counts(), found.take(hold([3, 1, 2])).hash(), found.rows("test", True).tolist()


def absorption(hold: Hold) -> Any:
    config = AbsorptionConfig(least_words=8, least_letters=2, least_f1=0.0, probe=LinearFit(epochs=2))
    return letter_task(ROWS, hold([number // 24 for number in range(N)]), config).f1


def erased(given: Given, hold: Hold) -> Any:
    x = torch.randn(2 * N, 32, generator=torch.Generator().manual_seed(1))
    config, text = ErasureConfig(fit=LinearFit(epochs=1)), [number // 2 for number in range(2 * N)]
    one_hot = np.eye(2)[TRUTH].astype(bool)
    first = tpp(x, table(one_hot, hold), given.dictionary, config, {}, hold(text))
    second = scr(
        x, hold(FLAGS), hold([number % 2 == 0 for number in range(N)]), given.dictionary, config, {}, hold(text)
    )
    return [{name: score(np.ones(one.rows)) for name, score in one.scores.items()} for one in (first, second)]


def bags() -> Bags:
    return Bags(ROWS, torch.arange(N) // 2, Labels.of(([0] * 12) + [1] * 12))


def documents(given: Given, hold: Hold) -> Any:
    ids = np.random.default_rng(2).permutation(N).tolist()
    found = PooledTexts(Labels.of(LABELS), [SITE], given.model, documents=hold(ids))
    return found._ids.tolist(), found._order.tolist()


def conformal(hold: Hold) -> Any:
    found = Conformal(hold(CHANCES), hold(TRUTH))
    fitted = Conformal.fit(table(np.stack([CHANCES, CHANCES[::-1]], 1), hold), hold(TRUTH))
    return found.p_values(np.array([[0.5, 0.4]])).tolist(), fitted.strangeness.tolist()


def arithmetic(hold: Hold) -> Any:
    scores = [score(hold(CHANCES), hold(TRUTH), np.ones(N))
              for score in (*sparse.SCORES.values(), ece, brier)]  # fmt: skip
    return scores, reliability(hold(CHANCES), hold(TRUTH))


def others(hold: Hold) -> Any:
    column = np.array(CHANCES)[:, None]
    return (mean_auc(table(column, hold), hold(TRUTH), np.ones(N)), r2(table(column, hold), column, np.ones(N)),
            by_mean_difference(table(ROWS.numpy(), hold), hold(TRUTH), 3).tolist(),
            calibration_scores(hold(CHANCES), Labels.of(TRUTH), base_rate=0.5)["ece"].value)  # fmt: skip


def statistics(hold: Hold) -> Any:
    x = table(np.stack([NUMBERS, POINTS[:, 0]], 1), hold)
    p = permuted_p(x, WEIGHTS, np.random.default_rng(0), 19)
    return (moran(x, WEIGHTS).value.tolist(), geary(x, WEIGHTS).value.tolist(), getis_ord(x, WEIGHTS).tolist(),
            local_moran(x, WEIGHTS).value.tolist(), p.tolist(), adjusted(hold(CHANCES)).tolist())  # fmt: skip


def maps(hold: Hold) -> Any:
    figures = [value_map(places(list), hold(NUMBERS)),
               cluster_map(places(list), hold(NUMBERS), hold(BLOCKS), hold(FLAGS))]  # fmt: skip
    return [figure.to_json() for figure in figures]


def edited(given: Given, hold: Hold) -> Any:
    x = torch.randn(6, 32, generator=torch.Generator().manual_seed(2))
    kept = given.dictionary.encode(x).indices[:3].unique().tolist()
    edit = Edit.latents(given.dictionary, hold(kept), lambda z: z * torch.arange(len(kept)))
    return edit.stages[0].run([x])[0].tolist()


def features(given: Given, hold: Hold) -> Any:
    corpus = Corpus(TEXTS, given.tokenizer, context=8, pack=False)
    found = collect(given.model, corpus, given.dictionary, tokens=200, latents=hold([9, 3, 40]))
    return found.latents.tolist()


ENTRIES: dict[str, Callable[[Given, Hold], Any]] = {
    "open_source": lambda _, hold: [document.content for document in open_source(hold(TEXTS)).read(2)],
    "Corpus": lambda given, hold: next(
        Corpus(hold(TEXTS), given.tokenizer, context=64).batches()).tokens.tolist(),
    "TextTokenizer.encode": lambda given, hold: [
        ids.tolist() for ids in TextTokenizer(given.tokenizer).encode(hold(TEXTS))],
    "SentenceEncoder.embed": lambda given, hold: SentenceEncoder(given.encoder).embed(hold(TEXTS[:9])).tolist(),
    "answer": lambda given, hold: answer(given.model, hold(TEXTS[:3]), 3),
    "Labels.of": lambda _, hold: [
        part.tolist() for part in (lambda one: (one.y, one.groups, one.tokens))(
            Labels.of(hold(LABELS), groups=hold(GROUPS), tokens=hold(list(range(N)))))],
    "Labels.numbers": lambda _, hold: Labels.numbers(hold(NUMBERS), groups=hold(GROUPS)).y.tolist(),
    "Labels.numbers of a table": lambda _, hold: Labels.numbers(table(POINTS, hold)).y.tolist(),
    "labelled": lambda _, hold: labelled(hold([*LABELS, ""])).tolist(),
    "Labels.take": lambda _, hold: Labels.of(LABELS).take(hold([40, 2, 7])).y.tolist(),
    "Labels.take by mask": lambda _, hold: Labels.of(LABELS).take(hold(FLAGS)).y.tolist(),
    "PooledRows.take": lambda _, hold: PooledRows(ROWS, Labels.of(LABELS)).take(hold([40, 2, 7])).x.tolist(),
    "Bags.take": lambda _, hold: bags().take(hold([20, 2, 7])).x.tolist(),
    "PooledTexts": documents,
    "sparse_probe": lambda _, hold: sparse_probe(
        ROWS, ROWS, hold(LABELS), groups=hold(GROUPS), config=SparseProbeConfig(k=(2,), repeats=1)).to_json(),
    "group_folds": lambda _, hold: [
        part.tolist() for fold in group_folds(hold(TRUTH), hold(BLOCKS), 3, 0) for part in fold],
    "scores": lambda _, hold: arithmetic(hold),
    "other scores": lambda _, hold: others(hold),
    "read_tokens": lambda given, hold: read_tokens(given.model, hold(TEXTS), ReadConfig()).ids.tolist(),
    "probe_sweep": sweep,
    "score_tokens": token_scores,
    "read_texts": lambda given, hold: [
        part.tolist() for part in read_texts(given.model, Site.parse(SITE), hold(TEXTS[:9]), tokens=4)],
    "pool": lambda given, hold: pool(given.model, given.dictionary, hold(TEXTS[:20]), TextProbing()).x.tolist(),
    "LabelledTexts": lambda _, hold: (lambda one: (one.texts, one.labels))(
        LabelledTexts("x", hold(TEXTS), hold(TRUTH), ("a", "b")).take(12)),
    "letter_prompts": lambda given, hold: letter_prompts(given.tokenizer, hold(["boat", "gull", "oven"]), 1),
    "letter_task": lambda _, hold: absorption(hold),
    "tpp and scr": erased,
    "readers_of": lambda given, hold: readers_of(
        given.model, [], given.dictionary, hold(TEXTS))[1].dictionary.W_enc.tolist(),
    "read_values": lambda given, hold: read_values(
        given.model, readers_of(given.model, [SITE], None, []), hold(TEXTS[:9]))[SITE].tolist(),
    "Places": lambda _, hold: (places(hold).names, places(hold).positions().tolist()),
    "Places.__getitem__": lambda _, hold: places(list)[hold([5, 2, 9])].names,
    "load_places": lambda _, hold: load_places(hold(["IT", "GB"]), per_country=3).names,
    "unit_vectors": lambda _, hold: unit_vectors(table(POINTS, hold)).tolist(),
    "nearest_neighbours": lambda _, hold: nearest_neighbours(table(POINTS, hold), 3).indices.tolist(),
    "spatial_blocks": lambda _, hold: spatial_blocks(table(POINTS, hold), 3).tolist(),
    "coordinate_scores": lambda _, hold: coordinate_scores(
        table(ROWS.double().numpy(), hold), places(list), CoordinateProbe(blocks=3))["coordinates_km_blocks"].value,
    "measure_geography": lambda _, hold: geography(hold),
    "residualised": lambda _, hold: residualised(ROWS.numpy(), hold(BLOCKS)).tolist(),
    "moran_interval": lambda _, hold: moran_interval(hold(NUMBERS), WEIGHTS, hold(BLOCKS)),
    "statistics": lambda _, hold: statistics(hold),
    "maps": lambda _, hold: maps(hold),
    "harvest_bags": lambda given, hold: harvest_bags(
        given.model, hold(TEXTS[:5]), [Site.parse(SITE)], given.new()).ids,
    "verdict_prompts": lambda given, hold: verdict_prompts(TextTokenizer(given.truth.tokenizer), hold(TEXTS)),
    "causal_effects": effects,
    "score_reading": lambda _, hold: reading(hold),
    "Statements": lambda _, hold: statements(hold),
    "entity_splits": lambda _, hold: entity_splits(hold(ENTITIES), hold([i % 4 // 2 for i in range(N)]), 0),
    "labels_of_entities": lambda _, hold: labels_of_entities(hold(ENTITIES), hold([i % 3 for i in range(N)])),
    "Conformal": lambda _, hold: conformal(hold),
    "ood_scores": outliers,
    "Edit.latents": edited,
    "Curve": lambda _, hold: Curve("x", hold([3.0, 1.0, 2.0]), hold([0.3, 0.1, 0.2])).at(1.5),
    "pareto": lambda _, hold: pareto(hold([3.0, 1.0, 2.0]), hold([0.3, 0.1, 0.2])),
    "seed_gap": lambda _, hold: seed_gap(hold([0.3, 0.1]), hold([0.2, 0.3])).to_json(),
    "collect": features,
}  # fmt: skip
EXPECTED: dict[str, Any] = {}


@pytest.mark.parametrize("held", ["shuffled series", "filtered series", "table", "objects", "tensor"])
@pytest.mark.parametrize("entry", ENTRIES)
def test_an_entry_reads_by_position(entry: str, held: str, given: Given) -> None:
    if entry not in EXPECTED:
        EXPECTED[entry] = repr(ENTRIES[entry](given, list))
    assert repr(ENTRIES[entry](given, HOLDS[held])) == EXPECTED[entry]


@pytest.mark.parametrize("held", HOLDS)
def test_helpers_keep_order_and_kind(held: str) -> None:
    hold = HOLDS[held]
    assert by_position(hold([3, 1, 2])) == [3, 1, 2] and texts_of(hold(["b", "a"])) == ["b", "a"]
    assert numbers_of(hold([3.5, 1.0])).tolist() == [3.5, 1.0] and integers_of(hold([3, 1])).tolist() == [3, 1]
    assert flags_of(hold([True, False])).tolist() == [True, False]
    assert positions_of(hold([True, False, True])).tolist() == [0, 2] and positions_of(hold([1, 0, 1])).tolist() == [
        1,
        0,
        1,
    ]
