"""The latent-major update: from codes and residuals to new weights with no gradient tensor in between.

`latent_step` does it all in one pass. `latent_gradients` stops at compact gradients of the rows that fired, for
clipping, accumulation, distribution or another optimiser; `latent_step` without codes applies such rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .custom import operator
from .decode import Residual, row_of_entry
from .dispatch import backend, dense_is_faster
from .encode import Shadow, make_shadow


class Weights(NamedTuple):
    """W_enc [n, d], W_dec [n, d_out] with unit rows, b_enc [n]; the same tuple holds Adam's moments."""

    W_enc: Tensor
    W_dec: Tensor
    b_enc: Tensor


class RowGradients(NamedTuple):
    """Gradient rows of some latents: their distinct ids [r] int64, then [r, d], [r, d_out] and [r, 1]."""

    latents: Tensor
    W_enc: Tensor
    W_dec: Tensor
    b_enc: Tensor

    def plus(self, other: RowGradients) -> RowGradients:
        """The sum: a row for each latent of either (accumulation, other ranks, the dead-latent aid)."""
        latents, place = torch.cat([self.latents, other.latents]).unique(return_inverse=True)
        parts = (
            mine.new_zeros(len(latents), mine.shape[1]).index_add_(0, place, torch.cat([mine, theirs]))
            for mine, theirs in zip(self[1:], other[1:], strict=True)
        )
        return RowGradients(latents, *parts)

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
    different optimiser, known as `active_row`.
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

    def scalars(self) -> Tensor:
        """[lr, beta1, beta2, 1 - beta1^t, 1 - beta2^t, eps, t] in fp64: 1 - 0.999 loses five digits in fp32."""
        return torch.tensor([self.lr, self.beta1, self.beta2, *self.corrections, self.eps, self.t], dtype=torch.float64)


class Updated(NamedTuple):
    """What the caller still needs from the batch: the encoder's share of the gradient to the centred input's
    offset, summed over rows [d] (b_dec takes its negative), and how often each latent fired [n] int64."""

    to_input: Tensor
    fired: Tensor


def new_moments(weights: Weights, beta1: float, active_rows: bool) -> Moments:
    """Zero moments: none of the first kind where beta1 is 0, step counters where only active rows are updated."""
    first = Weights(*map(torch.zeros_like, weights)) if beta1 else None
    touched = torch.zeros(len(weights.b_enc), dtype=torch.int32, device=weights.b_enc.device) if active_rows else None
    return Moments(first, Weights(*map(torch.zeros_like, weights)), touched)


def latent_step(
    codes: tuple[Tensor, Tensor, Tensor],
    out: Residual,
    x: Tensor,
    scale: float | Tensor,
    weights: Weights,
    moments: Moments,
    adam: Adam,
    shadow: Shadow | None = None,
    extra: RowGradients | None = None,
) -> Updated:
    """Update weights, moments and shadow in place from one batch.

    The gradient is `scale` times that of half the squared error: with dz from `out.grads`,
    dW_enc[j] = sum dz x, dW_dec[j] = sum z residual (less its part along W_dec[j]), db_enc[j] = sum dz.
    Codes at zero count as absent. Each latent is summed over its tokens in order: the result is the same every time.

    Args:
        codes: (indptr [batch + 1], indices [nnz] int32, values [nnz]).
        out: its residual [batch, d_out] is as wide as what is reconstructed: d, but for a transcoder.
        x: rows that were encoded (centred) [batch, d].
        scale: a number, or a tensor of one entry on x's device.
        extra: gradient rows to add (those of the dead-latent aid, or of `latent_gradients`).
    """
    scale = torch.as_tensor(scale, dtype=torch.float32, device=x.device)
    first = moments.first or (None, None, None)
    return Updated(
        *_step(
            *codes, out.residual, out.squares, out.grads, x, scale, *weights, *first, *moments.second, moments.touched,
            adam.lr, adam.t, adam.beta1, adam.beta2, adam.eps, adam.device, *(shadow or (None,) * 4),
            *(extra or (None,) * 4),
        )
    )  # fmt: skip


IN_PLACE = ("W_enc", "W_dec", "b_enc", "m_enc", "m_dec", "m_bias", "v_enc", "v_dec", "v_bias", "touched",
            "s_enc", "s_scale", "s_norm", "s_dec")  # fmt: skip


@operator(
    "latent_step(Tensor indptr, Tensor indices, Tensor values, Tensor residual, Tensor squares, Tensor grads, Tensor x,"
    " Tensor scale, Tensor(a!) W_enc, Tensor(b!) W_dec, Tensor(c!) b_enc, Tensor(d!)? m_enc, Tensor(e!)? m_dec,"
    " Tensor(f!)? m_bias, Tensor(g!) v_enc, Tensor(h!) v_dec, Tensor(i!) v_bias, Tensor(j!)? touched, float lr, int t,"
    " float beta1, float beta2, float eps, Tensor? device, Tensor(k!)? s_enc, Tensor(l!)? s_scale, Tensor(m!)? s_norm,"
    " Tensor(n!)? s_dec, Tensor? e_rows, Tensor? e_enc, Tensor? e_dec, Tensor? e_bias) -> (Tensor, Tensor)",
    fake=lambda indptr, indices, values, residual, squares, grads, x, scale, W_enc, *_: (
        x.new_empty(x.shape[1], dtype=torch.float32),
        x.new_empty(len(W_enc), dtype=torch.int64),
    ),
    mutates=IN_PLACE,
)
def _step(indptr, indices, values, residual, squares, grads, x, scale, W_enc, *rest):
    """`latent_step` with its arguments laid out flat."""
    weights, first, second, touched = Weights(W_enc, *rest[:2]), rest[2:5], Weights(*rest[5:8]), rest[8]
    moments = Moments(None if first[0] is None else Weights(*first), second, touched)
    adam = Adam(*rest[9:15])
    shadow = None if rest[15] is None else Shadow(*rest[15:19])
    extra = None if rest[19] is None else RowGradients(*rest[19:])
    match backend(x.device):
        case "compiled":
            from .cpu.update import latent_step as run
        case "triton":
            from .gpu.update import latent_step as run
        case _:
            run = reference
    codes, out, fired = (indptr, indices, values), Residual(residual, squares, grads), None
    if len(indices) and dense_is_faster(x.device, len(W_enc), len(indices) / len(x)):
        from .dense import latent_gradients as products

        rows, fired = products(codes, out, x, scale, len(W_enc))
        extra = rows if extra is None else rows.plus(extra)
        codes = (torch.zeros_like(indptr), indices[:0], values[:0])
        out = Residual(residual, squares, grads[:0])
    updated = run(codes, out, x, scale, weights, moments, adam, shadow, extra)
    return updated.to_input, updated.fired if fired is None else fired


def latent_gradients(
    codes: tuple[Tensor, Tensor, Tensor], out: Residual, x: Tensor, scale: float | Tensor, n_latents: int
) -> RowGradients:
    """The gradients `latent_step` would apply, before projection: a row for each latent that fired, ascending."""
    match backend(x.device):
        case "compiled":
            from .cpu.update import latent_gradients as run
        case "triton":
            from .gpu.update import latent_gradients as run
        case _:
            run = gradients_reference
    return run(codes, out, x, scale, n_latents)


def apply_gradients(
    rows: RowGradients, weights: Weights, moments: Moments, adam: Adam, shadow: Shadow | None = None
) -> Updated:
    """The update of `latent_step` from gradient rows alone; `fired` counts nothing."""
    nothing = rows.W_enc.new_zeros(0)
    codes = (torch.zeros(2, dtype=torch.int64, device=nothing.device), nothing.int(), nothing)
    x, residual = (part.new_zeros(1, part.shape[1]) for part in (rows.W_enc, rows.W_dec))
    return latent_step(codes, Residual(residual, x[:, 0], nothing), x, 1.0, weights, moments, adam, shadow, rows)


def gradients_reference(
    codes: tuple[Tensor, Tensor, Tensor], out: Residual, x: Tensor, scale: float | Tensor, n_latents: int
) -> RowGradients:
    """Dense gradients, then the rows that fired: the specification of `latent_gradients`."""
    dense, fired = _dense_gradients(codes, out, x, scale, n_latents)
    rows = fired.nonzero()[:, 0]
    return RowGradients(rows, dense.W_enc[rows], dense.W_dec[rows], dense.b_enc[rows, None])


def _dense_gradients(
    codes: tuple[Tensor, Tensor, Tensor], out: Residual, x: Tensor, scale: float | Tensor, n: int
) -> tuple[Weights, Tensor]:
    indptr, indices, values = codes
    rows, columns = row_of_entry(indptr, len(indices)), indices.long()
    active = (values != 0).float()
    zeros = [torch.zeros(n, summed.shape[1], device=x.device) for summed in (x, out.residual)]
    grads = Weights(zeros[0], zeros[1], torch.zeros(n, device=x.device))
    grads.W_enc.index_add_(0, columns, scale * (out.grads * active)[:, None] * x[rows])
    grads.W_dec.index_add_(0, columns, scale * (values * active)[:, None] * out.residual[rows])
    grads.b_enc.index_add_(0, columns, scale * out.grads * active)
    return grads, torch.zeros(n, dtype=torch.int64, device=x.device).index_add_(0, columns, active.long())


def reference(
    codes: tuple[Tensor, Tensor, Tensor],
    out: Residual,
    x: Tensor,
    scale: float | Tensor,
    weights: Weights,
    moments: Moments,
    adam: Adam,
    shadow: Shadow | None = None,
    extra: RowGradients | None = None,
) -> Updated:
    """Dense gradients, then Adam, projection and unit norm one after another: the specification."""
    grads, fired = _dense_gradients(codes, out, x, scale, len(weights.b_enc))
    touched = fired > 0
    if extra is not None:
        touched = touched.index_fill(0, extra.latents.long(), True)
        for grad, rows_extra in zip(grads, extra[1:], strict=True):
            grad[extra.latents.long()] += rows_extra.reshape(len(extra.latents), *grad.shape[1:])
    to_input = grads.b_enc @ weights.W_enc
    grads.W_dec.sub_((grads.W_dec * weights.W_dec).sum(1, keepdim=True) * weights.W_dec)
    c1, c2 = adam.corrections
    keep = torch.ones_like(touched) if moments.touched is None else touched
    gap = torch.ones_like(fired) if moments.touched is None else adam.t - moments.touched
    first = moments.first or Weights(*map(torch.zeros_like, weights))
    for p, g, m, v in zip(weights, grads, first, moments.second, strict=True):
        rows = (keep, gap) if p.ndim == 1 else (keep[:, None], gap[:, None])
        m.copy_(torch.where(rows[0], m * adam.beta1 ** rows[1] + (1 - adam.beta1) * g, m))
        v.copy_(torch.where(rows[0], v * adam.beta2 ** rows[1] + (1 - adam.beta2) * g * g, v))
        p.copy_(torch.where(rows[0], p - adam.lr / c1 * m / (v.sqrt() / math.sqrt(c2) + adam.eps), p))
    norm = weights.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-12)
    weights.W_dec.copy_(torch.where(keep[:, None], weights.W_dec / norm, weights.W_dec))
    if moments.touched is not None:
        moments.touched.copy_(torch.where(keep, adam.t, moments.touched))
    if shadow is not None:
        precision = "int8" if shadow.scale is not None else "bf16"
        for kept, new in zip(shadow, make_shadow(weights.W_enc, weights.W_dec, precision) or (), strict=True):
            if kept is not None and new is not None:
                kept.copy_(new)
    return Updated(to_input, fired)
