"""`Trainer`: a consumer that trains one sparse autoencoder on one site of a stream.

The step, in order: scale the rows, encode and select, decode with residual and code gradients in one gather,
the dead-latent aid, one pass over the latents that does both gradients, Adam, projection and unit norm. Nothing
of size batch x latents is kept and nothing is read back to the host but what `metrics` asks for. What is minimised
is the architecture's own `Objective`; this is the same loop for all.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float32, Int
from torch import Tensor

from ..kernels.auxk import auxk_gradients
from ..kernels.dispatch import PRECISIONS, Precision, choose
from ..kernels.encode import Shadow, make_shadow
from ..kernels.graph import Replay
from ..kernels.update import Adam, RowGradients, Weights, new_moments
from ..lab.errors import InputError, unknown
from ..lab.rng import generator
from ..lab.sites import Site
from ..lab.streams import Batch
from .dictionary import Provenance
from .initialise import initialise
from .objectives import Gradients, adam_step
from .parts import State, step_clipped, step_parts
from .sae import SparseAutoencoder
from .schedules import check_share, trapezoid

log = logging.getLogger(__name__)

OPTIMIZERS = ("adam", "active_row")


@dataclass(frozen=True)
class TrainConfig:
    """How one dictionary is trained."""

    rows: int = 1_000_000
    """Activation rows to train on; the learning-rate schedule spans exactly these."""
    lr: float | None = None
    """Peak learning rate; by default `LR_AT_16K` / sqrt(n_latents / 2^14)."""
    warmup: float = 0.02
    """Share of the rows over which the learning rate rises linearly."""
    decay: float = 0.3
    """Share of the rows, at the end, over which it falls linearly to zero."""
    beta1: float = 0.9
    """Adam's first decay. With 0 a latent that did not fire is left alone, which is exact, and state is halved."""
    beta2: float = 0.999
    """Adam's second decay."""
    aux_k: int | None = None
    """Dead latents that explain each row's residual; by default half of d_in. 0 turns the aid off."""
    aux_coefficient: float = 1 / 32
    """Weight of the aid against the normalised reconstruction loss."""
    aid_after: int = 25_000
    """Rows without firing after which a latent gets the aid."""
    dead_after: int = 250_000
    """Rows without firing after which a latent counts as dead in the metrics."""
    blend: float = 0.0
    """Share of a data row in each starting decoder row; 0 starts on random directions. Some data speeds the start
    and kills latents: after 400k rows of SmolLM2, 0 / 0.4 / 0.8 gave FVU 0.137 / 0.132 / 0.136 and 0.2 / 2.9 /
    13 % dead."""
    precision: Precision = "auto"
    """Products that propose codes: fp32, bf16 or int8 (screened, exact); auto goes by the hardware."""
    optimizer: Literal["adam", "active_row"] = "adam"
    """`active_row` is a different optimiser, faster with very many latents: a latent that did not fire is left alone
    whatever beta1, and its moments decay by the steps missed when it fires again."""
    clip_norm: float | None = None
    """Largest global norm of the gradient; off by default, since Adam with a warm-up does not need it. Costs a pass."""
    cuda_graph: bool = False
    """Record the step once on a GPU and replay it while no latent needs the aid: spares launch costs in small steps."""
    seed: int = 0
    """Seed of the starting weights."""

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise unknown("precision", self.precision, PRECISIONS)
        if self.rows < 1:
            raise InputError(f"rows must be at least 1, got {self.rows}")
        for name in ("warmup", "decay", "blend"):
            check_share(name, getattr(self, name))
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}")
        if self.aux_k is not None and self.aux_k < 0:
            raise InputError(f"aux_k must be at least 0 (no aid), got {self.aux_k}")
        if self.optimizer not in OPTIMIZERS:
            raise unknown("optimizer", self.optimizer, OPTIMIZERS)
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise InputError(f"clip_norm must be above 0 (or None for no clipping), got {self.clip_norm}")
        if self.lr is not None and not 0 < self.lr < 1:
            raise InputError(f"lr must lie between 0 and 1, got {self.lr}")


def _sum_of_squares(x: Tensor) -> Tensor:
    flat = x.flatten()
    return flat @ flat  # no copy of x


SUMS = ("squares", "variance", "active", "aux", "rows")
"""What is summed between two calls of `metrics`."""

IDLE_EVERY = 16
"""Steps between looks at which latents need the aid: a look makes the host wait for the device."""

LR_AT_16K = 2.25e-3
"""At n_latents 9216 this is 3e-3: 5e-4, 1e-3, 3e-3 and 6e-3 gave FVU 0.206, 0.176, 0.150 and 0.149 after 300k rows
of SmolLM2 activations at batch 2048, starting with blend 0.8."""


class Trainer:
    """Trains `dictionary` in place on rows of `site`, normalised to unit mean squared entry around their median.

    Args:
        dictionary: starting weights are set from the first batch.
        provenance: saved with the dictionary; `Trainer` adds its own config and counts.
    """

    def __init__(
        self,
        dictionary: SparseAutoencoder,
        site: Site,
        config: TrainConfig | None = None,
        *,
        name: str | None = None,
        provenance: Provenance | None = None,
    ) -> None:
        self.dictionary = dictionary
        self.config = config or TrainConfig()
        self.sites = (site,)
        self.name = name or f"{dictionary.architecture}-{site}"
        self.provenance = provenance or Provenance(site=str(site))
        dictionary.precision = self.config.precision
        self.choice = choose(dictionary.W_dec.device, self.config.precision)
        device = dictionary.W_dec.device
        self.objective = dictionary.objective()
        self.weights = Weights(dictionary.W_enc.data, dictionary.W_dec.data, dictionary.b_enc.data)
        active_rows = self.config.optimizer == "active_row" or not self.config.beta1
        self.moments = new_moments(self.weights, self.config.beta1, active_rows)
        self.bias_moments = torch.zeros(2, dictionary.d_in, device=device)
        self.since_fired = torch.zeros(dictionary.n_latents, dtype=torch.int64, device=device)
        self.idle = torch.zeros(0, dtype=torch.int64, device=device)
        self.sums = torch.zeros(len(SUMS), dtype=torch.float64, device=device)
        self.scale = 0.0
        self.steps = self.rows = 0
        self.shadow: Shadow | None = None
        self.scalars = torch.zeros(7, dtype=torch.float64, device=device)
        self.replay = Replay(lambda acts: self._advance(acts, self._adam)) if self.config.cuda_graph else None
        if self.replay and (self.choice.step != "triton" or dictionary.ragged or self.config.clip_norm):
            raise InputError(
                "cuda_graph=True needs Triton on a GPU, an architecture with k codes in every row and no clip_norm;"
                f" this is {dictionary.architecture} on {device} ({self.choice.why})"
            )
        log.info("%s: %s step, %s", self.name, self.choice.step, self.choice.why)

    def __repr__(self) -> str:
        return f"Trainer({self.dictionary!r}, rows {self.rows:,} of {self.config.rows:,})"

    @property
    def done(self) -> bool:
        """Whether the configured rows have been trained on."""
        return self.rows >= self.config.rows

    @property
    def lr(self) -> float:
        """Learning rate of the next step: linear warm-up, constant, linear decay to zero."""
        peak = self.config.lr or LR_AT_16K / (self.dictionary.n_latents / 2**14) ** 0.5
        return peak * trapezoid(self.rows, self.config.rows, self.config.warmup, self.config.decay)

    @torch.no_grad()
    def step(self, batch: Batch) -> None:
        """Train on one batch of finite rows (the stream refuses others before they get here)."""
        acts = batch.acts[self.sites[0]].to(self.dictionary.W_dec.device, torch.float32)
        if self.steps == 0:
            self._start(acts)
        if self.steps % IDLE_EVERY == 0:
            self.idle = (self.since_fired >= self.config.aid_after).nonzero()[:, 0]
        self.objective.progress = self.rows / self.config.rows
        if self.replay is not None and not len(self.idle):
            self.scalars.copy_(self._adam.scalars(), non_blocking=True)
            self.replay(acts)
        else:
            self._advance(acts, self._adam)
        self.steps += 1
        self.rows += len(acts)

    def _advance(self, acts: Float32[Tensor, "batch d"], adam: Adam) -> None:
        """The step on the device."""
        centred = torch.mul(acts, self.scale).sub_(self.dictionary.b_dec)
        rows = centred.bfloat16() if self.choice[:2] == ("triton", "bf16") else centred  # half the bytes to gather
        found = self.objective.gradients(centred, rows, self._decoder, self.shadow)
        self.dictionary.observe(found.code)
        extra, aux_loss = auxk_gradients(
            centred, found.residual.float(), self.weights, self.idle, self._aux_k, self.config.aux_coefficient
        )
        variance = _sum_of_squares(centred) - len(centred) * centred.mean(0).square().sum()
        scale = 2 / variance  # of d(half the squared error), for the loss sum of squared errors / variance
        fired = self._update(found, rows, scale, adam, extra)
        self.since_fired += len(acts)
        self.since_fired.masked_fill_(fired > 0, 0)
        count, active = aux_loss.new_full((), len(acts)), (found.code.values != 0).sum()
        self.sums += torch.stack([found.squares.sum(), variance, active, aux_loss * count, count]).double()

    def _update(
        self, found: Gradients, rows: Tensor, scale: Tensor, adam: Adam, extra: RowGradients | None
    ) -> Int[Tensor, " n"]:
        """Update all parameters from one batch, by way of clipped gradient rows where a clip is asked for.

        Returns:
            How many codes of each latent had a gradient.
        """
        to_bias = found.to_bias.sum(0, dtype=torch.float32) * scale
        given = (found.parts, rows, scale, State(self.weights, self.moments, self.shadow), adam, extra)
        if self.config.clip_norm is None:
            updated = step_parts(*given)
        else:
            updated, factor = step_clipped(*given, self.config.clip_norm)
            to_bias, scale = to_bias * factor, scale * factor
        adam_step(self.dictionary.b_dec, to_bias - updated.to_input, self.bias_moments, adam)
        self.objective.update({name: gradient * scale for name, gradient in found.own.items()}, adam)
        return updated.fired

    @property
    def _decoder(self) -> Tensor:
        """Decoder rows that the step gathers: the low-precision copy where there is one."""
        copy = self.shadow.W_dec if self.shadow is not None else None
        return self.weights.W_dec if copy is None else copy

    @property
    def _aux_k(self) -> int:
        return self.dictionary.d_in // 2 if self.config.aux_k is None else self.config.aux_k

    def _start(self, x: Float32[Tensor, "batch d"]) -> None:
        spread = (x - x.mean(0)).square().mean().sqrt()
        if not spread > 0:
            raise InputError(f"all {len(x)} rows of the first batch at {self.sites[0]} are equal: nothing to learn")
        self.scale = float(1 / spread)
        initialise(self.dictionary, x * self.scale, generator(self.config.seed, "init", self.name), self.config.blend)
        self.objective.start(x * self.scale - self.dictionary.b_dec)
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
            "first": self.moments.first._asdict() if self.moments.first else {},
            "second": self.moments.second._asdict(),
            "touched": {} if self.moments.touched is None else {"at": self.moments.touched},
            "objective": self.objective.state_dict(),
            "bias_moments": self.bias_moments,
            "since_fired": self.since_fired,
            "idle": self.idle,
            "sums": self.sums,
            "counts": {"scale": self.scale, "steps": self.steps, "rows": self.rows},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict` of the same dictionary config."""
        shape = tuple(state["dictionary"]["W_dec"].shape)
        if shape != tuple(self.weights.W_dec.shape):
            raise InputError(f"the checkpoint holds a dictionary of shape {shape}, this run asks for "
                             f"{tuple(self.weights.W_dec.shape)}: use the run's own config")  # fmt: skip
        missing = sorted(self.state_dict().keys() - state.keys())
        if missing:
            raise InputError(f"the checkpoint lacks {', '.join(missing)}: it is of an earlier version, "
                             "which cannot be continued; start the run anew")  # fmt: skip
        self.dictionary.load_state_dict(state["dictionary"])
        self.objective.load_state_dict(state["objective"])
        for mine, saved in ((self.moments.first, state["first"]), (self.moments.second, state["second"])):
            for name, tensor in (mine._asdict() if mine else {}).items():
                tensor.copy_(saved[name])
        if self.moments.touched is not None:
            self.moments.touched.copy_(state["touched"]["at"])
        for name in ("bias_moments", "since_fired", "sums"):
            getattr(self, name).copy_(state[name])
        self.idle = state["idle"].to(self.idle.device)
        self.scale, self.steps, self.rows = (state["counts"][key] for key in ("scale", "steps", "rows"))
        self._make_shadow()

    def folded(self) -> SparseAutoencoder:
        """A copy of the dictionary in activation units, with its provenance."""
        copy = type(self.dictionary)(self.dictionary.config)
        copy.load_state_dict(self.dictionary.state_dict())
        copy.precision = self.dictionary.precision
        if self.scale:
            copy.fold_scale(self.scale)
        training = {"config": asdict(self.config), "rows": self.rows, "steps": self.steps,
                    "dead_fraction": float((self.since_fired >= self.config.dead_after).float().mean())}  # fmt: skip
        copy.provenance = Provenance(self.provenance.site, self.provenance.model, self.provenance.norm_limit, training)
        return copy

    def save(self, folder: Path) -> None:
        """Write the folded dictionary."""
        self.folded().save(folder)
