"""`GradientTrainer`: everything that one training step of a sparse dictionary reads and changes, and the step itself.

    prepare      bring k, the idle latents and the objective's progress up to the step that comes
    gradients    encode and select, decode with residual and code gradients in one gather (the `Objective`'s)
    apply        the dead-latent aid, one pass over the latents that does both gradients, Adam, projection, unit norm
    advance      count the step

Nothing of size batch x latents is kept, and nothing is read back to the host except what `metrics` asks for.
`Trainer` takes this step on the residual of its own dictionary, `EndToEnd` on the gradient of a model's loss, and every
layer of a cross-layer transcoder on the residual that all layers leave.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from ...kernels.dispatch import choose
from ...kernels.encode import low_precision_copy
from ...kernels.tuples import Adam, LowPrecisionCopy
from ...lab.models.sites import Site
from ...lab.runs.first_run import check_first
from ..architectures.objective import Gradients, TrainingRows
from ..architectures.sae import SparseAutoencoder
from ..architectures.units import Units
from .checks import check_state, current_names
from .config import TrainConfig
from .dead_latents import DeadLatents
from .optimizers import make_optimizer
from .weight_average import WeightAverage

log = logging.getLogger(__name__)

SUMS = ("squares", "variance", "active", "aux", "rows")
"""Sums over the rows since the last call of `metrics`."""


class GradientTrainer:
    """Holds one dictionary, its objective, optimizer, dead latents and counters, and takes training steps.

    Args:
        dictionary: trained in place, in the units that the first batch sets.
        sites: sites whose activations lie side by side in the columns of a batch.
        name: name in the run, from which the random numbers of the start are drawn, too.
    """

    def __init__(self, dictionary: SparseAutoencoder, config: TrainConfig, sites: Sequence[Site], name: str) -> None:
        self.dictionary, self.config, self.name = dictionary, config, name
        self.sites: tuple[Site, ...] = tuple(sites)
        self.final_config = dictionary.config
        """Config of the dictionary as it is saved; while k falls, `dictionary.config` has another k."""
        device = dictionary.W_dec.device
        dictionary.precision = config.precision
        check_first(device)
        self.choice = choose(device, config.precision)
        self.objective = dictionary.objective()
        self.objective.fits_start = config.start == "tied"
        self.optimizer = make_optimizer(self.objective, config)
        self.weights = self.optimizer.weights
        self.average = None if config.ema is None else WeightAverage(config.ema)
        self.dead = DeadLatents(self.objective, self.optimizer, config, self.final_config.k)
        self.units: Units | None = None
        self.steps = self.rows = self.batch = 0
        """Steps and rows so far, and rows of the first step, by which the default learning rate goes."""
        self.halfway = False
        """True while a step has changed a part of what is trained: an error there leaves no state to go on from."""
        self.low_precision: LowPrecisionCopy | None = None
        self.sums = torch.zeros(len(SUMS), dtype=torch.float64, device=device)
        log.info("%s: %s step, %s", name, self.choice.step, self.choice.why)

    @property
    def rows_wanted(self) -> int:
        """Rows of the whole training."""
        return self.config.rows

    @property
    def done(self) -> bool:
        """True once the configured rows have been trained on."""
        return self.rows >= self.config.rows

    def shorten(self, rows: int) -> None:
        """Let the schedules span `rows`, where that is all there will be; called before the first step.

        The dictionary's provenance then holds this number.
        """
        self.config = replace(self.config, rows=rows)

    def settings(self) -> dict[str, Any]:
        """Architecture and configs: a run is continued with the same ones."""
        dictionary = {"architecture": self.dictionary.architecture, **asdict(self.final_config)}
        return {"dictionary": dictionary, "training": asdict(self.config)}

    @property
    def lr(self) -> float:
        """Learning rate of the next step: linear warm-up, constant, decay to zero."""
        return self.config.lr_after(self.rows, self.dictionary.n_latents, self.batch)

    @property
    def adam(self) -> Adam:
        """Scalars of Adam for the next step."""
        return Adam(self.lr, self.steps + 1, self.config.beta1, self.config.beta2)

    @property
    def decoder(self) -> Tensor:
        """Decoder rows that the step gathers [n_latents, d_out]: the low-precision copy, or the weights themselves."""
        copy = self.low_precision.W_dec if self.low_precision is not None else None
        return self.weights.W_dec if copy is None else copy

    @property
    def gathers_bf16(self) -> bool:
        """True if the update gathers bf16 copies of the rows, which halves the bytes."""
        return self.choice[:2] == ("triton", "bf16")

    def refresh_copies(self) -> None:
        """Make the low-precision copies of the weights anew, after weights were set from outside the optimizer."""
        self.low_precision = low_precision_copy(self.weights.W_enc, self.weights.W_dec, self.choice.encode)

    def tensors(self) -> dict[str, Tensor]:
        """Trained tensors by name."""
        return self.dictionary.tensors()

    def prepare(self, rows: int) -> None:
        """Bring k, the idle latents and the objective's progress up to the step that comes, on so many rows."""
        if not self.steps:
            self.batch = rows
        if self.config.k_start is not None:
            final = self.final_config
            self.dictionary.config = replace(final, k=self.config.k_after(self.rows, final.k))
        self.dead.refresh_idle(self.steps)
        self.objective.progress = self.rows / self.config.rows

    def gradients(self, rows: TrainingRows) -> Gradients:
        """Encode, decode and differentiate one batch."""
        return self.objective.gradients(rows, self.decoder, self.low_precision)

    def apply(self, gradients: Gradients, rows: TrainingRows, variance: Tensor, scale: Tensor) -> None:
        """Change the weights by the gradients of a batch, help dead latents, and add to the sums of the metrics.

        Args:
            variance: denominator of `fvu` in the metrics: squared distance of the targets from their mean.
            scale: of d(half the squared error); 2 / variance for the loss sum of squared errors / variance.
        """
        extra, aux_loss = self.dead.aid(gradients, rows)
        if gradients.further is not None:
            further = gradients.further.times(scale)
            extra = further if extra is None else further.plus(extra)
        fired = self.optimizer.step(gradients, rows, scale, self.adam, extra, self.low_precision)
        self.dead.count(fired, len(rows.input))
        self.dead.wake(rows, self.steps)
        count, active = aux_loss.new_full((), len(rows.input)), (gradients.code.values != 0).sum()
        self.sums += torch.stack([gradients.squares.sum(), variance, active, aux_loss * count, count]).double()

    def advance(self, rows: int) -> None:
        """Count a step on so many rows; the average of the weights takes them in."""
        self.steps += 1
        self.rows += rows
        if self.average is not None:
            self.average.observe(self.tensors())

    def metrics(self) -> dict[str, float]:
        """Means since the last call: fvu on training rows, l0, aux loss; and the dead share and learning rate now."""
        squares, variance, active, aux, rows = self.sums.tolist()
        self.sums.zero_()
        rows = max(rows, 1.0)
        return {"fvu": squares / max(variance, 1e-30), "l0": active / rows, "aux": aux / rows,
                "dead": self.dead.fraction, "lr": self.lr}  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Everything a continued run needs to end in the same bytes."""
        return {
            "dictionary": self.dictionary.tensors(),
            "optimizer": self.optimizer.state_dict(),
            "average": {} if self.average is None else self.average.state_dict(),
            "objective": self.objective.state_dict(),
            "units": {} if self.units is None else self.units.state_dict(),
            **self.dead.state_dict(),
            "sums": self.sums,
            "counts": {"steps": self.steps, "rows": self.rows, "batch": self.batch},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict` of the same dictionary config.

        Raises:
            InputError: the state is of a dictionary of another shape, or lacks an entry.
        """
        state = current_names(state)
        check_state(state, self.state_dict())
        device = self.sums.device
        self.dictionary.load_state_dict(state["dictionary"])
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"], device)
        self.dead.load_state_dict(state)
        self.sums.copy_(state["sums"])
        if state["units"]:
            centre = state["units"]["centre"].to(device)
            self.units = Units.of(self.dictionary.config, state["units"]["scales"], centre)
        counts = state["counts"]
        self.steps, self.rows, self.batch = counts["steps"], counts["rows"], counts.get("batch", 0)
        self.refresh_copies()

    def folded(self) -> SparseAutoencoder:
        """A copy of the dictionary in activation units, with the training config and counts in its provenance."""
        copy = type(self.dictionary)(self.final_config)
        averaged = self.optimizer.averaged() if self.average is None else self.average.averaged()
        copy.load_state_dict({name: averaged.get(name, kept) for name, kept in self.dictionary.state_dict().items()})
        copy.precision = self.dictionary.precision
        copy.to(self.dictionary.W_dec.device)
        if self.units is not None:
            copy.fold(self.units)
        copy.provenance.training = {"config": asdict(self.config), "rows": self.rows, "steps": self.steps,
                                    "dead_fraction": self.dead.fraction}  # fmt: skip
        return copy
