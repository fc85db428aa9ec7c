"""`Trainer`: a consumer that trains one sparse dictionary: an autoencoder on one site, a transcoder, or a crosscoder.

The step, in order: scale the rows, encode and select, decode with residual and code gradients in one gather,
the dead-latent aid, one pass over the latents that does both gradients, Adam, projection and unit norm. Nothing
of size batch x latents is kept and nothing is read back to the host but what `metrics` asks for. What is minimised
is the architecture's own `Objective`; this is the same loop for all.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor

from ...kernels.auxk import auxk_gradients
from ...kernels.dispatch import choose
from ...kernels.encode import Shadow, make_shadow
from ...kernels.graph import Replay
from ...kernels.update import Adam, RowGradients
from ...lab.models.sites import Site
from ...lab.rng import generator
from ...lab.streams.activation_stream import Batch
from ..architectures.objective import Gradients, Rows
from ..architectures.sae import SparseAutoencoder
from ..architectures.units import Units
from ..dictionary import Provenance
from .checks import check_config, check_graph, check_sites, check_state
from .config import LR_AT_16K, TrainConfig
from .initialise import initialise
from .optimisers import Mean, make_optimiser
from .resampling import resample

__all__ = ["LR_AT_16K", "TrainConfig", "Trainer"]

log = logging.getLogger(__name__)


def total_variance(x: Float32[Tensor, "batch d"]) -> Float32[Tensor, ""]:
    """The squared distance of all rows from their mean."""
    flat = x.flatten()  # no copy of x
    return flat @ flat - len(x) * x.mean(0).square().sum()


SUMS = ("squares", "variance", "active", "aux", "rows")
"""What is summed between two calls of `metrics`."""

IDLE_EVERY = 16
"""Steps between looks at which latents need the aid: a look makes the host wait for the device."""

WAKE_UNTIL = 0.9
"""Share of a run after which no latent is woken: one that was should have learned something by the end."""


def _rows_of(
    sae: SparseAutoencoder, units: Units, acts: Float32[Tensor, "batch columns"], low_precision: bool
) -> tuple[Rows, Float32[Tensor, ""]]:
    """What the columns of all sites are to the encoder and to the loss, and the variance of what is predicted."""
    if sae.config.d_out is None:
        centred = torch.mul(acts, units.input).sub_(sae.b_dec)
        return Rows.of(centred, centred, low_precision), total_variance(centred)
    x, y = acts.split((sae.d_in, sae.d_out), 1)
    x = torch.mul(x, units.input).sub_(units.centre)
    y = torch.mul(y, units.output).sub_(sae.b_dec)
    variance = total_variance(y)
    return Rows.of(x, y if sae.W_skip is None else y.addmm_(x, sae.W_skip.T, alpha=-1), low_precision), variance


def _named(dictionary: SparseAutoencoder, sources: tuple[Site, ...], target: Site | None) -> str:
    places = "+".join(map(str, sources)) + ("" if target is None else f"-to-{target}")
    return f"{dictionary.architecture}-{places}"


def _placed(
    provenance: Provenance | None, dictionary: SparseAutoencoder, sources: Sequence[Site], target: Site | None
) -> Provenance:
    """The provenance, with the sites as they are."""
    several = bool(dictionary.config.sources)
    return replace(
        provenance or Provenance(site=None if several else str(sources[0])),
        target=None if target is None else str(target),
        sources=list(map(str, sources)) if several else [],
    )


class Trainer:
    """Trains `dictionary` in place on rows of `site`, normalised to unit mean squared entry around their median.

    Args:
        dictionary: starting weights are set from the first batch, unless it is `trained`.
        site: what it reads; the sites of a crosscoder, in the order of its sources.
        target: what a transcoder predicts.
        provenance: saved with the dictionary; `Trainer` adds the sites, its own config and counts.
        trained: go on from the weights the dictionary has, which are in activation units.

    Raises:
        InputError: a target for a dictionary without d_out, none for one with it, or not one site for each source.
    """

    def __init__(
        self,
        dictionary: SparseAutoencoder,
        site: Site | Sequence[Site],
        config: TrainConfig | None = None,
        *,
        target: Site | None = None,
        name: str | None = None,
        provenance: Provenance | None = None,
        trained: bool = False,
    ) -> None:
        self.dictionary, self.trained = dictionary, trained
        self.config = config or TrainConfig()
        self.shape = dictionary.config
        """The dictionary's config as it is saved: its k may be another while k falls."""
        check_config(dictionary, self.config, trained)
        sources = (site,) if isinstance(site, Site) else tuple(site)
        check_sites(dictionary, sources, target)
        self.sites = sources if target is None else (*sources, target)
        self.name = name or _named(dictionary, sources, target)
        self.provenance = _placed(provenance, dictionary, sources, target)
        dictionary.precision = self.config.precision
        self.choice = choose(dictionary.W_dec.device, self.config.precision)
        check_graph(dictionary, self.config, self.choice)
        device = dictionary.W_dec.device
        self.objective = dictionary.objective()
        self.objective.fits_start = self.config.start == "tied"
        self.optimiser = make_optimiser(self.objective, self.config)
        self.weights = self.optimiser.weights
        self.mean = None if self.config.ema is None else Mean(self.config.ema)
        self.since_fired = torch.zeros(dictionary.n_latents, dtype=torch.int64, device=device)
        self.idle = torch.zeros(0, dtype=torch.int64, device=device)
        self.units: Units | None = None
        self.steps = self.rows = 0
        self.shadow: Shadow | None = None
        self.sums, self.scalars = (torch.zeros(n, dtype=torch.float64, device=device) for n in (len(SUMS), 7))
        self.replay = Replay(lambda acts: self._advance(acts, self._adam)) if self.config.cuda_graph else None
        log.info("%s: %s step, %s", self.name, self.choice.step, self.choice.why)

    def __repr__(self) -> str:
        return f"Trainer({self.dictionary!r}, rows {self.rows:,} of {self.config.rows:,})"

    @property
    def done(self) -> bool:
        """Whether the configured rows have been trained on."""
        return self.rows >= self.config.rows

    @property
    def scale(self) -> float:
        """What codes are divided by when folded; 0 before the first batch."""
        return 0.0 if self.units is None else self.units.scale

    @property
    def lr(self) -> float:
        """Learning rate of the next step: linear warm-up, constant, decay to zero."""
        return self.config.lr_after(self.rows, self.dictionary.n_latents)

    @torch.no_grad()
    def step(self, batch: Batch, upstream: Float32[Tensor, "batch d_out"] | None = None) -> None:
        """Train on one batch of finite rows (the stream refuses others before they get here).

        Args:
            upstream: what to learn from in place of the residual x_hat - x: the gradient of any loss at x_hat, in
                units of half the squared error of activations. The aid explains it, too.
        """
        acts = self._ready(batch)
        self._look()
        if self.replay is not None and upstream is None and not len(self.idle):
            self.scalars.copy_(self._adam.scalars(), non_blocking=True)
            self.replay(acts)
        else:
            self._advance(acts, self._adam, upstream)
        self._count(len(acts))
        if self.config.resample_every and not self.steps % self.config.resample_every:
            self._resample(acts)

    def _look(self) -> None:
        """Before a step: where the run is, and now and then which latents need the aid."""
        if self.steps % IDLE_EVERY == 0:
            self.idle = (self.since_fired >= self.config.aid_after).nonzero()[:, 0]
        self.objective.progress = self.rows / self.config.rows

    def _count(self, rows: int) -> None:
        """After a step."""
        self.steps += 1
        self.rows += rows
        if self.mean is not None:
            self.mean.observe(self.tensors())

    def tensors(self) -> dict[str, Tensor]:
        """What is trained, by name."""
        return self.dictionary.tensors()

    def _resample(self, acts: Float32[Tensor, "batch columns"]) -> None:
        rows, _ = self._rows(acts)
        code = self.dictionary.training_code(rows.input, self.shadow)
        rng = generator(self.config.seed, "resample", self.steps)
        squares = self.objective.decoded(code, rows, self._decoder).squares
        if resample(self.optimiser, self.objective, self.since_fired, self.config.dead_after, rows, squares, rng):
            self._make_shadow()

    @torch.no_grad()
    def predict(self, batch: Batch) -> Float32[Tensor, "batch d_out"]:
        """What the next step would make of these rows before it learns from them, in activation units."""
        rows, _ = self._rows(self._ready(batch))
        made = self.dictionary.decode(self.dictionary.training_code(rows.input, self.shadow))
        if self.dictionary.W_skip is not None:
            made.addmm_(rows.input, self.dictionary.W_skip.T)
        assert self.units is not None, "units are set from the first batch"
        return made / self.units.output

    def _ready(self, batch: Batch) -> Float32[Tensor, "batch columns"]:
        """The columns of all sites, with weights started and k where the schedule has it."""
        parts = [batch.acts[site].to(self.dictionary.W_dec.device, torch.float32) for site in self.sites]
        acts = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        self._set_k()
        if self.units is None:
            self._start(acts)
        return acts

    def _set_k(self) -> None:
        if self.config.k_start is not None:
            self.dictionary.config = replace(self.shape, k=self.config.k_after(self.rows, self.shape.k))

    def _advance(self, acts: Float32[Tensor, "batch columns"], adam: Adam, upstream: Tensor | None = None) -> None:
        """The step on the device."""
        rows, variance = self._rows(acts)
        if upstream is not None and self.units is not None:
            rows = rows._replace(upstream=upstream * self.units.output)
        found = self.objective.gradients(rows, self._decoder, self.shadow)
        self.dictionary.observe(found.code, self.steps)
        self._learn(found, rows, variance, 2 / variance, adam)

    def _learn(self, found: Gradients, rows: Rows, variance: Tensor, scale: Tensor, adam: Adam) -> None:
        """Apply what a batch teaches, with the aid for dead latents, and keep count.

        Args:
            variance: what the squared errors are relative to in the metrics.
            scale: of d(half the squared error); 2 / variance for the loss sum of squared errors / variance.
        """
        extra, aux_loss = _aid(self, found, rows)
        if found.further is not None:
            further = found.further.times(scale)
            extra = further if extra is None else further.plus(extra)
        fired = self.optimiser.step(found, rows, scale, adam, extra, self.shadow)
        self.since_fired += len(rows.input)
        self.since_fired.masked_fill_(fired > 0, 0)
        if self.steps % IDLE_EVERY == 0:
            _wake(self, rows)
        count, active = aux_loss.new_full((), len(rows.input)), (found.code.values != 0).sum()
        self.sums += torch.stack([found.squares.sum(), variance, active, aux_loss * count, count]).double()

    def _rows(self, acts: Float32[Tensor, "batch columns"]) -> tuple[Rows, Float32[Tensor, ""]]:
        assert self.units is not None, "units are set from the first batch"
        low_precision = self.choice[:2] == ("triton", "bf16")  # half the bytes to gather
        return _rows_of(self.dictionary, self.units, acts, low_precision)

    @property
    def _decoder(self) -> Tensor:
        """Decoder rows that the step gathers: the low-precision copy where there is one."""
        copy = self.shadow.W_dec if self.shadow is not None else None
        return self.weights.W_dec if copy is None else copy

    def _start(self, acts: Float32[Tensor, "batch columns"]) -> None:
        self.units = _start_of(self, acts)
        if self.trained:
            self.objective.adopt()
        else:
            self.objective.start(self._rows(acts)[0])
        self._make_shadow()

    def _make_shadow(self) -> None:
        self.shadow = make_shadow(self.weights.W_enc, self.weights.W_dec, self.choice.encode)

    @property
    def _adam(self) -> Adam:
        device = None if self.replay is None else self.scalars
        return Adam(self.lr, self.steps + 1, self.config.beta1, self.config.beta2, device=device)

    def metrics(self) -> dict[str, float]:
        """Means since the last call: fvu on training rows, l0, aux loss; and the dead share and learning rate now."""
        squares, variance, active, aux, rows = self.sums.tolist()
        self.sums.zero_()
        rows = max(rows, 1.0)
        dead = (self.since_fired >= self.config.dead_after).float().mean()
        return {"fvu": squares / max(variance, 1e-30), "l0": active / rows, "aux": aux / rows,
                "dead": float(dead), "lr": self.lr}  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Everything a continued run needs to end in the same bytes."""
        return {
            "dictionary": self.dictionary.tensors(),
            "optimiser": self.optimiser.state_dict(),
            "mean": {} if self.mean is None else self.mean.state_dict(),
            "objective": self.objective.state_dict(),
            "units": {} if self.units is None else self.units.state_dict(),
            "since_fired": self.since_fired,
            "idle": self.idle,
            "sums": self.sums,
            "counts": {"steps": self.steps, "rows": self.rows},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict` of the same dictionary config."""
        check_state(state, self.state_dict())
        self.dictionary.load_state_dict(state["dictionary"])
        self.objective.load_state_dict(state["objective"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.mean is not None:
            self.mean.load_state_dict(state["mean"], self.idle.device)
        for name in ("since_fired", "sums"):
            getattr(self, name).copy_(state[name])
        self.idle = state["idle"].to(self.idle.device)
        if state["units"]:
            centre = state["units"]["centre"].to(self.idle.device)
            self.units = Units.of(self.dictionary.config, state["units"]["scales"], centre)
        self.steps, self.rows = state["counts"]["steps"], state["counts"]["rows"]
        self._make_shadow()

    def folded(self) -> SparseAutoencoder:
        """A copy of the dictionary in activation units, with its provenance."""
        copy = type(self.dictionary)(self.shape)
        averaged = self.optimiser.averaged() if self.mean is None else self.mean.averaged()
        copy.load_state_dict({name: averaged.get(name, kept) for name, kept in self.dictionary.state_dict().items()})
        copy.precision = self.dictionary.precision
        copy.to(self.dictionary.W_dec.device)
        if self.units is not None:
            copy.fold(self.units)
        training = {"config": asdict(self.config), "rows": self.rows, "steps": self.steps,
                    "dead_fraction": float((self.since_fired >= self.config.dead_after).float().mean())}  # fmt: skip
        scales = list(self.units.scales) if self.units is not None and self.provenance.sources else []
        copy.provenance = replace(self.provenance, training=training, scales=scales)
        return copy

    def save(self, folder: Path) -> None:
        """Write the folded dictionary."""
        self.folded().save(folder)


def _aid(trainer: Trainer, found: Gradients, rows: Rows) -> tuple[RowGradients | None, Tensor]:
    """Gradients that make idle latents explain the residual, and how badly they do; none where they are woken."""
    idle = trainer.idle[:0] if trainer.objective.biased else trainer.idle
    aid = trainer.config.aid(trainer.dictionary, trainer.shape.k)
    return auxk_gradients(rows.input, found.residual.float(), trainer.weights, idle, *aid)


def _wake(trainer: Trainer, rows: Rows) -> None:
    """Raise the biases that silence idle latents, where those are what keeps codes few."""
    objective, (wanted, _) = trainer.objective, trainer.config.aid(trainer.dictionary, trainer.shape.k)
    if objective.biased and wanted and objective.progress < WAKE_UNTIL:
        objective.wake(rows, trainer.idle)
        trainer.optimiser.forget_biases(trainer.idle)


def _start_of(trainer: Trainer, acts: Float32[Tensor, "batch columns"]) -> Units:
    """The units that a first batch gives; the weights, fresh or as they are, are put in them."""
    sae, config = trainer.dictionary, trainer.config
    x, y = acts[:, : sae.d_in], None if sae.config.d_out is None else acts[:, sae.d_in :]
    units = Units.measure(sae.config, x, y, trainer.sites)
    if trainer.trained:
        units = units._replace(centre=torch.zeros_like(units.centre))
        sae.fold(units.inverse())
        return units
    rng = generator(config.seed, "init", trainer.name)
    goal = None if y is None else y * units.output
    kind = {"start": config.start, "centre": config.start_bias}
    initialise(sae, x * units.input - units.centre, rng, config.blend, goal, **kind)
    return units
