"""The latent-major update: from codes and residuals to new weights with no gradient tensor in between."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import cpu_step
from .decode import Residual, row_of_entry
from .dispatch import compiled
from .encode import Shadow
from .threads import run_parts, weighted_parts


class Weights(NamedTuple):
    """W_enc [n, d], W_dec [n, d] with unit rows, b_enc [n]; the same tuple holds Adam's moments."""

    W_enc: Tensor
    W_dec: Tensor
    b_enc: Tensor


class Extra(NamedTuple):
    """Gradient rows to add for a few latents: their ids [r], then [r, d], [r, d] and [r, 1]."""

    latents: Tensor
    W_enc: Tensor
    W_dec: Tensor
    b_enc: Tensor


@dataclass(frozen=True)
class Adam:
    """Adam's scalars for one step (Kingma & Ba 2015, algorithm 1); `t` counts from 1."""

    lr: float
    t: int
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    @property
    def corrections(self) -> tuple[float, float]:
        """1 - beta^t for both moments."""
        return 1 - self.beta1**self.t, 1 - self.beta2**self.t


class Updated(NamedTuple):
    """What the caller still needs from the batch: the encoder's share of the gradient to the centred input's
    offset, summed over rows [d] (b_dec takes its negative), and how often each latent fired [n] int64."""

    to_input: Tensor
    fired: Tensor


def latent_step(
    codes: tuple[Tensor, Tensor, Tensor],
    out: Residual,
    x: Tensor,
    scale: float | Tensor,
    weights: Weights,
    first: Weights,
    second: Weights,
    adam: Adam,
    shadow: Shadow | None = None,
    extra: Extra | None = None,
) -> Updated:
    """Update weights and moments in place from one batch.

    The gradient is `scale` times that of half the squared error: with dz from `out.grads`,
    dW_enc[j] = sum dz x, dW_dec[j] = sum z residual (less its part along W_dec[j]), db_enc[j] = sum dz.
    Each latent is summed over its tokens in order by one thread: the result does not depend on the threads.

    Args:
        codes: (indptr [batch + 1], indices [nnz] int32, values [nnz]).
        x: rows that were encoded (centred) [batch, d].
    """
    if not compiled(x.device):
        return reference(codes, out, x, scale, weights, first, second, adam, shadow, extra)
    n, d = weights.W_enc.shape
    nnz = len(codes[1])
    pointers = np.empty(n + 1, np.int64)
    tokens, entries = np.empty(nnz, np.int32), np.empty(nnz, np.int32)
    indptr, indices, values = (part.numpy() for part in codes)
    cpu_step.transpose_codes(indptr, indices, n, pointers, tokens, entries)
    factor = np.float32(float(scale))
    extra_row, extra_rows = np.full(n, -1, np.int32), _numpy((torch.empty(0, d), torch.empty(0, d)))
    bias_grads, fired = torch.zeros(n), torch.empty(n, dtype=torch.int64)
    if extra is not None:
        extra_row[extra.latents.numpy()] = np.arange(len(extra.latents), dtype=np.int32)
        extra_rows = _numpy(extra[1:3])
        bias_grads[extra.latents] = extra.b_enc[:, 0]
    cpu_step.bias_gradients(pointers, entries, values, out.grads.numpy(), factor, bias_grads.numpy(), fired.numpy())
    updated = Updated(bias_grads @ weights.W_enc, fired)
    if shadow is None:
        shadow = Shadow(torch.empty(n, d, dtype=torch.int8), torch.empty(n), torch.empty(n))
    parts = weighted_parts(np.diff(pointers) * 2.0 + 8.0, torch.get_num_threads())
    c1, c2 = adam.corrections
    step = cpu_step.AdamStep(*(np.float32(v) for v in (adam.lr, adam.beta1, adam.beta2, c1, c2, adam.eps)))
    run_parts(
        cpu_step.latent_rows, parts, pointers, tokens, entries, values, out.grads.numpy(), x.numpy(),
        out.residual.numpy(), factor, extra_row, extra_rows, _numpy(weights), _numpy(first), _numpy(second),
        step, _numpy(shadow), bias_grads.numpy(),
    )  # fmt: skip
    return updated


def _numpy(tensors: tuple[Tensor, ...]) -> tuple:
    return tuple(tensor.detach().numpy() for tensor in tensors)


def reference(
    codes: tuple[Tensor, Tensor, Tensor],
    out: Residual,
    x: Tensor,
    scale: float | Tensor,
    weights: Weights,
    first: Weights,
    second: Weights,
    adam: Adam,
    shadow: Shadow | None = None,
    extra: Extra | None = None,
) -> Updated:
    """Dense gradients, then Adam, projection and unit norm one after another: the specification."""
    indptr, indices, values = codes
    rows, columns = row_of_entry(indptr, len(indices)), indices.long()
    active = (values > 0).to(x.dtype)
    grads = Weights(*(torch.zeros_like(weight) for weight in weights))
    grads.W_enc.index_add_(0, columns, scale * (out.grads * active)[:, None] * x[rows])
    grads.W_dec.index_add_(0, columns, scale * (values * active)[:, None] * out.residual[rows])
    grads.b_enc.index_add_(0, columns, scale * out.grads * active)
    if extra is not None:
        for grad, rows_extra in zip(grads, extra[1:], strict=True):
            grad[extra.latents.long()] += rows_extra.reshape(len(extra.latents), *grad.shape[1:])
    to_input = grads.b_enc @ weights.W_enc
    grads.W_dec.sub_((grads.W_dec * weights.W_dec).sum(1, keepdim=True) * weights.W_dec)
    c1, c2 = adam.corrections
    for p, g, m, v in zip(weights, grads, first, second, strict=True):
        m.mul_(adam.beta1).add_(g, alpha=1 - adam.beta1)
        v.mul_(adam.beta2).addcmul_(g, g, value=1 - adam.beta2)
        p.sub_(adam.lr / c1 * m / (v.sqrt() / math.sqrt(c2) + adam.eps))
    weights.W_dec.div_(weights.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-12))
    fired = torch.zeros(len(weights.b_enc), dtype=torch.int64, device=x.device)
    fired.index_add_(0, columns, active.long())
    if shadow is not None:
        from .encode import quantise

        for kept, new in zip(shadow, quantise(weights.W_enc), strict=True):
            kept.copy_(new)
    return Updated(to_input, fired)
