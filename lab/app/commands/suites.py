"""Groups of metrics by name, and the suites they make up: what `monosem eval` can measure.

A group is one line here. It gives scores, every one an `Evidence`, and perhaps details for a file of its own. A group
that cannot be measured on this model, or lacks data that is not installed, is skipped with its reason; the core is not.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
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
from ....saes.evaluation import reconstruction as metrics
from ....saes.evaluation import splicing
from ....saes.evaluation import weights as core_metrics_weights
from ....saes.evaluation.evaluate import EvaluationConfig, evaluate
from ....saes.evaluation.results import Evaluation
from ...errors import InputError
from ...evidence import Evidence
from ...models.hooked_model import HookedModel
from ...text.corpus import Corpus

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
    """What is measured, and how."""

    model: HookedModel
    dictionary: Dictionary
    corpus: Corpus
    """Documents the dictionary was not trained on."""
    options: SuiteOptions


class Found(NamedTuple):
    """What one group gave."""

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
    found = autointerp.measure_detection(
        subject.model, subject.corpus, subject.dictionary, subject.options.detection, progress=True
    )
    return Found(found.scores, found.to_json())


class Group(NamedTuple):
    """One line of the table."""

    about: str
    measure: Callable[[Subject], Found]
    modules: tuple[Any, ...] = ()
    """Modules whose texts explain the scores one by one."""


GROUPS: dict[str, Group] = {
    CORE: Group("reconstruction, sparsity, weights and spliced losses on held-out documents",
                lambda s: Found(_core(s).scores), (metrics, splicing, core_metrics_weights)),
    "probing": Group("k-sparse probes of the labels of texts, mean over data sets", probing, (texts,)),
    "absorption": Group("first-letter features absorbed by, or split over, other latents",
                        lambda s: Found(absorption.measure_absorption(s.model, s.dictionary, s.options.absorption,
                                                                      progress=True)),
                        (absorption,)),
    "tpp": Group("targeted probe perturbation: does erasing a class's latents erase it alone? Known to mislead",
                 lambda s: Found(tpp.measure_tpp(s.model, s.dictionary, s.options.tpp, True)), (tpp,)),
    "scr": Group("spurious correlation removal by erasing latents. Known to mislead",
                 lambda s: Found(tpp.measure_scr(s.model, s.dictionary, s.options.scr, True)), (tpp,)),
    "ravel": Group("attributes of cities swapped through latents: cause and isolation",
                   lambda s: Found(ravel.measure_ravel(s.model, s.dictionary, s.options.ravel, True)), (ravel,)),
    "detection": Group("do explanations of latents tell where they fire?", detection, (autointerp,)),
    "meta": Group("how far the decoder's rows are made of a few common directions",
                  lambda s: Found(meta.measure_meta(s.dictionary, s.options.meta, progress=True)), (meta,)),
}  # fmt: skip
"""By name, in the order in which they are measured."""

SUITES: dict[str, tuple[str, ...]] = {"core": (CORE,), "full": tuple(GROUPS)}


class Measured(NamedTuple):
    """What a suite found."""

    evaluation: Evaluation
    details: dict[str, dict[str, Any]]
    """By group."""
    skipped: dict[str, str]
    """Groups that could not be measured, and why."""
    about: dict[str, str]
    """What every score is, in a line."""


def measure(subject: Subject, names: Iterable[str]) -> Measured:
    """Measure some groups, in the order of the table.

    Raises:
        InputError: the dictionary is not of this model, or the core cannot be measured; from other groups never.
    """
    wanted, details, skipped = [name for name in GROUPS if name in set(names)], {}, {}
    evaluation = _core(subject) if CORE in wanted else _nothing(subject)
    about = described(evaluation.scores, GROUPS[CORE])
    for name in wanted:
        if name == CORE:
            continue
        try:
            found = GROUPS[name].measure(subject)
        except InputError as reason:
            log.warning("%s is skipped: %s", name, reason)
            skipped[name] = str(reason)
            continue
        evaluation = replace(evaluation, scores={**evaluation.scores, **found.scores})
        about |= described(found.scores, GROUPS[name])
        if found.details:
            details[name] = found.details
    return Measured(evaluation, details, skipped, about)


def described(scores: Iterable[str], group: Group) -> dict[str, str]:
    """What each score is, from the tables in the texts of the group's modules; the group's own line if in none.

    A table has a score's name (or several, with commas) after four spaces and its meaning after three more; lines that
    go on are indented deeper. Capitals in a name stand for any value, as in `detection_JUDGE`.
    """
    known = {name: text for module in group.modules for name, text in table(module.__doc__ or "").items()}
    patterns = {re.compile(re.sub("[A-Z]+", "[a-z0-9]+", name)): text for name, text in known.items()}
    return {
        score: next((text for pattern, text in patterns.items() if pattern.fullmatch(score)), group.about)
        for score in scores
    }


ENTRY = re.compile(r"^ {4}(\w+(?:, \w+)*) {3,}(\S.*(?:\n {8,}\S.*)*)", re.MULTILINE)


def table(text: str) -> dict[str, str]:
    """Names and meanings of a table in a module's text."""
    found = {}
    for names, meaning in ENTRY.findall(text):
        found |= dict.fromkeys(names.split(", "), re.sub(r"\s+", " ", meaning))
    return found


def _core(subject: Subject) -> Evaluation:
    return evaluate(subject.model, subject.corpus, subject.dictionary, subject.options.evaluation)


def _nothing(subject: Subject) -> Evaluation:
    """An evaluation without scores yet."""
    site = subject.dictionary.check(subject.model).site
    return Evaluation(repr(subject.dictionary), subject.model.name, str(site), "see each score", {})
