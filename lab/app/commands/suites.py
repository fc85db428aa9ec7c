"""Groups of metrics by name, and the suites they make up: what `monosem eval` can measure.

A group is one line here. It gives scores, every one an `Evidence`, and perhaps details for a file of its own. A group
that cannot be measured on this model, or lacks data that is not installed, is skipped with its reason, and the command
ends in the exit status of an incomplete result; the core is not skipped.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from ....probes.tasks import absorption, ravel, texts, tpp
from ....probes.tasks.absorption import AbsorptionConfig
from ....probes.tasks.datasets import dataset_names, load_dataset
from ....probes.tasks.ravel import RAVELConfig
from ....probes.tasks.texts import TextProbing
from ....probes.tasks.tpp import SCRConfig, TPPConfig
from ....saes.analysis import meta_sae as meta
from ....saes.analysis.meta_sae import MetaConfig
from ....saes.autointerp import detection as autointerp
from ....saes.autointerp.trials import DetectionConfig
from ....saes.dictionary import Dictionary
from ....saes.evaluation.evaluate import EvaluationConfig, evaluate
from ....saes.evaluation.results import Evaluation
from ...errors import InputError
from ...evidence import Evidence
from ...models.hooked_model import HookedModel
from ...score_names import SCORES
from ...text.corpus import Corpus
from ..stoppable import KeptParts

log = logging.getLogger(__name__)

CORE = "core"


@dataclass(frozen=True)
class SuiteOptions:
    """The options of every group."""

    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    probing: TextProbing = field(default_factory=TextProbing)
    absorption: AbsorptionConfig = field(default_factory=AbsorptionConfig)
    tpp: TPPConfig = field(default_factory=TPPConfig)
    scr: SCRConfig = field(default_factory=SCRConfig)
    ravel: RAVELConfig = field(default_factory=RAVELConfig)
    detection: DetectionConfig = field(default_factory=DetectionConfig)
    meta: MetaConfig = field(default_factory=MetaConfig)


class Subject(NamedTuple):
    """A dictionary to measure, with its model, texts and options."""

    model: HookedModel
    dictionary: Dictionary
    corpus: Corpus
    """Documents the dictionary was not trained on."""
    options: SuiteOptions


class Found(NamedTuple):
    """Scores of one group."""

    scores: dict[str, Evidence]
    details: dict[str, Any] | None = None
    """JSON values for a file of the group's own, where there is more to say than the scores."""


def probing(subject: Subject) -> Found:
    """Sparse probes of labelled texts; the details are every data set's scores."""
    options = subject.options.probing
    names = dataset_names() if options.datasets == ("all",) else options.datasets
    probes = texts.probe_texts(
        subject.model, subject.dictionary, [load_dataset(name) for name in names], options, progress=True
    )
    details = {"datasets": {name: probe.to_json() for name, probe in probes.items()}}
    return Found(texts.over_datasets(probes, seed=options.probe.seed), details)


def detection(subject: Subject) -> Found:
    """Automatic interpretation; the details are every latent's explanation and scores."""
    report = autointerp.measure_detection(
        subject.model, subject.corpus, subject.dictionary, subject.options.detection, progress=True
    )
    return Found(report.scores, report.to_json())


class Group(NamedTuple):
    """One line of the table."""

    about: str
    measure: Callable[[Subject], Found]
    scores: Mapping[str, str] = {}
    """Meaning of each score by its name, in which `*` stands for any value; the first that fits counts."""


_PROBED = {"accuracy": "balanced accuracy", "auc": "AUC", "f1": "F1"}
PROBING = {
    **{f"probe_{key}_full": f"{score} of a logistic regression on activations, on held-out texts, mean over data sets"
       for key, score in _PROBED.items()},
    **{f"probe_{key}_k*": f"{score} of a logistic regression on the k latents whose means differ most between classes, "
       "on held-out texts, mean over data sets" for key, score in _PROBED.items()},
}  # fmt: skip
DETECTION = {
    "detection_auc_*": "the same windows without a threshold: chance that a firing one is scored higher",
    "detection_similar_*": "balanced accuracy where each silent window is the nearest by words to a firing one",
    "detection_*": "balanced accuracy over windows in which the latent fires and windows drawn at random in which it "
    "is silent, mean over latents; 0.5 is no knowledge",
}
META = {
    "meta_explained_variance": "share of the variance of unit decoder rows that a BatchTopK SAE with a quarter as many "
    "latents and 4 codes a row explains; lower is more atomic"
}
RECONSTRUCTION = {name: score.meaning for name, score in SCORES.items()} | {"fvu_*": "the FVU of one of several sites"}

GROUPS: dict[str, Group] = {
    CORE: Group("reconstruction, sparsity, weights and spliced losses on held-out documents",
                lambda s: Found(_core(s, KeptParts()).scores), RECONSTRUCTION),
    "probing": Group("k-sparse probes of the labels of texts, mean over data sets", probing, PROBING),
    "absorption": Group("first-letter features absorbed by, or split over, other latents",
                        lambda s: Found(absorption.measure_absorption(s.model, s.dictionary, s.options.absorption,
                                                                      progress=True))),
    "tpp": Group("targeted probe perturbation: does erasing a class's latents erase it alone? Known to mislead",
                 lambda s: Found(tpp.measure_tpp(s.model, s.dictionary, s.options.tpp, True))),
    "scr": Group("spurious correlation removal by erasing latents. Known to mislead",
                 lambda s: Found(tpp.measure_scr(s.model, s.dictionary, s.options.scr, True))),
    "ravel": Group("attributes of cities swapped through latents: cause and isolation",
                   lambda s: Found(ravel.measure_ravel(s.model, s.dictionary, s.options.ravel, True))),
    "detection": Group("do explanations of latents tell where they fire?", detection, DETECTION),
    "meta": Group("how far the decoder's rows are made of a few common directions",
                  lambda s: Found(meta.measure_meta(s.dictionary, s.options.meta, progress=True)), META),
}  # fmt: skip
"""By name, in the order in which they are measured."""

SUITES: dict[str, tuple[str, ...]] = {"core": (CORE,), "full": tuple(GROUPS)}


class Measured(NamedTuple):
    """Scores of a suite."""

    evaluation: Evaluation
    details: dict[str, dict[str, Any]]
    """By group."""
    skipped: dict[str, str]
    """Groups that could not be measured, and why."""
    about: dict[str, str]
    """Meaning of every score, in a line."""


def measure(subject: Subject, names: Iterable[str], kept: KeptParts | None = None) -> Measured:
    """Measure some groups, in the order of the table.

    Args:
        kept: where finished groups are kept, and read in place of being measured again.

    Raises:
        InputError: the dictionary is not of this model, or the core cannot be measured; from other groups never.
    """
    kept = kept or KeptParts()
    wanted, details, skipped = [name for name in GROUPS if name in set(names)], {}, {}
    evaluation = _core(subject, kept) if CORE in wanted else _nothing(subject)
    about = described(evaluation.scores, GROUPS[CORE])
    for name in wanted:
        if name == CORE:
            continue
        try:
            part = _group(subject, name, kept)
        except InputError as reason:
            log.warning("%s is skipped: %s", name, reason)
            skipped[name] = str(reason)
            continue
        evaluation = replace(evaluation, scores={**evaluation.scores, **part.scores})
        about |= described(part.scores, GROUPS[name])
        if part.details:
            details[name] = part.details
    return Measured(evaluation, details, skipped, about)


def described(scores: Iterable[str], group: Group) -> dict[str, str]:
    """The meaning of each score; the group's own line where the group does not tell it."""
    return {
        score: next((text for name, text in group.scores.items() if fnmatchcase(score, name)), group.about)
        for score in scores
    }


def _group(subject: Subject, name: str, kept: KeptParts) -> Found:
    """One group's result, measured now or before a stop."""
    if (before := kept.read(name)) is not None:
        return Found(before["scores"], before["details"])
    part = GROUPS[name].measure(subject)
    kept.keep(name, part.scores, details=part.details)
    return part


def _core(subject: Subject, kept: KeptParts) -> Evaluation:
    if (before := kept.read(CORE)) is not None:
        return Evaluation(**before)
    evaluation = evaluate(
        subject.model, subject.corpus, subject.dictionary, subject.options.evaluation, folder=kept.inside(CORE)
    )
    kept.keep(CORE, **{**vars(evaluation)})
    return evaluation


def _nothing(subject: Subject) -> Evaluation:
    """An evaluation without scores yet."""
    site = subject.dictionary.check(subject.model).site
    return Evaluation(repr(subject.dictionary), subject.model.name, str(site), "see each score", {})
