"""The latent-major update: from codes and residuals to new weights with no gradient tensor in between.

`latent_step` does it all in one pass. `latent_gradients` stops at compact gradients of the rows that fired, for
clipping, accumulation, distribution or another optimizer; `latent_step` without codes applies such rows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .chunks import entry_slices
from .csr import row_of_entry
from .dispatch import dense_is_faster, kernel
from .encode import low_precision_copy
from .operators import operator
from .tuples import Adam, LowPrecisionCopy, Moments, Residual, RowGradients, Updated, Weights


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
    low_precision: LowPrecisionCopy | None = None,
    extra: RowGradients | None = None,
) -> Updated:
    """Update weights, moments and low-precision copy in place from one batch.

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
            adam.lr, adam.t, adam.beta1, adam.beta2, adam.eps, adam.device, *(low_precision or (None,) * 4),
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
    low_precision = None if rest[15] is None else LowPrecisionCopy(*rest[15:19])
    extra = None if rest[19] is None else RowGradients(*rest[19:])
    run = kernel("latent_step", x.device, reference)
    codes, out, fired = (indptr, indices, values), Residual(residual, squares, grads), None
    if len(indices) and dense_is_faster(x.device, len(W_enc), len(indices) / len(x)):
        from .dense import latent_gradients as products

        rows, fired = products(codes, out, x, scale, len(W_enc))
        extra = rows if extra is None else extra.onto(rows)
        codes = (torch.zeros_like(indptr), indices[:0], values[:0])
        out = Residual(residual, squares, grads[:0])
    updated = run(codes, out, x, scale, weights, moments, adam, low_precision, extra)
    return updated.to_input, updated.fired if fired is None else fired


def latent_gradients(
    codes: tuple[Tensor, Tensor, Tensor], out: Residual, x: Tensor, scale: float | Tensor, n_latents: int
) -> RowGradients:
    """The gradients `latent_step` would apply, before projection: a row for each latent that fired, ascending."""
    run = kernel("latent_gradients", x.device, gradients_reference)
    return run(codes, out, x, scale, n_latents)


def apply_gradients(
    rows: RowGradients, weights: Weights, moments: Moments, adam: Adam, low_precision: LowPrecisionCopy | None = None
) -> Updated:
    """The update of `latent_step` from gradient rows alone; `fired` counts nothing."""
    nothing = rows.W_enc.new_zeros(0)
    codes = (torch.zeros(2, dtype=torch.int64, device=nothing.device), nothing.int(), nothing)
    x, residual = (part.new_zeros(1, part.shape[1]) for part in (rows.W_enc, rows.W_dec))
    return latent_step(codes, Residual(residual, x[:, 0], nothing), x, 1.0, weights, moments, adam, low_precision, rows)


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
    to_encoder, to_decoder = out.grads * active, values * active
    for part in entry_slices(len(indices), max(x.shape[1], out.residual.shape[1]), x.device.type):
        grads.W_enc.index_add_(0, columns[part], scale * to_encoder[part, None] * x[rows[part]])
        grads.W_dec.index_add_(0, columns[part], scale * to_decoder[part, None] * out.residual[rows[part]])
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
    low_precision: LowPrecisionCopy | None = None,
    extra: RowGradients | None = None,
) -> Updated:
    """Dense gradients, then Adam, projection and unit norm one after another: the specification."""
    grads, fired = _dense_gradients(codes, out, x, scale, len(weights.b_enc))
    touched = fired > 0
    if extra is not None:
        latents = torch.arange(len(fired), device=fired.device)
        whole = (grad.reshape(len(fired), -1) for grad in grads)
        added = extra.onto(RowGradients(latents, *whole))
        grads = Weights(*(part.reshape(grad.shape) for part, grad in zip(added[1:], grads, strict=True)))
        touched = touched | (extra.places(len(fired)) >= 0)
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
    if low_precision is not None:
        precision = "int8" if low_precision.scale is not None else "bf16"
        for kept, new in zip(
            low_precision, low_precision_copy(weights.W_enc, weights.W_dec, precision) or (), strict=True
        ):
            if kept is not None and new is not None:
                kept.copy_(new)
    return Updated(to_input, fired)
