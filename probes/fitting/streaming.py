"""`StreamedProbes`: a consumer that trains probes on every token of labelled documents, and keeps none of them.

Kinds in closed form sum moments in fp64, which is exact: the same probes as on all rows in memory, up to the order of
summation. `logistic` takes one step of Adam a batch and ends in a running mean of its weights that forgets the early
ones (polynomial-decay averaging, Shamir and Zhang 2013, arXiv 1212.1824); of more than two classes it fits each against
the rest. It scales rows by what the first batch gives and weighs classes by the rows seen so far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from ...lab.errors import InputError, unknown
from ...lab.models.fingerprint import parameter_hash
from ...lab.models.sites import Site
from ...lab.storage import State
from ...lab.streams.activation_stream import Batch
from ...saes.dictionary import Dictionary
from ..labels import Labels, Source
from ..probe import Probe
from .fits import FitConfig, fit_closed, folded
from .logistic import LogisticSteps
from .moments import CLOSED, Affine, Moments
from .scaling import Scaling

STREAMED = (*CLOSED, "logistic")
"""Kinds that can be fitted on rows that are seen once."""
MEMORY = 8
"""Exponent of the running mean of weights: about the last eighth of the steps weighs most of it."""


@dataclass(frozen=True)
class StreamedFit:
    """How probes are trained on a stream."""

    rows: int | None = None
    """Labelled rows to train on; None reads to the end of the stream."""
    lr: float = 1e-3
    """Learning rate of the logistic probe's Adam."""
    fit: FitConfig = field(default_factory=FitConfig)
    """Scaling, class weights, penalty and shrinkage."""

    def __post_init__(self) -> None:
        if (self.rows is not None and self.rows < 1) or not self.lr > 0:
            raise InputError(f"rows must be at least 1 and lr above 0, got {self.rows} and {self.lr}")


class StreamedProbes:
    """Trains probes of several kinds on the rows of one site, each labelled as its document.

    Args:
        labels: classes, one for each document.
        kinds: some of `STREAMED`.
        units: the labels to train on; the others' documents are passed over, and can be tested on.
        documents: the id of every label's document in the corpus; None numbers them from 0.
        dictionary: read its codes in place of activations.
        model: fingerprint that the probes carry.

    Raises:
        InputError: a kind that cannot be streamed, or labels that are numbers.
    """

    kind = "probes"

    def __init__(
        self,
        labels: Labels,
        kinds: Sequence[str],
        site: Site,
        config: StreamedFit | None = None,
        *,
        units: Int[Tensor, " some"] | None = None,
        documents: Int[Tensor, " units"] | None = None,
        dictionary: Dictionary | None = None,
        model: Mapping[str, Any] | None = None,
        name: str | None = None,
    ) -> None:
        for kind in kinds:
            if kind not in STREAMED:
                raise unknown("kind of probe on a stream", kind, STREAMED)
        labels.require_classes("streamed")
        self.kinds, self.sites, self.config = tuple(kinds), (site,), config or StreamedFit()
        self.name, self.classes, self.dictionary = name or f"probes-{site}", labels.classes, dictionary
        codes = "" if dictionary is None else parameter_hash(dictionary)
        self.source = Source(str(site), None, codes, "token", model or {})
        chosen = torch.arange(len(labels)) if units is None else torch.as_tensor(units)
        ids = (torch.arange(len(labels)) if documents is None else torch.as_tensor(documents))[chosen]
        self._ids, order = ids.sort()
        self._y = labels.y[chosen][order]
        self.seen = torch.zeros(len(self.classes), dtype=torch.int64)
        """Rows of every class so far."""
        self.entropy = torch.zeros(2, dtype=torch.float64)
        """Summed cross-entropy and batches since the last log."""
        self.moments: Moments | None = None
        self.steps: LogisticSteps | None = None
        self.scaling: Scaling | None = None
        self.mean: dict[str, Tensor] = {}
        self.batches = 0

    @property
    def done(self) -> bool:
        """True once the rows that were asked for have been seen."""
        return self.config.rows is not None and int(self.seen.sum()) >= self.config.rows

    def step(self, batch: Batch) -> None:
        """Learn from the rows of labelled documents."""
        document = batch.origin[:, 0].contiguous()
        place = torch.searchsorted(self._ids, document).clamp_max(len(self._ids) - 1)
        rows = (self._ids[place] == document).nonzero()[:, 0]
        if not len(rows):
            return
        y = self._y[place[rows]]
        acts = batch.acts[self.sites[0]]
        x = acts.index_select(0, rows.to(acts.device))
        if self.dictionary is not None:
            x = self.dictionary.encode(x.to(self.dictionary.W_dec.device)).to_dense()
        x = x.float().cpu()
        self.seen += torch.bincount(y, minlength=len(self.classes))
        if self.moments is None:
            self._start(x.shape[1])
        if self.moments is not None:
            self.moments.add(x, y)
        if self.steps is not None:
            self._descend(x, y)

    def _start(self, d: int) -> None:
        closed = [kind for kind in self.kinds if kind in CLOSED]
        if closed:
            self.moments = Moments(d, len(self.classes), products=closed != ["mean_difference"])
        if "logistic" in self.kinds and self.steps is None:
            self.steps = LogisticSteps.start(1 if len(self.classes) == 2 else len(self.classes), d, self.config.lr)

    def _descend(self, x: Tensor, y: Tensor) -> None:
        assert self.steps is not None, "there are steps where logistic is asked for"
        if self.scaling is None:
            self.scaling = Scaling.of(x, self.config.fit.scaling_for("logistic", self.source))
        one_hot = F.one_hot(y, len(self.classes)).float()
        targets = one_hot[:, 1:] if len(self.classes) == 2 else one_hot
        weights = torch.ones_like(targets)
        if self.config.fit.balanced:
            in_class, total = self._column_counts(), self.seen.sum()
            weights = (
                torch.where(targets > 0, total / in_class.clamp_min(1), total / (total - in_class).clamp_min(1)) / 2
            )
        self.entropy += torch.stack([self.steps.step(self.scaling(x), targets, weights), torch.ones(())]).double()
        self.batches += 1
        share = (MEMORY + 1) / (self.batches + MEMORY)
        for name in ("weight", "bias"):
            now = getattr(self.steps, name).detach()
            self.mean[name] = now.clone() if name not in self.mean else self.mean[name].lerp(now, share)

    def _column_counts(self) -> Tensor:
        """Rows so far of the class of every column."""
        return (self.seen[1:] if len(self.classes) == 2 else self.seen).float()

    def metrics(self) -> dict[str, int | float]:
        """Rows so far, and the mean cross-entropy (nats) of the logistic probe since the last call."""
        total, batches = self.entropy.tolist()
        self.entropy.zero_()
        return {"rows": int(self.seen.sum()), **({"entropy": total / batches} if batches else {})}

    def probes(self) -> dict[str, Probe]:
        """The probes as they stand, by kind.

        Raises:
            InputError: no row of some class was seen.
        """
        if not bool((self.seen > 0).all()):
            missing = self.classes[int(self.seen.argmin())]
            raise InputError(f"the stream gave no row of class {missing!r}: check that documents and labels agree")
        probes = {}
        if self.moments is not None:
            closed = [kind for kind in self.kinds if kind in CLOSED]
            probes = fit_closed(closed, self.moments, self.classes, self.source, self.config.fit)
        if self.scaling is not None:
            affine = Affine(self.mean["weight"].double(), self.mean["bias"].double(), {"lr": self.config.lr})
            probes["logistic"] = folded("logistic", affine, self.classes, self.source, self.scaling)
        facts = {"rows": int(self.seen.sum()), "weights": self.config.fit.class_weights, "streamed": True}
        return {kind: replace(probes[kind], training={**facts, **probes[kind].training}) for kind in self.kinds}

    def merge(self, other: StreamedProbes) -> None:
        """Add the moments of other rows, for kinds in closed form.

        Raises:
            InputError: `logistic` is among the kinds (its steps depend on the order of rows), or the other trains
                other kinds, classes or columns.
        """
        if "logistic" in (*self.kinds, *other.kinds):
            raise InputError("logistic probes take one step after the other and cannot be merged: use kinds in closed "
                             f"form ({', '.join(CLOSED)})")  # fmt: skip
        if (self.kinds, self.classes, self.source) != (other.kinds, other.classes, other.source):
            raise InputError(f"{other.name} and {self.name} train different probes: merge equal ones")
        if other.moments is None:
            return
        if self.moments is None:
            self._start(other.moments.sums.shape[1])
        assert self.moments is not None, "kinds in closed form have moments"
        self.moments.merge(other.moments)
        self.seen = self.seen + other.seen

    @property
    def progress(self) -> tuple[int, int | None]:
        """Labelled rows seen, and rows asked for."""
        return int(self.seen.sum()), self.config.rows

    def state_dict(self) -> State:
        """Every sum, and the logistic probe's weights, moments and scaling."""
        scaling = {} if self.scaling is None else {"mean": self.scaling.mean, "spread": self.scaling.spread}
        return {
            "seen": self.seen,
            "entropy": self.entropy,
            "moments": {} if self.moments is None else self.moments.state_dict(),
            "steps": {} if self.steps is None else self.steps.state_dict(),
            "scaling": scaling,
            "mean": dict(self.mean),
            "batches": self.batches,
        }

    def load_state_dict(self, state: State) -> None:
        """Continue where `state_dict` was taken."""
        self.seen, self.entropy, self.batches = state["seen"].clone(), state["entropy"].clone(), state["batches"]
        steps, moments = state.get("steps", {}), state.get("moments", {})
        if steps or moments:
            self._start(steps["weight"].shape[1] if steps else moments["sums"].shape[1])
        if moments and self.moments is not None:
            self.moments.load_state_dict(moments)
        if steps and self.steps is not None:
            self.steps.load_state_dict(steps)
        if scaling := state.get("scaling"):
            kind = self.config.fit.scaling_for("logistic", self.source)
            self.scaling = Scaling(kind, scaling["mean"].clone(), scaling["spread"].clone())
        self.mean = {name: tensor.clone() for name, tensor in state.get("mean", {}).items()}

    def save(self, folder: Path) -> None:
        """Write every probe into a folder of its kind."""
        for kind, probe in self.probes().items():
            probe.save(folder / kind)
