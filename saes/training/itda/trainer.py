"""`ITDATrainer`: builds an ITDA from the activations of one site in a single pass (Leask et al. 2025, Algorithm 2).

What the dictionary explains badly becomes part of it. Of each batch, in order: rows taken untested while there are too
few atoms to test with; k steps of pursuit for all rows at once; then the rows that are lost, worst first, each tried
once more on all atoms that came before it. That keeps similar rows of one batch from all entering; the released code
lets them in (`dedupe="none"`).

Which atoms enter depends on the order of rows, so two halves of a stream built apart do not merge into one ITDA.
Atoms are chosen by matching pursuit, as in the released code, whatever pursuit the dictionary encodes with later.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float32
from torch import Tensor

from ....lab.errors import InputError
from ....lab.models.sites import Site
from ....lab.runs.read import read
from ....lab.storage import State
from ....lab.streams.activation_stream import ActivationStream, Batch
from ....lab.streams.token_stream import TokenStream
from ...architectures.itda.dictionary import ITDA, ITDAConfig
from ...dictionary import Dictionary, Provenance
from ...place import AUTOENCODER, Place
from ..on_stream import Asked, known_from, trainer_on, warn_unknown
from .growing import GrowingAtoms
from .growth_config import GrowthConfig

__all__ = ["GrowthConfig", "ITDATrainer", "build_itda"]

MOST_WITH_GRAM = 1 << 14
"""Atoms up to which a Gram matrix is kept where rows are not tried one after another."""
SUMS = ("lost", "added", "rows")
"""What is counted between two calls of `metrics`."""


class ITDATrainer:
    """Builds an ITDA from rows of `site`; the stream has left out padding, special tokens and sinks.

    Args:
        d_in: width of the site.
        site: where the rows are from; as a `Place` with the norm limit that is saved with the dictionary.
        provenance: saved with the dictionary; the config and counts are added.
        text: fingerprint of the corpus that origins are places in.

    Raises:
        InputError: a threshold that no row of this width can exceed.
    """

    def __init__(
        self,
        d_in: int,
        site: Place | Site,
        config: GrowthConfig | None = None,
        *,
        name: str | None = None,
        provenance: Provenance | None = None,
        text: Mapping[str, Any] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config = config or GrowthConfig()
        self.place = Place.parse(site)
        self.sites = (self.place.site,)
        self.name = name or f"itda-{self.place}"
        self.provenance = provenance or Provenance()
        self.text = dict(text or {})
        self.threshold = self.config.threshold(d_in)
        self.nonnegative = self.config.encoder == "nonnegative"
        chained = self.config.dedupe == "sequential"
        self.atoms = GrowingAtoms(d_in, device, with_gram=chained or self.config.max_atoms <= MOST_WITH_GRAM)
        warmup = d_in if self.config.warmup is None else self.config.warmup
        self.warmup = min(warmup, self.config.max_atoms)
        self.identities = torch.empty(0, 2, dtype=torch.int64)
        self.arrivals = torch.empty(0, dtype=torch.int64)
        self.rows = self.warmup_atoms = 0
        self.order_hash = hashlib.sha256(b"").hexdigest()
        self.recent: list[list[int]] = []
        """Rows and atoms added by each of the last batches, `patience` rows in all."""
        self.sums = dict.fromkeys(SUMS, 0)

    config_type: ClassVar[type] = GrowthConfig

    @classmethod
    def dictionary_fields(cls, kind: type[Dictionary]) -> tuple[str, ...]:
        """No field: those of `GrowthConfig` decide the dictionary, too."""
        return ()

    @classmethod
    def for_place(cls, asked: Asked) -> ITDATrainer:
        """Make a trainer that knows the stream's model and text, for `Trainer.on`.

        Raises:
            InputError: several sites, or a threshold that no row of the site's width can exceed.
        """
        if asked.place.kind != AUTOENCODER:
            raise InputError(f"an ITDA explains the one site it reads, not '{asked.place}': give one site")
        width = asked.width(asked.place.site)
        asked.training.threshold(width)
        return cls(
            width, asked.place.on(asked.stream), asked.training, name=asked.name, provenance=asked.provenance(),
            text=asked.stream.fingerprint().get("corpus"), device=asked.device,
        )  # fmt: skip

    def attach(self, stream: ActivationStream | TokenStream) -> None:
        """Take the model, the text and the norm limit from the stream, where they are not known yet.

        Raises:
            InputError: the trainer knows its model, and the stream reads another one.
        """
        self.place, self.provenance = known_from(stream, self.place, self.provenance, self.name)
        self.text = self.text or dict(stream.fingerprint().get("corpus") or {})

    def __repr__(self) -> str:
        return f"ITDATrainer({self.name!r}: {self.atoms.n:,} atoms of {self.rows:,} rows)"

    def settings(self) -> dict[str, Any]:
        """Config of the growth: a run is continued with the same one."""
        return {"growth": asdict(self.config)}

    @property
    def done(self) -> bool:
        """True once there are enough atoms or rows, or hardly any row is lost any more."""
        return self.stopped is not None

    @property
    def stopped(self) -> str | None:
        """Which rule ends it: max_atoms, rows or saturation; None while it grows."""
        if self.atoms.n >= self.config.max_atoms:
            return "max_atoms"
        if self.rows >= self.config.rows:
            return "rows"
        rows, added = (sum(column) for column in zip(*self.recent, strict=True)) if self.recent else (0, 0)
        return "saturation" if rows >= self.config.patience and added < self.config.saturation * rows else None

    @torch.no_grad()
    def step(self, batch: Batch) -> None:
        """Take from one batch of finite rows what the atoms so far do not explain."""
        room = self.config.rows - self.rows
        x = batch.acts[self.sites[0]][:room].to(self.atoms.buffer.device, torch.float32)
        origin, before = batch.origin[: len(x)], self.atoms.n
        if self.atoms.n < self.warmup:
            self._warm_up(x, origin)
        losses = self.atoms.losses(x, self.config.k, self.threshold, self.nonnegative)
        lost = (losses > self.threshold.limit).nonzero()[:, 0]
        if len(lost) and self.atoms.n < self.config.max_atoms:
            self._admit(x, origin, lost, losses[lost])
        self._count(len(x), len(lost), self.atoms.n - before, origin)

    def _warm_up(self, x: Float32[Tensor, "rows d"], origin: Tensor) -> None:
        """The different rows of a batch, those that occur most often first, then in order of occurrence."""
        kinds, kind, counts = x.unique(dim=0, return_inverse=True, return_counts=True)
        places = torch.arange(len(x), device=x.device)
        first = places.new_full((len(kinds),), len(x)).scatter_reduce_(0, kind, places, "amin")
        first, counts = first[kinds.any(1)], counts[kinds.any(1)]
        by_place = first.argsort()
        order = by_place[counts[by_place].argsort(descending=True, stable=True)]
        chosen = first[order][: self.warmup - self.atoms.n]
        self.atoms.append(x[chosen])
        self._remember(origin, chosen)
        self.warmup_atoms += len(chosen)

    def _admit(self, x: Float32[Tensor, "rows d"], origin: Tensor, lost: Tensor, losses: Tensor) -> None:
        room = self.config.max_atoms - self.atoms.n
        if self.config.dedupe == "sequential":
            worst_first = lost[losses.argsort(descending=True, stable=True)]
            taken = self.atoms.admit(x[worst_first], self.config.k, self.threshold, self.nonnegative, room)
            chosen = worst_first[taken]
        else:
            chosen = lost[:room]
            self.atoms.append(x[chosen])
        self._remember(origin, chosen)

    def _remember(self, origin: Tensor, chosen: Tensor) -> None:
        self.identities = torch.cat([self.identities, origin[chosen.cpu()]])
        self.arrivals = torch.cat([self.arrivals, torch.full((len(chosen),), self.rows)])

    def _count(self, rows: int, lost: int, added: int, origin: Tensor) -> None:
        self.rows += rows
        for name, count in zip(SUMS, (lost, added, rows), strict=True):
            self.sums[name] += count
        places = origin.contiguous().numpy().tobytes()
        self.order_hash = hashlib.sha256(bytes.fromhex(self.order_hash) + places).hexdigest()
        self.recent.append([rows, added])
        while sum(counted for counted, _ in self.recent[1:]) >= self.config.patience:
            self.recent.pop(0)

    @property
    def progress(self) -> tuple[int, int | None]:
        """Rows read, and the most that will be; saturation or `max_atoms` may end it sooner."""
        return self.rows, self.config.rows

    def metrics(self) -> dict[str, int | float]:
        """Atoms now, and since the last call the share of rows that were lost and that became atoms."""
        rows = max(self.sums["rows"], 1)
        means = {"atoms": self.atoms.n, "lost": self.sums["lost"] / rows, "added": self.sums["added"] / rows}
        self.sums = dict.fromkeys(SUMS, 0)
        return means

    def state_dict(self) -> State:
        """Everything a continued run needs to end in the same bytes; inner products are computed again."""
        return {
            "atoms": self.atoms.rows,
            "identities": self.identities,
            "arrivals": self.arrivals,
            "sizes": list(self.atoms.sizes),
            "recent": [list(entry) for entry in self.recent],
            "sums": dict(self.sums),
            "counts": {"rows": self.rows, "warmup_atoms": self.warmup_atoms, "capacity": len(self.atoms.buffer)},
            "order_hash": self.order_hash,
        }

    def load_state_dict(self, state: State) -> None:
        """Continue from a `state_dict` of the same config.

        Raises:
            InputError: its atoms are of another width or more than `max_atoms`.
        """
        atoms = state["atoms"]
        if atoms.shape[1] != self.d_in or len(atoms) > self.config.max_atoms:
            raise InputError(
                f"the state holds {len(atoms)} atoms of width {atoms.shape[1]}, and this ITDA takes up to"
                f" {self.config.max_atoms} of width {self.d_in}: continue with the options it was begun with"
            )
        counts = state["counts"]
        self.atoms.restore(atoms, state["sizes"], counts["capacity"])
        self.identities, self.arrivals = state["identities"].clone(), state["arrivals"].clone()
        self.recent, self.sums = [list(entry) for entry in state["recent"]], dict(state["sums"])
        self.rows, self.warmup_atoms = counts["rows"], counts["warmup_atoms"]
        self.order_hash = state["order_hash"]

    def folded(self) -> ITDA:
        """The dictionary as it is now, in activation units, with its provenance.

        Raises:
            InputError: there is no atom yet.
        """
        if not self.atoms.n:
            raise InputError(f"{self.name} has no atom: it saw {self.rows} rows that are not zero, give it some")
        config = self.config
        itda = ITDA(
            ITDAConfig(self.d_in, self.atoms.n, config.k, encoder=config.encoder, tolerance=config.tolerance)
        ).to(self.atoms.buffer.device)
        itda.W_dec.copy_(self.atoms.rows)
        itda.identities.copy_(self.identities)
        itda.arrivals.copy_(self.arrivals)
        training = {"config": asdict(config), "rows": self.rows, "stopped": self.stopped,
                    "warmup_atoms": self.warmup_atoms, "order_hash": self.order_hash, "text": self.text}  # fmt: skip
        itda.place = self.place
        itda.provenance = replace(self.provenance, training=training)
        return itda

    @property
    def d_in(self) -> int:
        """Width of the site."""
        return self.atoms.buffer.shape[1]

    def save(self, folder: Path) -> None:
        """Write the dictionary; one that knows neither its model nor its norm limit is warned of."""
        warn_unknown(self.name, self.place, self.provenance)
        self.folded().save(folder)


def build_itda(stream: ActivationStream, site: Site | str, config: GrowthConfig | None = None) -> ITDA:
    """Read a stream until an ITDA of one of its sites is done, or the stream ends; keeps nothing on disk.

    Raises:
        InputError: the site is not streamed, no row of its width can exceed the threshold, or all rows are zero.
    """
    trainer = cast(ITDATrainer, trainer_on(stream, site, "itda", training=config))
    read(stream, trainer, description="itda", progress=False)
    return trainer.folded()
