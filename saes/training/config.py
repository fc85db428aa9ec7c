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

LR_SCALE, LR_MOST = 0.068, 0.01
"""Constants of `default_lr`, fitted to the best rates of TopK at resid_post.12 of SmolLM2: n_latents 2,048 and 9,216,
batch 512 and 2,048, 53k to 1.05M rows."""
IDLE_ROWS = 25_000
"""Rows after which a latent is idle, at least."""
NARROW = 2**12
"""Latents up to which the share of data in the starting rows is the whole of `data_share`."""


def default_lr(n_latents: int, batch: int, rows: int) -> float:
    """Peak learning rate: `LR_SCALE` * sqrt(batch) / (rows^(1/3) * n_latents^(1/4)), at most `LR_MOST`.

    Args:
        batch: rows a step.
        rows: of the whole training, over which the schedule spans. 0 for `batch` is a run begun by an earlier version:
            it keeps its rate, 2.25e-3 / sqrt(n_latents / 2^14).
    """
    if not batch:
        return 2.25e-3 / (n_latents / 2**14) ** 0.5
    return min(LR_MOST, LR_SCALE * batch**0.5 / (rows ** (1 / 3) * n_latents**0.25))


@dataclass(frozen=True)
class TrainConfig:
    """How one dictionary is trained."""

    rows: int = 1_000_000
    """Activation rows to train on; the learning-rate schedule spans exactly these."""
    lr: float | None = None
    """Peak learning rate; by default .068 * sqrt(batch) / (rows^(1/3) * n_latents^(1/4)), at most .01."""
    warmup: float = 0.02
    """Share of the rows over which the learning rate rises linearly."""
    decay: float = 0.3
    """Share of the rows, at the end, over which the learning rate falls to zero."""
    decay_shape: Literal["linear", "cosine"] = "linear"
    """Shape of the fall: linear, or cosine, slow at both ends (Loshchilov & Hutter 2017, arXiv 1608.03983)."""
    beta1: float = 0.7
    """Adam's first decay. With 0 a latent that did not fire is left alone, which is exact, and state is halved."""
    beta2: float = 0.98
    """Adam's second decay."""
    aux_k: int | None = None
    """Dead latents that explain each row's residual; by default half of d_in where every row has k codes (Gao et al.
    2024) and k where all rows share a bound or a budget: fewer are larger, and get there. 0 turns the aid off. Idle
    latents of relu and gated, whose threshold is in the bias, get higher biases in place of it, whatever the number."""
    aux_coefficient: float | None = None
    """Weight of the aid against the normalised reconstruction loss; by default 1/32, or 1/2 where there is a bound.
    BatchTopK of 16,384 latents after 410k rows of SmolLM2: 288 latents at 1/32 leave 10 % dead at FVU 0.150, k at 1/2
    leave 3 % at 0.147; of TopK none is dead either way, but 0.6 and 2.8 % are idle for 100k rows, at FVU 0.138."""
    aid_after: int | None = None
    """Rows without firing after which a latent gets the aid; by default 25,000, or 8 * n_latents / k if that is more: a
    latent that fires as often as the mean is then idle by chance in one case of 3,000. It keeps latents of relu and
    gated from becoming rarer."""
    dead_after: int = 250_000
    """Rows without firing after which a latent counts as dead in the metrics."""
    blend: float | None = None
    """Share of a data row in each starting decoder row; 0 starts on random directions, which is the published recipe.
    By default the architecture's `data_share`, .4 but for gated, times 4096 / n_latents beyond 4,096 latents: data
    speeds the start, and of many latents it kills some. 16,384 of TopK after 524k rows of SmolLM2: .2, .1 and 0 gave
    4.5, 1.0 and .7 % dead."""
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
        for name in ("warmup", "decay", "k_anneal", *(() if self.blend is None else ("blend",))):
            check_share(name, getattr(self, name))
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}")
        if self.aux_k is not None and self.aux_k < 0:
            raise InputError(f"aux_k must be at least 0 (no aid), got {self.aux_k}")
        if self.aux_coefficient is not None and not 0 <= self.aux_coefficient < float("inf"):
            raise InputError(f"aux_coefficient must be a number from 0, got {self.aux_coefficient}")
        for name in ("aid_after", "dead_after"):
            if (rows := getattr(self, name)) is not None and rows < 1:
                raise InputError(f"{name} must be at least 1 row, got {rows}")
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

    def lr_after(self, rows: int, n_latents: int, batch: int) -> float:
        """Learning rate of the step after `rows` rows: linear warm-up, constant, then the decay to zero.

        Args:
            batch: rows a step, as `default_lr` takes them.
        """
        peak = self.lr or default_lr(n_latents, batch, self.rows)
        return peak * trapezoid(rows, self.rows, self.warmup, self.decay, cosine=self.decay_shape == "cosine")

    def data_share(self, dictionary: SparseAutoencoder) -> float:
        """Share of data in the starting decoder rows of a dictionary."""
        if self.blend is not None:
            return self.blend
        return dictionary.data_share * min(1.0, NARROW / dictionary.n_latents)

    def idle_after(self, n_latents: int, k: int) -> int:
        """Rows without firing after which a latent is idle, with `k` codes a row at the end of training."""
        return self.aid_after or max(IDLE_ROWS, 8 * n_latents // k)

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
