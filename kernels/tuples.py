"""Tuples that the operations share with their CPU and GPU implementations."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float32, Int32, Int64
from torch import Tensor


class Codes(NamedTuple):
    """k entries a row: fp32 values and int32 columns, ascending by column."""

    values: Float32[Tensor, "rows k"]
    columns: Int32[Tensor, "rows k"]


class Ragged(NamedTuple):
    """CSR codes: row r holds entries indptr[r] to indptr[r + 1], ascending by column."""

    indptr: Int64[Tensor, " rows+1"]
    indices: Int32[Tensor, " nnz"]
    values: Float32[Tensor, " nnz"]


class Kth(NamedTuple):
    """The m-th largest value, and how many entries equal to it belong to the m largest; both on the device."""

    value: Float32[Tensor, ""]
    spare: Int32[Tensor, ""]


class Residual(NamedTuple):
    """Of one batch: x_hat - x [batch, d] (x is what is to be reconstructed, whatever was encoded), its squared norms
    [batch], and W_dec[index] . residual per code [nnz]."""

    residual: Float32[Tensor, "batch d"]
    squares: Float32[Tensor, " batch"]
    grads: Float32[Tensor, " nnz"]


class LowPrecisionCopy(NamedTuple):
    """Low-precision copies of the weights, kept up by the update: what the products and gathers read.

    int8 (CPU): W_enc rows with one scale and one norm a latent. bf16: W_enc and W_dec.
    """

    W_enc: Tensor
    scale: Float32[Tensor, " n"] | None = None
    norm: Float32[Tensor, " n"] | None = None
    W_dec: Tensor | None = None


class Weights(NamedTuple):
    """W_enc [n, d], W_dec [n, d_out] with unit rows, b_enc [n]; the same tuple holds Adam's moments."""

    W_enc: Tensor
    W_dec: Tensor
    b_enc: Tensor


class RowGradients(NamedTuple):
    """Gradient rows of some latents: their distinct ids [r] int64, then [r, d], [r, d_out] and [r, 1].

    Ids from n_latents on are nobody's, and their rows count for nothing: the number of rows can then be fixed where the
    number of latents is known to the device alone.
    """

    latents: Tensor
    W_enc: Tensor
    W_dec: Tensor
    b_enc: Tensor

    def plus(self, other: RowGradients) -> RowGradients:
        """The sum: a row for each latent of either (accumulation, other ranks, the dead-latent aid)."""
        latents, place = torch.cat([self.latents, other.latents]).unique(return_inverse=True)
        parts = (
            ours.new_zeros(len(latents), ours.shape[1]).index_add_(0, place, torch.cat([ours, theirs]))
            for ours, theirs in zip(self[1:], other[1:], strict=True)
        )
        return RowGradients(latents, *parts)

    def places(self, n: int) -> Tensor:
        """Where each of n latents stands in `latents` [n] int32, -1 where it does not."""
        places = torch.arange(len(self.latents), dtype=torch.int32, device=self.latents.device)
        nowhere = torch.full((n + 1,), -1, dtype=torch.int32, device=self.latents.device)
        return nowhere.scatter_(0, self.latents.long().clamp_max(n), places)[:n]

    def owned(self, n: int) -> RowGradients:
        """The rows of n latents, without those of nobody; their number is read back to the host."""
        return RowGradients(*(part[self.latents < n] for part in self))

    def onto(self, other: RowGradients) -> RowGradients:
        """The sum with `other`, which has a row for each latent in order; nothing is read back to the host."""
        n = len(other.latents)
        place = self.latents.long().clamp_max(n)
        parts = (
            torch.cat([theirs, theirs.new_zeros(1, theirs.shape[1])]).index_add_(0, place, ours)[:n]
            for ours, theirs in zip(self[1:], other[1:], strict=True)
        )
        return RowGradients(other.latents, *parts)

    def times(self, factor: float | Tensor) -> RowGradients:
        """Every row multiplied by `factor`."""
        return RowGradients(self.latents, *(part * factor for part in self[1:]))

    def norm(self) -> Tensor:
        """The global norm over all rows."""
        return torch.stack([part.square().sum() for part in self[1:]]).sum().sqrt()


class Moments(NamedTuple):
    """Adam's state. `first` is None where beta1 is 0; `touched` [n] int32, the step of each latent's last update, is
    there where only latents with a gradient are updated."""

    first: Weights | None
    second: Weights
    touched: Tensor | None = None


@dataclass(frozen=True)
class Adam:
    """Adam's scalars for one step (Kingma & Ba 2015, algorithm 1); `t` counts from 1.

    With `Moments.touched` only latents with a gradient this step are updated; their moments first decay by the steps
    missed. For beta1 = 0 that equals the dense update exactly (a zero gradient moves nothing); for beta1 > 0 it is a
    different optimizer, known as `active_row`.
    """

    lr: float
    t: int
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    device: Tensor | None = None
    """`scalars()` on the GPU, where a captured graph must read them anew at each replay."""

    @property
    def corrections(self) -> tuple[float, float]:
        """1 - beta^t for both moments."""
        return 1 - self.beta1**self.t, 1 - self.beta2**self.t

    def on(self, device: torch.device) -> Adam:
        """With `scalars()` on a GPU, copied while the host goes on; the same on a CPU, or where they are there."""
        if device.type != "cuda" or self.device is not None:
            return self
        return replace(self, device=self.scalars().pin_memory().to(device, non_blocking=True))

    def scalars(self) -> Tensor:
        """[lr, beta1, beta2, 1 - beta1^t, 1 - beta2^t, eps, t] in fp64: 1 - 0.999 loses five digits in fp32."""
        return torch.tensor([self.lr, self.beta1, self.beta2, *self.corrections, self.eps, self.t], dtype=torch.float64)


class Updated(NamedTuple):
    """Sums of a batch that the caller still needs: the encoder's share of the gradient to the centred input's
    offset, summed over rows [d] (b_dec takes its negative), and how often each latent fired [n] int64."""

    to_input: Tensor
    fired: Tensor


class JumpGradients(NamedTuple):
    """Gradients to the pre-activation of every entry [nnz] and to every threshold [n]."""

    to_pre: Float32[Tensor, " nnz"]
    to_theta: Float32[Tensor, " n"]
