"""`Trainer`: a consumer that trains one sparse dictionary: an autoencoder on one site, a transcoder, or a crosscoder.

The step is that of `GradientTrainer`. The loss is the architecture's own `Objective`; this is the same loop for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float32
from torch import Tensor

from ...kernels.graph import Replay
from ...kernels.tuples import Adam
from ...lab.models.sites import Site
from ...lab.rng import generator
from ...lab.storage import short_name
from ...lab.streams.activation_stream import ActivationStream, Batch
from ...lab.streams.token_stream import TokenStream
from ..architectures.objective import TrainingRows
from ..architectures.sae import SparseAutoencoder
from ..architectures.units import Units
from ..dictionary import Dictionary, Provenance
from ..place import Place
from ..registry import build_trainable
from .checks import check_config, check_graph, placed
from .config import TrainConfig
from .gradient_trainer import GradientTrainer
from .initialise import initialise
from .on_stream import Asked, known_from, own_fields, trainer_on, warn_unknown, widths_of

__all__ = ["TrainConfig", "Trainer"]


def total_variance(x: Float32[Tensor, "batch d"]) -> Float32[Tensor, ""]:
    """The squared distance of all rows from their mean."""
    flat = x.flatten()  # no copy of x
    return flat @ flat - len(x) * x.mean(0).square().sum()


def _named(architecture: str, place: Place) -> str:
    # the name seeds the starting weights: it spells out all sites, whatever the short form of the place
    reads, target = "+".join(map(str, place.reads)), place.target
    return f"{architecture}-{reads}" + ("" if target is None else f"-to-{target}")


class Trainer(GradientTrainer):
    """Trains `dictionary` in place on rows of `site`, normalised to unit mean squared entry around their median.

    Args:
        dictionary: starting weights are set from the first batch, unless it is `trained`.
        site: site that the encoder reads, or the sites of a crosscoder in the order of its sources; or a whole
            `Place`, whose norm limits are saved with the dictionary (`Place.parse(text).on(stream)`).
        target: site that a transcoder predicts, where `site` is no place.
        provenance: saved with the dictionary; `Trainer` adds its own config and counts.
        trained: go on from the weights the dictionary has, which are in activation units.

    `Trainer.on(stream, place, architecture, ...)` makes the dictionary, too. A trainer made by hand takes the model's
    fingerprint and the norm limits from the stream that `train` feeds it from.

    Raises:
        InputError: a target for a dictionary without d_out, none for one with it, or not one site for each source.
    """

    config_type: ClassVar[type] = TrainConfig
    on = staticmethod(trainer_on)

    def __init__(
        self,
        dictionary: SparseAutoencoder,
        site: Place | Site | Sequence[Site],
        config: TrainConfig | None = None,
        *,
        target: Site | None = None,
        name: str | None = None,
        provenance: Provenance | None = None,
        trained: bool = False,
    ) -> None:
        config, self.trained = config or TrainConfig(), trained
        check_config(dictionary, config, trained)
        self.place = dictionary.place = placed(dictionary, site, target)
        check_graph(dictionary, config)
        super().__init__(
            dictionary, config, self.place.sites, short_name(name or _named(dictionary.architecture, self.place))
        )
        self.provenance = provenance or Provenance()
        self.replay = Replay(self._learn) if config.cuda_graph else None
        self.scalars = torch.zeros(7, dtype=torch.float64, device=dictionary.W_dec.device)
        """Scalars of Adam on the device, which a recorded step reads anew at each replay."""

    @classmethod
    def dictionary_fields(cls, kind: type[Dictionary]) -> tuple[str, ...]:
        """Fields of the dictionary's config that `Trainer.on` takes by name."""
        return own_fields(kind)

    @classmethod
    def for_place(cls, asked: Asked) -> Trainer:
        """Make the dictionary and its trainer for `Trainer.on`.

        Raises:
            InputError: the architecture does not take the place, or a config refuses a value.
        """
        asked.require_latents()
        shape = widths_of(asked.place, asked.stream)
        dictionary = build_trainable(asked.kind.architecture, **shape, **asked.fields).to(asked.device)
        place = asked.place.on(asked.stream)
        return cls(dictionary, place, asked.training, name=asked.name, provenance=asked.provenance())

    def attach(self, stream: ActivationStream | TokenStream) -> None:
        """Take the model's fingerprint and the norm limits from the stream, where they are not known yet.

        Raises:
            InputError: the trainer knows its model, and the stream reads another one.
        """
        place, self.provenance = known_from(stream, self.place, self.provenance, self.name)
        self.place = self.dictionary.place = place

    def __repr__(self) -> str:
        return f"Trainer({self.dictionary!r}, rows {self.rows:,} of {self.config.rows:,})"

    @property
    def scale(self) -> float:
        """Divisor of codes when the dictionary is folded; 0 before the first batch."""
        return 0.0 if self.units is None else self.units.scale

    @property
    def adam(self) -> Adam:
        """Scalars of Adam for the next step, on the device where a step is recorded."""
        return super().adam if self.replay is None else replace(super().adam, device=self.scalars)

    @torch.no_grad()
    def step(self, batch: Batch, upstream: Float32[Tensor, "batch d_out"] | None = None) -> None:
        """Train on one batch of finite rows (the stream refuses others before they get here).

        Args:
            upstream: gradient at x_hat of any loss, in units of half the squared error of activations. The step learns
                from it in place of the residual x_hat - x, and the dead-latent aid explains it.
        """
        self.halfway = False
        acts = self._ready(batch)
        if self.replay is not None and upstream is None and not len(self.dead.idle):
            self.halfway = True
            self.scalars.copy_(self.adam.scalars(), non_blocking=True)
            self.replay(acts)
        else:
            self._learn(acts, upstream)
        self.advance(len(acts))
        if self.config.resample_every and not self.steps % self.config.resample_every:
            self.resample(acts)
        self.halfway = False

    @torch.no_grad()
    def predict(self, batch: Batch) -> Float32[Tensor, "batch d_out"]:
        """Reconstruct a batch in activation units, as the next step would before it learns from these rows."""
        rows, _ = self.training_rows(self._ready(batch))
        made = self.dictionary.decode(self.dictionary.training_code(rows.input, self.low_precision))
        if self.dictionary.W_skip is not None:
            made.addmm_(rows.input, self.dictionary.W_skip.T)
        assert self.units is not None, "units are set from the first batch"
        return made / self.units.output

    def training_rows(self, acts: Float32[Tensor, "batch columns"]) -> tuple[TrainingRows, Float32[Tensor, ""]]:
        """Scale and centre the columns of all sites; with the squared distance of the targets from their mean."""
        sae, units = self.dictionary, self.units
        assert units is not None, "units are set from the first batch"
        if not sae.place.targets:
            centred = torch.mul(acts, units.input).sub_(sae.b_dec)
            return TrainingRows.of(centred, centred, self.gathers_bf16), total_variance(centred)
        x, y = acts.split((sae.d_in, sae.d_out), 1)
        x = torch.mul(x, units.input).sub_(units.centre)
        y = torch.mul(y, units.output).sub_(sae.b_dec)
        variance = total_variance(y)
        target = y if sae.W_skip is None else y.addmm_(x, sae.W_skip.T, alpha=-1)
        return TrainingRows.of(x, target, self.gathers_bf16), variance

    def resample(self, acts: Float32[Tensor, "batch columns"]) -> None:
        """Start dead latents anew on rows of this batch with large errors."""
        rows, _ = self.training_rows(acts)
        code = self.dictionary.training_code(rows.input, self.low_precision)
        squares = self.objective.decoded(code, rows, self.decoder).squares
        if self.dead.resample(rows, squares, generator(self.config.seed, "resample", self.steps)):
            self.refresh_copies()

    def folded(self) -> SparseAutoencoder:
        """A copy of the dictionary in activation units, with its provenance."""
        copy = super().folded()
        copy.place = self.place if self.units is None else self.place.scaled(self.units.scales)
        copy.provenance = replace(self.provenance, training=copy.provenance.training)
        return copy

    def save(self, folder: Path) -> None:
        """Write the folded dictionary; one that knows neither its model nor its norm limits is warned of."""
        warn_unknown(self.name, self.place, self.provenance)
        self.folded().save(folder)

    def _ready(self, batch: Batch) -> Float32[Tensor, "batch columns"]:
        """The columns of all sites, with weights started and k where the schedule has it."""
        parts = [batch.acts[site].to(self.dictionary.W_dec.device, torch.float32) for site in self.sites]
        acts = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        self.prepare(len(acts))
        if self.units is None:
            self._start(acts)
        return acts

    def _start(self, acts: Float32[Tensor, "batch columns"]) -> None:
        """Set units from a first batch, and weights in them: fresh, or those the dictionary has."""
        sae, config = self.dictionary, self.config
        self.halfway = True
        x, y = acts[:, : sae.d_in], acts[:, sae.d_in :] if sae.place.targets else None
        self.units = units = Units.measure(sae.config, x, y, self.sites)
        if self.trained:
            self.units = units._replace(centre=torch.zeros_like(units.centre))
            sae.fold(self.units.inverse())
            self.objective.adopt()
        else:
            rng = generator(config.seed, "init", self.name)
            goal = None if y is None else y * units.output
            kind = {"start": config.start, "centre": config.start_bias}
            initialise(sae, x * units.input - units.centre, rng, config.data_share(sae), goal, **kind)
            self.objective.start(self.training_rows(acts)[0])
        self.refresh_copies()
        self.halfway = False

    def _learn(self, acts: Float32[Tensor, "batch columns"], upstream: Tensor | None = None) -> None:
        """The part of a step that runs on the device."""
        rows, variance = self.training_rows(acts)
        if upstream is not None and self.units is not None:
            rows = rows._replace(upstream=upstream * self.units.output)
        self.halfway = self.objective.steers
        gradients = self.gradients(rows)
        self.halfway = True
        self.dictionary.observe(gradients.code, self.steps)
        self.apply(gradients, rows, variance, 2 / variance)
