"""`evaluate`: the core scores of one dictionary and its nulls on held-out text.

Two passes over the same documents. The first runs the model up to the site and feeds the rows to the
dictionary and to every null at once; the second runs the whole model, clean and spliced, on fewer tokens.
Nulls are fitted on the first rows of the corpus, and the documents they came from take no part in any score.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from ..lab.errors import InputError, unknown
from ..lab.harvest import NO_LIMIT, Chunk, Harvest
from ..lab.models import HookedModel
from ..lab.packing import TokenBatch
from ..lab.sites import Site
from ..lab.streams import Batch
from ..lab.text import Corpus
from .baselines import fit_nulls
from .core_metrics_saebench import saebench_scores, whole_rows
from .core_metrics_weights import weight_evidence
from .dictionary import Dictionary
from .metrics import Reconstruction, total_variance
from .scores import Evaluation
from .splicing import ABLATIONS, CLEAN, splice

DICTIONARY = "dictionary"
"""Name of what is evaluated, among the nulls that are spliced with it."""


@dataclass(frozen=True)
class EvaluationConfig:
    """How much of a corpus to measure."""

    tokens: int = 65_536
    """Rows to measure reconstruction on; fewer if the corpus ends."""
    ce_tokens: int = 8_192
    """Next-token predictions to measure the spliced model on; fewer if the corpus ends."""
    fit_tokens: int = 8_192
    """Rows to fit nulls on, where none are given; their documents are not measured."""
    spliced: tuple[str, ...] = ("untrained", "pca")
    """Nulls to splice too; each costs one more forward pass a token."""
    compat: Literal["none", "saebench"] = "none"
    """`saebench` adds SAEBench's own numbers, quirks included; see `core_metrics_saebench`."""
    seed: int = 0
    """Of the untrained null and of the bootstrap."""

    def __post_init__(self) -> None:
        if self.compat not in ("none", "saebench"):
            raise unknown("compatibility", self.compat, ("none", "saebench"))
        for name in ("tokens", "ce_tokens", "fit_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")


def evaluate(
    model: HookedModel,
    corpus: Corpus,
    dictionary: Dictionary,
    config: EvaluationConfig | None = None,
    *,
    nulls: Mapping[str, Dictionary] | None = None,
    held_out: str | None = None,
    progress: bool = True,
    **fields: Any,
) -> Evaluation:
    """Score a dictionary and its nulls on a corpus it was not trained on.

    Args:
        corpus: held-out text; read from its beginning, not past its end.
        dictionary: measured at its provenance's site; rows above its `norm_limit` are left out, and left as
            they are in splices.
        config: how much to measure; its defaults if None.
        nulls: by name; None fits `untrained`, `pca` and `neurons` on the first rows of the corpus.
        held_out: what the documents are, for the report; None says what the corpus's split says.
        progress: show bars on stderr.
        **fields: fields of `EvaluationConfig` to set, over `config`.

    Raises:
        InputError: a count below 1; the dictionary names no site, was trained on another model or has another
            width than its site; an unknown null to splice; or the corpus has no usable token left to measure.
    """
    for name in fields:
        if name not in EvaluationConfig.__dataclass_fields__:
            raise unknown("evaluation option", name, EvaluationConfig.__dataclass_fields__)
    config = replace(config or EvaluationConfig(), **fields)
    site = matching_site(model, dictionary)
    held_out = _held_out(corpus) if held_out is None else held_out
    reading = _Reading(model, corpus, site, dictionary.provenance.norm_limit)
    if nulls is None:
        nulls = fit_nulls(reading.first_rows(config.fit_tokens), dictionary, config.seed)
    replacing = {DICTIONARY: dictionary, **_to_splice(nulls, config)}

    mine = Reconstruction(dictionary, site, rows=config.tokens)
    theirs = {name: Reconstruction(null, site, rows=config.tokens) for name, null in nulls.items()}
    reading.feed([mine, *theirs.values()], progress)
    losses = splice(
        model, reading.batches(), site, replacing, mine.mean,
        tokens=config.ce_tokens, norm_limit=dictionary.provenance.norm_limit, progress=progress,
    )  # fmt: skip
    told = {"held_out": held_out, "seed": config.seed}
    published = config.compat == "saebench"
    return Evaluation(
        dictionary=repr(dictionary),
        model=model.name,
        site=str(site),
        held_out=held_out,
        scores=mine.evidence(theirs, **told)
        | losses.evidence(DICTIONARY, list(replacing)[1:], **told)
        | weight_evidence(dictionary, nulls),
        counts={"rows": mine.rows, "documents": len(mine.sums), **reading.counts, **losses.counts},
        references={"variance": total_variance(mine.sums.total)}
        | {f"ce_{name}": losses.cross_entropy(name) for name in (CLEAN, *ABLATIONS, *replacing)},
        histograms={"density": mine.density_histogram()},
        saebench=saebench_scores(model, whole_rows(reading.batches()), site, dictionary, _ends(corpus))
        if published
        else {},
    )


def _to_splice(nulls: Mapping[str, Dictionary], config: EvaluationConfig) -> dict[str, Dictionary]:
    """The nulls to splice. Those spliced by default may be missing, those asked for may not."""
    if DICTIONARY in nulls:
        raise InputError(f"a null cannot be named {DICTIONARY!r}: that is what is evaluated")
    for name in config.spliced:
        if name not in nulls and config.spliced != EvaluationConfig.spliced:
            raise unknown("null to splice", name, nulls)
    return {name: nulls[name] for name in config.spliced if name in nulls}


def matching_site(model: HookedModel, dictionary: Dictionary) -> Site:
    """The site the dictionary was trained on, once model and width are known to be its own.

    Raises:
        InputError: the dictionary names no site, was trained on another model or has another width than its site.
    """
    provenance = dictionary.provenance
    if provenance.site is None:
        raise InputError("the dictionary names no site: set its provenance.site, such as 'resid_post.12'")
    found = model.fingerprint()
    # a model's name may be a path; its parameters identify it
    key = "parameters" if "parameters" in provenance.model else "name"
    if key in provenance.model and provenance.model[key] != found[key]:
        raise InputError(
            f"the dictionary was trained on {provenance.model.get('name')!r} ({key} {provenance.model[key]}) "
            f"and the model is {model.name!r} ({key} {found[key]}): load the model it was trained on"
        )
    site = model.site(provenance.site)
    if model.width(site) != dictionary.d_in:
        raise InputError(
            f"{site} of {model.name!r} has width {model.width(site)}, the dictionary d_in={dictionary.d_in}: "
            "use it on the model and site it was trained on"
        )
    return site


def _ends(corpus: Corpus) -> list[int]:
    """Ids that begin, end and pad a row."""
    tokenizer = corpus.tokenizer
    return [i for i in (tokenizer.bos, tokenizer.separator, tokenizer.padding) if i is not None]


def _held_out(corpus: Corpus) -> str:
    split, share = corpus.config.split, corpus.config.heldout
    if split == "heldout":
        return f"held-out documents of {corpus.source.name} (share {share:g})"
    return f"NOT known to be held out: split {split!r} of {corpus.source.name}"


@dataclass
class _Reading:
    """One read of the corpus: first the rows that nulls are fitted on, then the rows that are measured."""

    model: HookedModel
    corpus: Corpus
    site: Site
    norm_limit: float | None
    start: dict[str, Any] | None = None
    """The corpus's state where the measured documents begin."""
    fitted: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    """Documents that nulls were fitted on; one of them may go on after `start`."""
    counts: dict[str, int] = field(default_factory=lambda: {"dropped_special": 0, "dropped_norm": 0})
    """Positions read by `feed` that gave no row, and why."""

    def _chunks(self) -> Iterator[Chunk]:
        model = self.model
        harvest = Harvest(model, self.corpus, (self.site,), model.dtype, torch.device(model.device), epochs=1)
        return harvest.chunks(self.start, {self.site: NO_LIMIT if self.norm_limit is None else self.norm_limit})

    def first_rows(self, n: int) -> Float[Tensor, "rows d"]:
        """At least n rows, unless the corpus ends; their documents are left out of what follows."""
        acts, documents, rows = [], [], 0
        for chunk in self._chunks():
            acts.append(chunk.acts[self.site])
            documents.append(chunk.origin[:, 0])
            self.start = chunk.state
            rows += len(chunk.origin)
            if rows >= n:
                self.fitted = torch.cat(documents).unique()
                return torch.cat(acts).float()
        raise InputError(
            f"{self.corpus!r} ends after {rows} usable rows, and fitting the nulls takes {n} of its own: "
            "give more text, a smaller fit_tokens, or nulls fitted elsewhere"
        )

    def feed(self, consumers: Sequence[Reconstruction], progress: bool) -> None:
        """Step every consumer on every chunk until all are done or the corpus ends."""
        first = consumers[0]
        with tqdm(total=first.limit, unit="tok", desc="reconstruct", disable=not progress) as bar:
            for chunk in self._chunks():
                fresh = ~torch.isin(chunk.origin[:, 0], self.fitted)
                rows = chunk.acts[self.site]
                batch = Batch({self.site: rows[fresh.to(rows.device)]}, chunk.origin[fresh])
                for consumer in consumers:
                    consumer.step(batch)
                self.counts["dropped_special"] += chunk.special
                self.counts["dropped_norm"] += chunk.too_long[self.site]
                bar.update(first.rows - bar.n)
                if first.done:
                    return
        if not first.rows:
            raise InputError(f"{self.corpus!r} has no usable row left to measure: give more text, or fewer fit_tokens")

    def batches(self) -> Iterator[TokenBatch]:
        """The measured part again, as tokens; what nulls were fitted on is unusable, or left out by the row."""
        for batch, _ in self.corpus.iterate(self.start, epochs=1):
            usable = batch.usable & ~torch.isin(batch.doc, self.fitted)
            rows = usable.any(1)
            if rows.any():
                yield TokenBatch(*(field[rows] for field in batch._replace(usable=usable)))
