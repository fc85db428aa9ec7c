"""Automatic-interpretation detection: from an explanation alone, can a judge tell where a latent fires?

    detection_JUDGE           balanced accuracy over windows in which the latent fires and windows drawn at random in
                              which it is silent, mean over latents; 0.5 is no knowledge
    detection_auc_JUDGE       the same windows without a threshold: chance that a firing one is scored higher
    detection_similar_JUDGE   balanced accuracy where each silent window is the nearest by words to a firing one: with
                              random ones a judge passes by the topic alone

After Paulo et al. 2024 (2410.13928) and SAEBench (2503.09532), with local explainers and judges. Explanations and the
judge's threshold come from one half of the documents, scores from the other, and no window of one half has the text
of one of the other. Firing windows are drawn evenly over the whole range of activations, not from the top. Nulls:
`other_latent`, judged by the explanation of another latent; `token_frequency`, told by how common the window's tokens
are, without an explanation; `random_dictionary`, latents of an untrained dictionary through all the same steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

from ...lab.errors import InputError
from ...lab.evidence import Evidence, bootstrap
from ...lab.models.hooked_model import HookedModel
from ...lab.rng import generator
from ...lab.runs.first_rows import FirstRows
from ...lab.runs.read import read
from ...lab.streams.token_stream import TokenStream
from ...lab.text.corpus import Corpus
from ..dictionary import Dictionary
from ..evaluation.nulls import untrained
from .explain import Explanation, LexicalExplainer
from .judges import EmbeddingJudge, Judge, ModelJudge, RuleJudge, balanced_accuracy, threshold
from .trials import DetectionConfig, Trial, draw_trials
from .windows import Window, Windows, read_windows

DICTIONARY, RANDOM = "dictionary", "random_dictionary"
FIT_ROWS = 4096
"""Rows that the untrained dictionary takes its mean and scale from."""


@dataclass(frozen=True)
class Detection:
    """Scores of the judges."""

    scores: dict[str, Evidence]
    """By name, as in the module's text."""
    latents: list[dict[str, Any]] = field(default_factory=list)
    """Every explained latent: its explanation, and its scores by judge."""

    def to_json(self) -> dict[str, Any]:
        """Plain values for files."""
        return {"scores": {name: score.to_json() for name, score in self.scores.items()}, "latents": self.latents}


def measure_detection(
    model: HookedModel,
    corpus: Corpus,
    dictionary: Dictionary,
    config: DetectionConfig | None = None,
    *,
    judges: Mapping[str, Judge] | None = None,
    progress: bool = False,
) -> Detection:
    """Explain some latents of a dictionary and have every explanation judged.

    Args:
        corpus: text the dictionary was not trained on.
        judges: by name; None makes those that the config names.

    Raises:
        InputError: the dictionary is not of this model, too few latents fire in enough windows, or a judge cannot
            be had here.
    """
    config = config or DetectionConfig()
    judges = judges or {name: _judge(name, model) for name in config.judges}
    both = {DICTIONARY: dictionary, RANDOM: _untrained(model, corpus, dictionary, config.seed, progress)}
    windows = read_windows(model, corpus, both, tokens=config.tokens, length=config.length, progress=progress)
    return detect(windows, judges, config, progress=progress)


def detect(
    windows: Windows, judges: Mapping[str, Judge], config: DetectionConfig, *, progress: bool = False
) -> Detection:
    """Explain and judge the latents of `dictionary` in windows that hold its codes, and `random_dictionary`'s.

    Raises:
        InputError: fewer than two latents fire in enough windows.
    """
    trials = {name: draw_trials(windows, name, config) for name in (DICTIONARY, RANDOM)}
    mine, theirs = trials.values()
    if len(mine) < 2:
        raise InputError(
            f"{len(mine)} latents fire in {config.scored} windows of each half of {windows.tokens.size} tokens, and "
            "detection needs at least 2: give more tokens, or a smaller scored"
        )
    background = [window for trial in mine + theirs for window in trial.quiet]
    explainer, common = LexicalExplainer(window.strings for window in background), FrequencyJudge(background)
    explained = {name: [explainer.explain(trial.latent, trial.shown) for trial in found]
                 for name, found in trials.items()}  # fmt: skip
    others = explained[DICTIONARY][1:] + explained[DICTIONARY][:1]
    frequency = [common.judged(trial) for trial in mine]
    found, per_latent = {}, [{"latent": e.latent, "explanation": e.text} for e in explained[DICTIONARY]]
    for name, judge in tqdm(judges.items(), desc="judges", disable=not progress):
        results = _all_judged(judge, explained[DICTIONARY], mine)
        nulls = {
            "other_latent": _all_judged(judge, others, mine),
            "token_frequency": frequency,
            RANDOM: _all_judged(judge, explained[RANDOM], theirs),
        }
        found |= _evidence(name, results, nulls, config)
        for entry, result in zip(per_latent, results, strict=True):
            entry[name] = asdict(result)
    return Detection(found, per_latent)


@dataclass(frozen=True)
class Judged:
    """How well one latent was told."""

    accuracy: float
    auc: float
    similar: float


def judged(judge: Judge, explanation: Explanation, trial: Trial) -> Judged:
    """One judge on one explanation: the threshold is set on the explaining half, the scores taken on the other."""
    cut = threshold(judge.scores(explanation, trial.shown + trial.quiet), _fires(trial.shown, trial.quiet))
    scores = judge.scores(explanation, trial.firing + trial.silent + trial.similar)
    return _told(scores, cut, trial)


class FrequencyJudge:
    """The mean log frequency of a window's tokens: what can be told without any explanation.

    Whether common or rare tokens mean firing is set, with the threshold, on the explaining half.
    """

    def __init__(self, background: Sequence[Window]) -> None:
        strings, counts = np.unique([s for window in background for s in window.strings], return_counts=True)
        self.log = dict(zip(strings.tolist(), np.log((counts + 1) / counts.sum()).tolist(), strict=True))
        self.least = min(self.log.values())

    def scores(self, windows: Sequence[Window]) -> Float[np.ndarray, " windows"]:
        """Nats."""
        return np.array([np.mean([self.log.get(string, self.least) for string in w.strings]) for w in windows])

    def judged(self, trial: Trial) -> Judged:
        """The scores of `judged`, with the better of both directions."""
        known, fires = self.scores(trial.shown + trial.quiet), _fires(trial.shown, trial.quiet)
        cuts = {sign: threshold(sign * known, fires) for sign in (1, -1)}
        sign = max(cuts, key=lambda s: balanced_accuracy(s * known > cuts[s], fires))
        return _told(sign * self.scores(trial.firing + trial.silent + trial.similar), cuts[sign], trial)


def _fires(firing: Sequence[Window], silent: Sequence[Window]) -> np.ndarray:
    return np.repeat([True, False], [len(firing), len(silent)])


def _told(scores: np.ndarray, cut: float, trial: Trial) -> Judged:
    firing, silent, similar = np.split(scores, np.cumsum([len(trial.firing), len(trial.silent)]))
    fires = _fires(trial.firing, trial.silent)
    first = np.concatenate([firing, silent])
    hard = balanced_accuracy(np.concatenate([firing, similar]) > cut, _fires(trial.firing, trial.similar))
    return Judged(balanced_accuracy(first > cut, fires), float(roc_auc_score(fires, first)), hard)


def _all_judged(judge: Judge, explanations: Sequence[Explanation], trials: Sequence[Trial]) -> list[Judged]:
    return [judged(judge, explanation, trial) for explanation, trial in zip(explanations, trials, strict=True)]


def _evidence(
    judge: str, results: list[Judged], nulls: Mapping[str, list[Judged]], config: DetectionConfig
) -> dict[str, Evidence]:
    """The means over latents of everything one judge found."""
    held_out = (
        f"{config.scored} firing and as many silent windows a latent, of documents and texts that neither the "
        "explanation nor the threshold saw"
    )
    found = {}
    names = {"accuracy": "detection", "auc": "detection_auc", "similar": "detection_similar"}
    for kind, name in names.items():
        values = np.array([getattr(result, kind) for result in results])
        beside = {
            null: float(np.mean([getattr(result, kind) for result in told])) for null, told in nulls.items() if told
        }
        few = f"no latent fires in {config.scored} windows of each half: give more tokens, or a smaller scored"
        missing = {null: few for null, told in nulls.items() if not told}
        interval = bootstrap(lambda w, v=values: float(w @ v / w.sum()), len(values), seed=config.seed)
        full = f"{name}_{judge}"
        found[full] = Evidence(full, float(values.mean()), interval, beside, len(values), "latents", held_out, "higher",
                               missing=missing)  # fmt: skip
    return found


def _judge(name: str, model: HookedModel) -> Judge:
    return {"rule": RuleJudge, "embedding": EmbeddingJudge, "model": lambda: ModelJudge(model)}[name]()


def _untrained(
    model: HookedModel, corpus: Corpus, dictionary: Dictionary, seed: int, progress: bool = False
) -> Dictionary:
    """An untrained dictionary with the codes a row that this one has on the first rows of the corpus."""
    place = dictionary.check(model)
    site, limit = place.site, place.source.norm_limit
    first = FirstRows(site, FIT_ROWS, whole=True)
    stream = TokenStream.reading(model, corpus, site, norm_limit={site: limit})
    read(stream, first, description="rows for the null", progress=progress)
    rows = first.acts.to(dictionary.W_dec.device, torch.float32)
    k = max(1, round(float(dictionary.encode(rows).l0.double().mean())))
    null = untrained(dictionary, rows, k, generator(seed, "detection", "untrained"))
    null.place, null.provenance = dictionary.place, dictionary.provenance
    return null
