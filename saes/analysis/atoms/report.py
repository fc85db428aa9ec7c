"""`measure_atoms`: are these dictionaries the atoms of the model? Uniqueness and faithfulness, all beside their nulls.

What would make the answer yes, and what would show that it is not worth anything:

    q_star near 1 and r2 near 1                           and those of the nulls far from it
    the verdict by maximum, not only by quantile          it is what makes codes unique
    r2 on fresh tokens as on those trained on             else codes are memorised
    all of it unchanged with ten times the tokens         else it is fitted to their number
    r2 without massive activations, and by dimension      else one direction decides it
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from ....lab.errors import InputError
from ....lab.evidence import Evidence
from ....lab.models.sites import Site
from ....lab.rng import generator
from ....lab.runs.first_rows import FirstRows
from ....lab.runs.read import read
from ....lab.streams.activation_stream import ActivationStream, Batch
from ...architectures.basis import Neurons
from ...dictionary import Dictionary
from ...evaluation.nulls import fit_nulls
from .coherence import Coherence, beside_nulls, measure_coherence
from .coordinates import Rotated, random_rotation
from .faithfulness import Faithfulness, l0_steps, require_atoms
from .inner_product import RIDGE, AtomicInnerProduct, SecondMoment
from .results import AtomsOf, AtomsReport
from .uniqueness import stability, threshold_conditions, uniqueness

GROWTH = 10
"""How many times fewer tokens the inner product is also measured on."""
NEURONS = "neurons"


@dataclass(frozen=True)
class AtomsConfig:
    """How much to measure."""

    tokens: int = 16_384
    """Fresh rows to measure on, and as many of those seen before; fewer if a stream ends."""
    sink_tokens: int = 8_192
    """Rows to measure on with massive activations among them."""
    moment_tokens: int = 100_000
    """Rows the inner product is measured on; also on a tenth of them."""
    fit_tokens: int = 4_096
    """Rows to fit nulls on: the first of those seen before."""
    ridge: float = RIDGE
    """Added to every variance before it is inverted, as a share of the mean variance."""
    centred: bool = True
    """Invert the covariance; else E[x x^T], for atoms that are activations themselves and carry their mean (ITDA)."""
    seed: int = 0
    """Of random atoms, rotations, the untrained null and the bootstrap."""

    def __post_init__(self) -> None:
        for name, least in {"tokens": 1, "sink_tokens": 0, "moment_tokens": 20, "fit_tokens": 2}.items():
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 <= self.ridge < 1:
            raise InputError(f"ridge is a share of the mean variance from 0 to below 1, got {self.ridge}")

    def product(self, moment: SecondMoment) -> AtomicInnerProduct:
        """The inner product of these moments."""
        return AtomicInnerProduct.of_moment(moment, self.ridge, self.centred)


class Seen(NamedTuple):
    """The moments and rows that a report takes from the stream of training text."""

    site: Site
    moment: SecondMoment
    tenth: SecondMoment
    """The same of a tenth of the rows."""
    first: FirstRows
    """The first rows: those any dictionary trained on this stream has seen."""

    def rows(self, n: int) -> Float[Tensor, "rows d"]:
        """The first n of them."""
        return self.first.acts[:n].float()


def read_seen(
    stream: ActivationStream | Iterable[Batch], site: Site, config: AtomsConfig | None = None, *, progress: bool = False
) -> Seen:
    """Read the stream of training text once: the inner product's moments, and its first rows.

    Raises:
        InputError: the stream ends after fewer rows than a tenth of `moment_tokens`, or than `fit_tokens`.
    """
    config = config or AtomsConfig()
    moment = SecondMoment(site, rows=config.moment_tokens)
    tenth = SecondMoment(site, rows=config.moment_tokens // GROWTH, name=f"tenth-of-moment-{site}")
    first = FirstRows(site, min(max(config.tokens, config.fit_tokens), config.moment_tokens), whole=True)
    read(stream, [moment, tenth, first], description="inner product", progress=progress)
    if not tenth.done or first.rows < config.fit_tokens:
        raise InputError(
            f"the training text ends after {moment.rows} rows, and the inner product takes {config.moment_tokens} "
            f"(a tenth at least), the nulls {config.fit_tokens}: give more text or smaller numbers"
        )
    return Seen(site, moment, tenth, first)


def measure_atoms(
    dictionaries: Mapping[str, Dictionary],
    seen: Seen,
    fresh: ActivationStream | Iterable[Batch],
    with_sinks: ActivationStream | Iterable[Batch] | None = None,
    config: AtomsConfig | None = None,
    *,
    held_out: str = "",
    progress: bool = False,
) -> AtomsReport:
    """Report on neurons and on every dictionary given.

    Args:
        dictionaries: of the site of `seen`, by name.
        seen: see `read_seen`; the inner product and the nulls come from there.
        fresh: rows of documents that no dictionary was trained on.
        with_sinks: such rows that nothing was left out of, position 0 and massive activations among them.
        held_out: what the fresh documents are.

    Raises:
        InputError: a name that is taken, a dictionary that does not reconstruct the site, or a stream without rows.
    """
    config = config or AtomsConfig()
    if NEURONS in dictionaries:
        raise InputError(f"a dictionary cannot be named {NEURONS!r}: those are in every report")
    for dictionary in dictionaries.values():
        require_atoms(dictionary)
    product, tenth = (config.product(moment) for moment in (seen.moment, seen.tenth))
    x = seen.rows(config.fit_tokens)
    subjects = {NEURONS: Neurons.fit(x, x.shape[1]), **dictionaries}
    nulls = {name: _nulls(one, x, seen, config.seed) for name, one in subjects.items()}
    keyed = {f"{name}/{null}": one for name, found in nulls.items() for null, one in found.items()}

    def measured(
        of: Mapping[str, Dictionary], stream: ActivationStream | Iterable[Batch], rows: int, what: str
    ) -> Faithfulness:
        consumer = Faithfulness(of, seen.site, product, subjects=tuple(subjects), rows=rows, refitted=what == "fresh")
        read(stream, consumer, description=what, progress=progress)
        if not consumer.rows:
            raise InputError(f"there is not one {what} row to measure: give more held-out text")
        return consumer

    untrained = {key: one for key, one in keyed.items() if key.endswith("/untrained")}
    found = {
        "": measured({**subjects, **keyed}, fresh, config.tokens, "fresh"),
        "_seen": measured({**subjects, **untrained}, seen.first.batches, config.tokens, "seen"),
    }
    if with_sinks is not None and config.sink_tokens:
        found["_with_sinks"] = measured({**subjects, **keyed}, with_sinks, config.sink_tokens, "with sinks")
    reports = []
    for name, dictionary in tqdm(subjects.items(), desc="coherence", disable=not progress):
        coherence = measure_coherence(dictionary.W_dec, product, config.seed)
        scores = _faithfulness_scores(name, tuple(nulls[name]), found, held_out, config.seed)
        scores |= _coherence_scores(name, dictionary, coherence, tenth, found[""], config.seed)
        reports.append(_report(name, dictionary, scores, coherence, found[""]))
    rows = {"product": seen.moment.rows, **{f"rows{what}": one.rows for what, one in found.items()}}
    return AtomsReport(reports, str(seen.site), held_out, product, rows)


def _nulls(dictionary: Dictionary, x: Tensor, seen: Seen, seed: int) -> dict[str, Dictionary]:
    rotation = random_rotation(x.shape[1], generator(seed, "rotation null"))
    return {**fit_nulls(x, dictionary, seed), "rotation": Rotated(dictionary, rotation, seen.moment.mean.float())}


def _faithfulness_scores(
    name: str, nulls: tuple[str, ...], found: Mapping[str, Faithfulness], held_out: str, seed: int
) -> dict[str, Evidence]:
    """Every score on fresh rows, and r2 on the others."""
    scores: dict[str, Evidence] = {}
    for what, measure in found.items():
        beside = {null: key for null in nulls if (key := f"{name}/{null}") in measure.dictionaries}
        told = "" if what == "_seen" else held_out
        mine = measure.evidence(name, beside, only=("r2",) if what else None, held_out=told, seed=seed)
        scores |= {f"{score}{what}": replace(one, name=f"{score}{what}") for score, one in mine.items()}
    return scores


def _coherence_scores(
    name: str, dictionary: Dictionary, coherence: Coherence, tenth: AtomicInnerProduct, fresh: Faithfulness, seed: int
) -> dict[str, Evidence]:
    """q* and its twin of a tenth of the tokens, and coherence quantiles."""
    l0 = fresh.l0(name)
    of_tenth = beside_nulls(dictionary.W_dec, tenth, seed)
    scores = {}
    for score, (stats, nulls) in {"q_star": (coherence.data, coherence.nulls), "q_star_tenth": of_tenth}.items():
        interval = fresh.sums.interval(lambda sums, of=stats: stability(of.steps, l0_steps(sums, name)), seed=seed)
        scores[score] = Evidence(
            score, stability(stats.steps, l0), interval,
            {null: stability(of.steps, l0) for null, of in nulls.items()},
            len(fresh.sums), better="higher", note="quantile-uniqueness is not uniqueness: see the verdict by maximum",
        )  # fmt: skip
    for score, (value, others) in coherence.scores().items():
        scores[score] = Evidence(score, value, None, others, coherence.data.atoms, "atoms")
    return scores


def _report(
    name: str, dictionary: Dictionary, scores: dict[str, Evidence], coherence: Coherence, fresh: Faithfulness
) -> AtomsOf:
    l0, (smallest, largest) = fresh.l0(name), fresh.magnitudes[name]
    threshold = None
    if largest > 0:
        threshold = threshold_conditions(coherence.data.maximum, max(l0.maximum, 1.0), smallest, largest)
    rows = dictionary.provenance.training.get("rows")
    return AtomsOf(
        name, repr(dictionary), scores, uniqueness(coherence.data.steps, coherence.data.maximum, l0), threshold,
        coherence, rows, float((fresh.firing[name] == 0).double().mean()),
    )  # fmt: skip
