"""`monosem bench architectures`: what each architecture reconstructs at equal L0 and rows, beside SAELens' trainer.

SAELens goes first. Where a penalty decides the L0 that it comes to (relu, gated, jumprelu), it is trained with one
coefficient after another until that is the asked L0 (`l0_search`). Ours is then asked for the L0 that SAELens came to,
and where it ends a little beside it, trained once more on the other side and read in between. Both are measured by
their rule at inference, on rows that neither has seen.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from jaxtyping import Float32
from torch import Tensor

from ....saes.dictionary import Dictionary
from ....saes.evaluation.matched_l0 import Curve
from ....saes.files import load
from ....saes.registry import build_trainable
from ....saes.training.trainer import LR_AT_16K, TrainConfig, Trainer
from ...errors import InputError
from ...models.sites import Site
from ...streams.activation_stream import Batch
from ..options import Flat, ModelText
from ..rows import split_rows
from .command import Bench
from .l0_search import Trial, reach_l0
from .peers import SAE_LENS, SaeLens
from .timing import named

log = logging.getLogger(__name__)

CHUNK = 2048
"""Rows encoded at once when scoring."""

DOCUMENTED = 3e-4
"""SAELens' default learning rate."""


STEERED = ("relu", "gated", "jumprelu")
"""Where a penalty decides the L0 that SAELens comes to."""
EXACT = 0.005
"""Two L0 that differ by no more than this share are one."""
WITHIN = 1.02
"""Our FVU over theirs up to which ours is as good."""


class Score(NamedTuple):
    """A dictionary on held-out rows."""

    l0: float
    fvu: float
    unfired: float
    """Share of the latents that no held-out row activates."""


@dataclass(frozen=True)
class BenchArchitectures(Bench):
    """Train every architecture that SAELens has with both libraries on the same rows, and compare at equal L0."""

    example = "monosem bench architectures --architectures topk --rows 20000"

    architectures: str = ",".join(SAE_LENS)
    """Which, comma-separated."""
    n_latents: int = 2048
    """Number of latents."""
    k: int = 32
    """Active latents a row, where it can be asked for."""
    batch: int = 512
    """Rows a step."""
    rows: int = 100_000
    """Rows both train on."""
    held_out: int = 12_000
    """Rows both are measured on."""
    peer_lr: tuple[float, ...] = (DOCUMENTED,)
    """Learning rates of SAELens; its documented one by default."""
    our_lr: bool = False
    """Train SAELens at our learning rate too."""
    trials: int = 6
    """The most trainings of SAELens in search of the coefficient that leads to an L0 of k; 1 for its default one."""
    tolerance: float = 0.05
    """Share of k that the L0 found may be off by."""
    site: str = "resid_post.12"
    """Where the activations come from."""
    source: Flat[ModelText] = field(default_factory=ModelText)
    store: Path | None = None
    """Use this store's rows (written by `monosem harvest`), the last ones held out."""

    def __post_init__(self) -> None:
        for name in ("n_latents", "k", "batch", "held_out", "trials"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.k > self.n_latents:
            raise InputError(f"k must be at most n_latents={self.n_latents}, got {self.k}")
        if not 0 < self.tolerance < 1:
            raise InputError(f"tolerance must lie between 0 and 1, got {self.tolerance:g}")
        if not self.peer_lr and not self.our_lr:
            raise InputError("there is no learning rate for SAELens: give --peer-lr or --our-lr")
        if not all(0 < rate < 1 for rate in self.peer_lr):
            raise InputError(f"peer_lr must lie between 0 and 1, got {', '.join(map(str, self.peer_lr))}")
        if self.rows < self.batch:
            raise InputError(f"rows={self.rows} are less than one batch of {self.batch}: give more rows")
        named(self.architectures, SAE_LENS, "architecture", "--architectures")

    def race(self) -> dict[str, Any]:
        """One line per architecture and learning rate of SAELens: both as l0, fvu, unfired; our FVU to theirs.

        Where ours comes to no L0 on either side of theirs, `as_good` is null: the ratio is then between two L0.
        """
        site = Site.parse(self.site)
        x, held = split_rows(self.source, self.store, site, self.rows, self.held_out, self.batch)
        batches = [part for part in x[: self.rows].split(self.batch) if len(part) == self.batch]
        rates = [*self.peer_lr, *([LR_AT_16K / (self.n_latents / 2**14) ** 0.5] if self.our_lr else [])]
        lines = []
        for name in named(self.architectures, SAE_LENS, "architecture", "--architectures"):
            ours = Ours(name, self.n_latents, batches, held, site)
            for rate in rates:
                found = self._theirs(name, rate, batches, held)
                theirs = found[-1].result
                fvu, used = ours.at(theirs.l0)
                equal = len(used) == 2 or abs(ours.scores[used[0]].l0 / max(theirs.l0, 1e-9) - 1) <= EXACT
                line = {
                    "architecture": name, "peer_lr": rate,
                    "trials": [[trial.coefficient, trial.l0] for trial in found] if name in STEERED else [],
                    "sae-lens": theirs._asdict(), "monosem": {k: ours.scores[k]._asdict() for k in used},
                    "fvu_at_equal_l0": fvu if equal else None, "ratio": fvu / theirs.fvu,
                    "as_good": fvu <= WITHIN * theirs.fvu if equal else None,
                }  # fmt: skip
                log.info("%s", line)
                lines.append(line)
        shape = {"d_in": x.shape[1], "n_latents": self.n_latents, "k": self.k, "batch": self.batch}
        return {"shape": shape, "rows_trained": len(batches) * self.batch, "lines": lines}

    def _theirs(self, name: str, rate: float, batches: list[Tensor], held: Tensor) -> list[Trial[Score]]:
        """SAELens at an L0 of k, or as near as the trials come: the last one. A k that it is told needs no search."""

        def train(coefficient: float) -> tuple[float, Score]:
            peer = SaeLens(batches[0], self.n_latents, self.k, len(batches), TrainConfig().warmup, rate,
                           name, self._options(name, coefficient))  # fmt: skip
            for batch in batches:
                peer.step(batch)
            with TemporaryDirectory() as folder:
                peer.save(Path(folder))
                found = score(load(Path(folder)), held)
            log.info("sae-lens %s, coefficient %.4g: L0 %.4g, FVU %.4g", name, coefficient, found.l0, found.fvu)
            return found.l0, found

        trials = self.trials if name in STEERED else 1
        return reach_l0(train, self.k, 1.0, trials=trials, tolerance=self.tolerance)

    def _options(self, name: str, coefficient: float) -> dict[str, Any]:
        """Options of SAELens' training config; a coefficient of 1 is its own default."""
        match name:
            case "relu" | "gated":
                return {"l1_coefficient": coefficient}
            case "jumprelu":
                return {"jumprelu_sparsity_loss_mode": "quadratic", "target_l0": float(self.k),
                        "l0_coefficient": coefficient}  # fmt: skip
            case "mp":
                return {"max_iterations": self.k}
            case "matryoshka":
                ours = build_trainable(name, d_in=1, n_latents=self.n_latents, k=self.k)
                return {"k": self.k, "matryoshka_widths": list(ours.config.prefixes)}  # pyright: ignore[reportAttributeAccessIssue]
            case _:
                return {"k": self.k}


@dataclass
class Ours:
    """Our dictionaries of one architecture, each trained once, by the k that was asked for."""

    name: str
    n_latents: int
    batches: list[Tensor]
    held: Tensor
    site: Site
    scores: dict[int, Score] = field(default_factory=dict)

    def at(self, l0: float) -> tuple[float, list[int]]:
        """The FVU at that L0, and the k it was read from: one that ends there, or one on either side.

        Where none ends on the other side, as next to n_latents, it is that of the nearest.
        """
        k = self._allowed(l0)
        nearest = self._trained(k)
        if abs(nearest.l0 / max(l0, 1e-9) - 1) <= EXACT:
            return nearest.fvu, [k]
        other = self._allowed(l0 * (l0 / nearest.l0) ** 2 + (1 if nearest.l0 < l0 else -1))
        points = {one.l0: one.fvu for one in (nearest, self._trained(other))}
        if not min(points) <= l0 <= max(points):
            return nearest.fvu, [k]
        return Curve(self.name, tuple(points), tuple(points.values())).at(l0), [k, other]

    def _allowed(self, k: float) -> int:
        return min(max(1, round(k)), self.n_latents)

    def _trained(self, k: int) -> Score:
        if k not in self.scores:
            dictionary = build_trainable(self.name, d_in=self.held.shape[1], n_latents=self.n_latents, k=k)
            trainer = Trainer(dictionary, self.site, TrainConfig(rows=sum(map(len, self.batches))))
            for batch in self.batches:
                trainer.step(Batch({self.site: batch}, torch.zeros(len(batch), 2, dtype=torch.int64)))
            self.scores[k] = score(trainer.folded(), self.held)
            log.info("monosem %s, k %d: L0 %.4g, FVU %.4g", self.name, k, self.scores[k].l0, self.scores[k].fvu)
        return self.scores[k]


@torch.no_grad()
def score(dictionary: Dictionary, held: Float32[Tensor, "rows d"]) -> Score:
    """L0, FVU and the share of latents without a code."""
    active, squares, fired = 0, 0.0, torch.zeros(dictionary.n_latents, dtype=torch.bool)
    for x in held.split(CHUNK):
        code = dictionary.encode(x)
        on = code.values != 0
        active += int(on.sum())
        fired[code.indices[on].long()] = True
        squares += float((dictionary.decode(code) - x).square().sum())
    variance = float((held - held.mean(0)).square().sum())
    return Score(active / len(held), squares / variance, 1 - float(fired.float().mean()))
