"""`TrainConfig`: how one dictionary is trained, whatever its architecture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ...kernels.dispatch import PRECISIONS, Precision
from ...lab.errors import InputError, unknown
from ..architectures.schedules import check_share, ramp, trapezoid

if TYPE_CHECKING:
    from ..architectures.sae import SparseAutoencoder

OPTIMIZERS = ("adam", "active_row", "muon", "signum", "adam8bit")
DECAYS = ("linear", "cosine")
STARTS, CENTRES = ("tied", "kaiming", "normal"), ("median", "mean", "zero")

LR_AT_16K = 2.25e-3
"""At n_latents 9216 this is 3e-3: 5e-4, 1e-3, 3e-3 and 6e-3 gave FVU 0.206, 0.176, 0.150 and 0.149 after 300k rows
of SmolLM2 activations at batch 2048, starting with blend 0.8."""


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
    """Share of the rows, at the end, over which the learning rate falls to zero."""
    decay_shape: Literal["linear", "cosine"] = "linear"
    """Shape of the fall: linear, or cosine, slow at both ends (Loshchilov & Hutter 2017, arXiv 1608.03983)."""
    beta1: float = 0.9
    """Adam's first decay. With 0 a latent that did not fire is left alone, which is exact, and state is halved."""
    beta2: float = 0.999
    """Adam's second decay."""
    aux_k: int | None = None
    """Dead latents that explain each row's residual; by default half of d_in where every row has k codes (Gao et al.
    2024) and k where all rows share a bound or a budget: fewer are larger, and get there. 0 turns the aid off. Idle
    latents of relu and gated, whose threshold is in the bias, get higher biases in place of it, whatever the number."""
    aux_coefficient: float | None = None
    """Weight of the aid against the normalised reconstruction loss; by default 1/32, or 1/2 where there is a bound.
    BatchTopK of 16,384 latents after 410k rows of SmolLM2: 288 latents at 1/32 leave 10 % dead at FVU 0.150, k at 1/2
    leave 3 % at 0.147; of TopK none is dead either way, but 0.6 and 2.8 % are idle for 100k rows, at FVU 0.138."""
    aid_after: int = 25_000
    """Rows without firing after which a latent gets the aid. It keeps latents of relu and gated from becoming rarer."""
    dead_after: int = 250_000
    """Rows without firing after which a latent counts as dead in the metrics."""
    blend: float = 0.0
    """Share of a data row in each starting decoder row; 0 starts on random directions. Some data speeds the start
    and kills latents: after 400k rows of SmolLM2, 0 / 0.4 / 0.8 gave FVU 0.137 / 0.132 / 0.136 and 0.2 / 2.9 /
    13 % dead."""
    start: Literal["tied", "kaiming", "normal"] = "tied"
    """Starting weights: encoder = decoder transposed and fitted to the first batch, or one of its own; see
    `initialise`."""
    start_bias: Literal["median", "mean", "zero"] = "median"
    """Start of b_dec: the geometric median or the mean of the first batch, or zero."""
    precision: Precision = "auto"
    """Products that propose codes: fp32, bf16 or int8 (screened, exact); auto goes by the hardware."""
    optimizer: Literal["adam", "active_row", "muon", "signum", "adam8bit"] = "adam"
    """`active_row` is a different optimizer, faster with very many latents: a latent that did not fire is left alone
    whatever beta1, and its moments decay by the steps missed when it fires again. `muon`, `signum`
    (schedule-free) and `adam8bit` see the whole gradient, in memory as large as the weights; see `optimizers`."""
    ema: float | None = None
    """Decay of a running mean of the weights, such as 0.999, which is then saved in their place. Costs a copy."""
    k_start: int | None = None
    """Codes a row at the start, falling linearly to the dictionary's k; for architectures that select by a k."""
    k_anneal: float = 0.2
    """Share of the rows over which k falls from `k_start`."""
    resample_every: int | None = None
    """Steps between which dead latents (`dead_after`) start anew on rows with large errors; see `dead_latents`."""
    clip_norm: float | None = None
    """Largest global norm of the gradient; off by default, since Adam with a warm-up does not need it. Costs a pass."""
    cuda_graph: bool = False
    """Record the step once on a GPU and replay it while no latent needs the aid: spares launch costs in small steps."""
    seed: int = 0
    """Seed of the starting weights."""

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise unknown("precision", self.precision, PRECISIONS)
        if self.rows != int(self.rows) or self.rows < 1:
            raise InputError(f"rows must be a whole number from 1, got {self.rows}")
        object.__setattr__(self, "rows", int(self.rows))
        for name in ("warmup", "decay", "blend", "k_anneal"):
            check_share(name, getattr(self, name))
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}")
        if self.aux_k is not None and self.aux_k < 0:
            raise InputError(f"aux_k must be at least 0 (no aid), got {self.aux_k}")
        if self.aux_coefficient is not None and not 0 <= self.aux_coefficient < float("inf"):
            raise InputError(f"aux_coefficient must be a number from 0, got {self.aux_coefficient}")
        for name in ("aid_after", "dead_after"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1 row, got {getattr(self, name)}")
        if self.optimizer not in OPTIMIZERS:
            raise unknown("optimizer", self.optimizer, OPTIMIZERS)
        if self.resample_every is not None and self.resample_every < 1:
            raise InputError(f"resample_every must be at least 1 step (or None for never), got {self.resample_every}")
        if self.resample_every and self.optimizer == "adam8bit":
            raise InputError("resample_every forgets the state of single latents, which 8-bit blocks share: use adam")
        if self.decay_shape not in DECAYS:
            raise unknown("decay_shape", self.decay_shape, DECAYS)
        if self.ema is not None and not 0 < self.ema < 1:
            raise InputError(f"ema must lie between 0 and 1 (or None for none), got {self.ema}")
        if self.ema is not None and self.optimizer == "signum":
            raise InputError("schedule-free signum saves its own mean of the weights: leave out ema, or use adam")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise InputError(f"clip_norm must be above 0 (or None for no clipping), got {self.clip_norm}")
        if self.start not in STARTS:
            raise unknown("start", self.start, STARTS)
        if self.start_bias not in CENTRES:
            raise unknown("start_bias", self.start_bias, CENTRES)
        if self.lr is not None and not 0 < self.lr < 1:
            raise InputError(f"lr must lie between 0 and 1, got {self.lr}")

    def lr_after(self, rows: int, n_latents: int) -> float:
        """Learning rate of the step after `rows` rows: linear warm-up, constant, then the decay to zero."""
        peak = self.lr or LR_AT_16K / (n_latents / 2**14) ** 0.5
        return peak * trapezoid(rows, self.rows, self.warmup, self.decay, cosine=self.decay_shape == "cosine")

    def aid(self, dictionary: SparseAutoencoder, k: int) -> tuple[int, float]:
        """Return how many idle latents explain a row's residual, and the weight of the aid.

        Args:
            k: codes a row at the end of training.
        """
        k, coefficient = (dictionary.d_in // 2, 1 / 32) if dictionary.by_row else (k, 1 / 2)
        return (
            k if self.aux_k is None else self.aux_k,
            coefficient if self.aux_coefficient is None else self.aux_coefficient,
        )

    def k_after(self, rows: int, k: int) -> int:
        """Codes a row in the step after `rows` rows, for a dictionary of `k`."""
        if self.k_start is None:
            return k
        return round(self.k_start + (k - self.k_start) * ramp(rows / self.rows, 0.0, self.k_anneal))
