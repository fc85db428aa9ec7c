"""`monosem bench architectures`: what each architecture reconstructs at equal L0 and rows, beside SAELens' trainer.

SAELens goes first; where its penalty decides the L0, ours is then asked for the L0 that it came to, so that both are
read at the same one. Both are measured by their rule at inference, on rows that neither has seen.
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

from ...saes.dictionary import Dictionary
from ...saes.files import build_trainable, load
from ...saes.training import LR_AT_16K, TrainConfig, Trainer
from ..errors import InputError
from ..sites import Site
from ..streams import Batch
from .options import Flat, ModelText
from .peers import SAE_LENS, SaeLens
from .rows import split_rows
from .timing import named

log = logging.getLogger(__name__)

CHUNK = 2048
"""Rows encoded at once when scoring."""

DOCUMENTED = 3e-4
"""SAELens' default learning rate."""


STEERED = ("relu", "gated", "jumprelu")
"""Where a penalty decides the L0 that SAELens comes to."""


class Score(NamedTuple):
    """A dictionary on held-out rows."""

    l0: float
    fvu: float
    unfired: float
    """Share of the latents that no held-out row activates."""


@dataclass(frozen=True)
class BenchArchitectures:
    """Train every architecture that SAELens has with both libraries on the same rows, and compare at equal L0."""

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
    peer_lr: tuple[float, ...] = ()
    """Learning rates of SAELens; by default its documented one and ours."""
    penalty: float = 1.0
    """SAELens' coefficient of the L1 penalties of relu and gated (its default is 1)."""
    site: str = "resid_post.12"
    """Where the activations come from."""
    source: Flat[ModelText] = field(default_factory=ModelText)
    store: Path | None = None
    """Use this store's rows (written by `monosem harvest`), the last ones held out."""

    def run(self) -> dict[str, Any]:
        """One line per architecture and learning rate of SAELens: both as l0, fvu, unfired; our FVU to theirs."""
        names, site = named(self.architectures, SAE_LENS), Site.parse(self.site)
        if self.rows < self.batch:
            raise InputError(f"rows={self.rows} are less than one batch of {self.batch}: give more rows")
        x, held = split_rows(self.source, self.store, site, self.rows, self.held_out, self.batch)
        batches = [part for part in x[: self.rows].split(self.batch) if len(part) == self.batch]
        rates = self.peer_lr or (DOCUMENTED, LR_AT_16K / (self.n_latents / 2**14) ** 0.5)
        lines = []
        for name in names:
            ours: dict[int, Score] = {}
            for rate in rates:
                theirs = self._theirs(name, rate, batches, held)
                k = min(max(1, round(theirs.l0)), self.n_latents) if name in STEERED else self.k
                if k not in ours:
                    ours[k] = self._ours(name, k, batches, held, site)
                line = {"architecture": name, "peer_lr": rate, "k": k, "monosem": ours[k]._asdict(),
                        "sae-lens": theirs._asdict(), "ratio": ours[k].fvu / theirs.fvu}  # fmt: skip
                log.info("%s", line)
                lines.append(line)
        shape = {"d_in": x.shape[1], "n_latents": self.n_latents, "k": self.k, "batch": self.batch}
        return {"shape": shape, "rows_trained": len(batches) * self.batch, "lines": lines}

    def _theirs(self, name: str, rate: float, batches: list[Tensor], held: Tensor) -> Score:
        peer = SaeLens(batches[0], self.n_latents, self.k, len(batches), TrainConfig().warmup, rate,
                       name, self._options(name))  # fmt: skip
        for batch in batches:
            peer.step(batch)
        with TemporaryDirectory() as folder:
            peer.save(Path(folder))
            return score(load(Path(folder)), held)

    def _options(self, name: str) -> dict[str, Any]:
        """What SAELens must be told."""
        match name:
            case "relu" | "gated":
                return {"l1_coefficient": self.penalty}
            case "jumprelu":
                return {"jumprelu_sparsity_loss_mode": "quadratic", "target_l0": float(self.k)}
            case "matryoshka":
                ours = build_trainable(name, d_in=1, n_latents=self.n_latents, k=self.k)
                return {"k": self.k, "matryoshka_widths": list(ours.config.prefixes)}  # pyright: ignore[reportAttributeAccessIssue]
            case _:
                return {"k": self.k}

    def _ours(self, name: str, k: int, batches: list[Tensor], held: Tensor, site: Site) -> Score:
        dictionary = build_trainable(name, d_in=held.shape[1], n_latents=self.n_latents, k=k)
        trainer = Trainer(dictionary, site, TrainConfig(rows=sum(map(len, batches))))
        for batch in batches:
            trainer.step(Batch({site: batch}, torch.zeros(len(batch), 2, dtype=torch.int64)))
        return score(trainer.folded(), held)


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
