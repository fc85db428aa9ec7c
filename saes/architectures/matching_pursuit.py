"""Matching pursuit: codes found one after another, each on what the earlier ones left (Costa et al. 2025, 2506.03093).

There is no encoder: a latent's row of W_dec finds it and decodes it. The selection does not depend smoothly on the
rows, the values do, and a value depends on the rows chosen before it; the gradient goes through all of that:

    r_0 = x - b_dec;  v_t = <r_t, d_t>;  r_t+1 = r_t - v_t d_t;  loss |r_k|^2 / 2, with d_t the row chosen at step t
    g_k = r_k;        a_t = <g_t+1, d_t>;  g_t = g_t+1 - a_t d_t;  gradient to d_t: -(v_t g_t+1 + a_t r_t)

-v_t r_k alone is the gradient with codes held constant, as in dictionary learning. On the planted rows of
tests/saes/test_architectures.py it ended at FVU 0.165 with 64 latents and 0.127 with 128, the whole at 0.154 and 0.118.
Going back takes about as long as the pursuit: 0.4 s to its 0.5 s, of one core, for 2048 rows of width 576, 4096 latents
and 32 steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor

from ...kernels.pursuit import pursuit
from ...kernels.tuples import Codes, LowPrecisionCopy, Residual, RowGradients
from ...kernels.update import latent_gradients
from ...lab.errors import InputError
from ..place import AUTOENCODER
from ..registry import register
from ..sparse_code import SparseCode
from .block_update import LatentBlock
from .objective import Gradients, Objective, TrainingRows, latent_sums
from .sae import SAEConfig, SparseAutoencoder
from .schedules import check_share

GRAM_BYTES = 2**30
"""A Gram matrix above it is not made; below, it pays when its n products a latent are fewer than those of the rows."""

CHUNK_BYTES = 2**25
"""What the way back holds: a vector for every code of a chunk of rows."""

WHATEVER_IS_LEFT = -1e30
"""A tolerance that no row reaches: the kernel's energies are those of unit rows, and other libraries' may not be."""


@dataclass(frozen=True)
class MatchingPursuitConfig(SAEConfig):
    """k is the number of steps: the most latents a row can have."""

    tolerance: float = 0.0
    """A row is done when its squared residual is at most this share of |x - b_dec|^2; 0 spends all k steps."""
    once: bool = False
    """True if a row is done when a latent is chosen a second time (its value is still added to the first)."""
    residual_threshold: float = 0.0
    """A row is done when its residual's norm, in activation units, is below. For dictionaries of other libraries:
    training rescales activations, ours have `tolerance`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.place.kind != AUTOENCODER:
            raise InputError(
                "matching pursuit explains what it reads: it is no transcoder (d_out) or crosscoder (sources)"
            )
        check_share("tolerance", self.tolerance)
        if not self.residual_threshold >= 0:
            raise InputError(f"residual_threshold must be at least 0 (no threshold), got {self.residual_threshold}")


@register
class MatchingPursuit(SparseAutoencoder):
    """k times: the latent whose decoder row correlates most with the residual; its correlation is the code.

    Codes are positive; a latent chosen twice has the sum of both. W_enc repeats W_dec and is not saved.
    """

    architecture = "mp"
    config_type = MatchingPursuitConfig
    crosses = False
    config: MatchingPursuitConfig

    def __init__(self, config: MatchingPursuitConfig) -> None:
        super().__init__(config)
        for name in ("W_enc", "b_enc"):
            kept = getattr(self, name).data
            delattr(self, name)
            self.register_buffer(name, kept, persistent=False)
        self.register_load_state_dict_post_hook(_tie)

    def tie(self) -> None:
        """Make W_enc what W_dec is, and b_enc zero."""
        self.W_enc.copy_(self.W_dec)
        self.b_enc.zero_()

    def objective(self) -> MatchingPursuitObjective:
        """Reconstruction, differentiated through the steps."""
        if self.config.residual_threshold:
            raise InputError("residual_threshold is for dictionaries of other libraries: training rescales"
                             " activations, give tolerance")  # fmt: skip
        return MatchingPursuitObjective(self)

    def training_code(self, centred: Float[Tensor, "batch d"], low_precision: LowPrecisionCopy | None) -> SparseCode:
        """k codes a row, zero after a stop."""
        return merged(self.steps(centred), self.n_latents)

    def steps(self, centred: Float[Tensor, "batch d"]) -> Codes:
        """Values and columns in order of selection, a latent perhaps more than once; after a stop values are 0."""
        n, (k, tolerance) = self.n_latents, (self.config.k, self.config.tolerance or WHATEVER_IS_LEFT)
        gram = self.W_dec @ self.W_dec.T if n <= len(centred) * k and 4 * n * n <= GRAM_BYTES else None
        pursued = pursuit(centred, self.W_dec, k, gram=gram, nonnegative=True, tolerance=tolerance)
        done = torch.zeros_like(pursued.columns, dtype=torch.bool)
        if self.config.residual_threshold:
            lost = pursued.values.square() * (2 - self.W_dec.square().sum(1)[pursued.columns.long()])
            left = centred.float().square().sum(1, keepdim=True) - lost.cumsum(1)
            done |= left < self.config.residual_threshold**2
        if self.config.once:
            order = pursued.columns.argsort(dim=1, stable=True)
            done |= torch.zeros_like(done).scatter_(1, order, ~_starts(pursued.columns.gather(1, order)))
        late = done.cumsum(1) > done.long()  # cutting the sequence of choices short does not change what it begins with
        return Codes(pursued.values.masked_fill(late, 0), pursued.columns)


def merged(steps: Codes, n_latents: int) -> SparseCode:
    """Codes by ascending latent, with the values of a latent that was chosen more than once summed."""
    order = steps.columns.argsort(dim=1, stable=True)
    columns, values = steps.columns.gather(1, order), steps.values.gather(1, order)
    starts = _starts(columns)
    runs = starts.flatten().cumsum(0) - 1
    sums = latent_sums(runs, values.flatten(), values.numel())
    return SparseCode.fixed(sums[runs].view_as(values) * starts, columns, n_latents)


def _starts(ascending: Int[Tensor, "batch k"]) -> Bool[Tensor, "batch k"]:
    """Where a row's entry is the first of its value."""
    return torch.cat([torch.ones_like(ascending[:, :1]), ascending.diff(dim=1)], dim=1) != 0


def _tie(dictionary: MatchingPursuit, _: object) -> None:
    dictionary.tie()


class MatchingPursuitObjective(Objective):
    """Half the squared error of what the last step leaves."""

    dictionary: MatchingPursuit
    takes_upstream = False

    def start(self, rows: TrainingRows) -> None:
        """The start scales encoders; here it is the decoder."""
        self.dictionary.tie()

    def gradients(self, rows: TrainingRows, decoder: Tensor, low_precision: LowPrecisionCopy | None) -> Gradients:
        """Codes held constant teach as in any dictionary, but no encoder; what they depend on adds rows of its own."""
        steps = self.dictionary.steps(rows.input)
        code = merged(steps, self.dictionary.n_latents)
        out = self.decoded(code, rows, decoder)
        part = LatentBlock(slice(None), (code.indptr, code.indices, code.values), out._replace(grads=0 * out.grads))
        further, to_input = self._through(steps, -out.residual.float())
        return Gradients(code, out.residual, out.squares, (part,), -to_input, {}, further)

    def _through(
        self, steps: Codes, left: Float32[Tensor, "batch d"]
    ) -> tuple[RowGradients, Float32[Tensor, "batch d"]]:
        """The gradient rows that codes held constant miss, and the gradient to the input (g_0).

        Args:
            left: r_k.
        """
        missing, to_input = torch.zeros_like(self.dictionary.W_dec), left.clone()
        size = max(1, CHUNK_BYTES // (4 * missing.shape[1] * steps.values.shape[1]))
        chunks = zip(*(part.split(size) for part in (*steps, left, to_input)), strict=True)
        for values, columns, rest, back in chunks:
            rows = self._back(values, columns, rest, back)
            active = (values != 0).float().flatten()
            indptr = torch.arange(len(active) + 1, device=active.device)
            out, nothing = Residual(rows, active, torch.zeros_like(active)), active.new_zeros(len(active), 1)
            sums = latent_gradients((indptr, columns.flatten(), active), out, nothing, 1.0, len(missing))
            missing.index_add_(0, sums.latents, sums.W_dec)
        latents = steps.columns[steps.values != 0].unique().long()
        rows = missing[latents]
        return RowGradients(latents, torch.zeros_like(rows), rows, rows.new_zeros(len(rows), 1)), to_input

    def _back(self, values: Tensor, columns: Tensor, left: Tensor, back: Tensor) -> Float32[Tensor, "entries d"]:
        """The gradient that reaches every entry's latent, row by row; `back` goes from r_k to g_0 in place."""
        rows, remainder = values.new_empty(*values.shape, left.shape[1]), left.clone()
        for step in reversed(range(values.shape[1])):
            value, chosen = values[:, step, None], self.dictionary.W_dec[columns[:, step].long()]
            along = (back * chosen).sum(1, keepdim=True) * (value != 0)
            remainder.addcmul_(value, chosen)
            torch.mul(left - back, value, out=rows[:, step]).addcmul_(remainder, along, value=-1)
            back.addcmul_(along, chosen, value=-1)
        return rows.flatten(0, 1)

    def settle(self) -> None:
        """Stay tied: the dead-latent aid reads and moves encoders, too; here it counts what it does to W_dec."""
        self.dictionary.tie()
