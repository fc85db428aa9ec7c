"""`DeadLatents`: which latents have not fired for a while, and three ways to help them.

    aid        idle latents learn to explain the residual (Gao et al. 2024, arXiv 2406.04093, appendix A.2)
    wake       biases that silence idle latents rise until each fires, where the threshold is in the biases
    resample   dead latents start anew on rows that are reconstructed badly (Bricken et al. 2023, neuron resampling)

A latent is idle after `TrainConfig.idle_after` rows without firing, and dead after `dead_after`.

Resampling draws each row at most once, with probability proportional to its squared error squared; where more latents
are dead than there are rows, the longest dead come first. The latent's decoder row becomes the direction of the row's
target, its encoder row the direction of the row's input, at `SHARE` of the mean norm of living encoders. Where
pre-activations must exceed a bound, the encoder row is long enough that its row gives `EXCESS` times the bound.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float32, Int
from torch import Tensor
from torch.nn.functional import normalize

from ...kernels.auxk import auxk_gradients
from ...kernels.dispatch import fixed_sizes
from ...kernels.tuples import RowGradients
from ..architectures.objective import Gradients, Objective, TrainingRows
from .config import TrainConfig
from .optimizers import Optimizer

IDLE_EVERY = 16
"""Steps between two looks for idle latents."""

AIDED = 2048
"""The least number of latents that the aid serves where sizes are fixed; twice the codes a row of the aid if more."""

WAKE_UNTIL = 0.9
"""Share of a run after which no latent is woken: a woken latent needs the rest of the run to learn something."""

SHARE = 0.2
"""Share of the mean norm of living encoders: a latent that starts small does not upset the others."""

EXCESS = 1.5
"""Multiple of the bound that a resampled latent's row gives: the latent fires there, and on few other rows."""

SMALL = 0.1
"""Share of the mean norm of drawn rows: a smaller row counts as of that norm, lest its latent become huge."""


class DeadLatents:
    """Counts the rows since each latent fired, and helps latents that have not fired for long.

    Args:
        objective: of the dictionary in training.
        optimizer: of the same objective; the state of a latent that starts anew is forgotten.
        k: codes a row at the end of training, from which the aid takes its size.
    """

    def __init__(self, objective: Objective, optimizer: Optimizer, config: TrainConfig, k: int) -> None:
        dictionary = objective.dictionary
        self.objective, self.optimizer, self.config = objective, optimizer, config
        self.aid_size, self.aid_weight = config.aid(dictionary, k)
        self.idle_after = config.idle_after(dictionary.n_latents, k)
        device = dictionary.W_dec.device
        self.since_fired = torch.zeros(dictionary.n_latents, dtype=torch.int64, device=device)
        """Rows since each latent fired [n_latents]."""
        self.idle = torch.zeros(0, dtype=torch.int64, device=device)
        """Latents that get help in this step, in ascending order; ids from n_latents on are nobody's."""

    @property
    def fraction(self) -> float:
        """Share of latents that are dead now; reading it makes the host wait for the device."""
        return float((self.since_fired >= self.config.dead_after).float().mean())

    @property
    def fixed(self) -> bool:
        """True if `idle` has a fixed number of entries, those of the longest idle latents: the host then waits never.

        Objectives with the threshold in the bias are left out: their steps make the host wait anyway.
        """
        return fixed_sizes(self.since_fired.device) and not self.objective.threshold_in_bias

    def refresh_idle(self, step: int) -> None:
        """Look for idle latents, every `IDLE_EVERY` steps."""
        if step % IDLE_EVERY:
            return
        n = len(self.since_fired)
        if not self.fixed:
            self.idle = (self.since_fired >= self.idle_after).nonzero()[:, 0]
            return
        since, latents = self.since_fired.sort(descending=True, stable=True)
        most = min(n, max(AIDED, 2 * self.aid_size))
        self.idle = torch.where(since[:most] >= self.idle_after, latents[:most], n).sort().values

    def aid(self, gradients: Gradients, rows: TrainingRows) -> tuple[RowGradients | None, Float32[Tensor, ""]]:
        """Gradients that make idle latents explain the residual of a batch, and the loss they leave.

        Returns:
            Gradient rows, None without idle latents; and the squared error over the residual's variance. A latent with
            its threshold in the bias gets none: `wake` helps it.
        """
        idle = self.idle[:0] if self.objective.threshold_in_bias else self.idle
        residual = gradients.residual.float()
        return auxk_gradients(rows.input, residual, self.optimizer.weights, idle, self.aid_size, self.aid_weight)

    def count(self, fired: Int[Tensor, " n_latents"], rows: int) -> None:
        """Take in how many codes each latent had in a batch of `rows`."""
        self.since_fired += rows
        self.since_fired.masked_fill_(fired > 0, 0)

    def wake(self, rows: TrainingRows, step: int) -> None:
        """Raise the biases that silence idle latents, every `IDLE_EVERY` steps.

        Only objectives with the threshold in the bias do this, until `WAKE_UNTIL`; `aux_k=0` turns it off.
        """
        due = step % IDLE_EVERY == 0 and self.objective.progress < WAKE_UNTIL
        if due and self.objective.threshold_in_bias and self.aid_size:
            self.objective.wake(rows, self.idle)
            self.optimizer.forget_biases(self.idle)

    @torch.no_grad()
    def resample(self, rows: TrainingRows, squares: Float32[Tensor, " batch"], generator: torch.Generator) -> int:
        """Start dead latents anew: weights in place, with the optimizer's and the objective's state of them.

        Args:
            rows: batch that the latents' new directions are drawn from.
            squares: squared error of each row.
            generator: of random numbers on the CPU.

        Returns:
            How many latents start anew.
        """
        dead = self.since_fired >= self.config.dead_after
        longest = self.since_fired.sort(descending=True, stable=True).indices
        latents = longest[: min(int(dead.sum()), len(squares))]
        if not len(latents):
            return 0
        weights = self.optimizer.weights
        odds = squares.double().square().cpu().clamp_min(1e-300)
        picks = torch.multinomial(odds / odds.sum(), len(latents), generator=generator).to(dead.device)
        norms = weights.W_enc.norm(dim=1)
        alive = norms[~dead] if not dead.all() else norms
        read, bound = rows.input[picks], torch.as_tensor(self.objective.bound(), device=dead.device)
        sizes = read.norm(dim=1, keepdim=True)
        length = torch.maximum(SHARE * alive.mean(), EXCESS * bound / sizes.clamp_min(SMALL * sizes.mean() + 1e-12))
        weights.W_enc[latents] = length * normalize(read, dim=1)
        weights.W_dec[latents] = normalize(rows.target[picks], dim=1)
        weights.b_enc[latents] = -bound if self.objective.threshold_in_bias else 0.0
        self.optimizer.forget(latents)
        self.objective.restart(latents, bound)
        self.objective.settle()
        self.since_fired[latents] = 0
        return len(latents)

    def state_dict(self) -> dict[str, Any]:
        """Counts and idle latents, for a checkpoint."""
        return {"since_fired": self.since_fired, "idle": self.idle}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.since_fired.copy_(state["since_fired"])
        idle = state["idle"].to(self.since_fired.device)
        self.idle = idle if self.fixed else idle[idle < len(self.since_fired)]
