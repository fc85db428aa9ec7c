"""Sparse decode over CSR codes: plain, and fused with residual, loss and the gradient to the codes."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from .chunks import chunk_rows, entry_slices
from .csr import row_of_entry
from .dispatch import dense_is_faster, kernel
from .operators import operator
from .tuples import Residual


def decode(
    indptr: Int[Tensor, " batch+1"],
    indices: Int[Tensor, " nnz"],
    values: Float32[Tensor, " nnz"],
    W_dec: Float[Tensor, "n d"],
    b_dec: Float32[Tensor, " d"],
) -> Float32[Tensor, "batch d"]:
    """x_hat = codes @ W_dec + b_dec, summed in fp32. Differentiable in values, W_dec and b_dec."""
    return _decode(indptr, indices, values, W_dec, b_dec)


@operator(
    "decode(Tensor indptr, Tensor indices, Tensor values, Tensor W_dec, Tensor b_dec) -> Tensor",
    fake=lambda indptr, indices, values, W_dec, b_dec: b_dec.new_empty(len(indptr) - 1, W_dec.shape[1]),
)
def _decode(indptr, indices, values, W_dec, b_dec):
    if dense_is_faster(W_dec.device, len(W_dec), len(indices) / max(1, len(indptr) - 1)):
        from .dense import decode as run

        return run(indptr, indices, values, W_dec, b_dec)
    run = kernel("decode", W_dec.device, decode_reference)
    return run(indptr, indices, values, W_dec, b_dec)


def _keep_for_backward(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:4])


def _decode_backward(ctx, grad):
    """Gradients to the codes by sampled products and to W_dec (dense) by summing each latent's rows."""
    from .code_gradients import code_gradients

    indptr, indices, values, W_dec = ctx.saved_tensors
    grad = grad.contiguous()
    to_values = code_gradients(indptr, indices, W_dec, grad) if ctx.needs_input_grad[2] else None
    to_weight = None
    if ctx.needs_input_grad[3]:
        to_weight, rows = torch.zeros_like(W_dec), row_of_entry(indptr, len(indices))
        for part in entry_slices(len(indices), W_dec.shape[1], W_dec.device.type):
            entries = values[part, None] * grad[rows[part]]
            to_weight.index_add_(0, indices[part].long(), entries.to(W_dec.dtype))
    return None, None, to_values, to_weight, grad.sum(0) if ctx.needs_input_grad[4] else None


_decode.register_autograd(_decode_backward, setup_context=_keep_for_backward)


def decode_residual(
    indptr: Tensor,
    indices: Tensor,
    values: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    x: Float32[Tensor, "batch d"],
    width: int | None = None,
) -> Residual:
    """Decode, subtract x and take the gradient of half the squared error to the codes, in one gather.

    Codes at zero (cut by the relu) get no gradient.

    Args:
        W_dec: fp32, or its bf16 copy (read as fp32).
        width: how many codes every row holds, where that is fixed: spares a second sweep on a GPU.
    """
    return Residual(*_residual(indptr, indices, values, W_dec, b_dec, x, width))


@operator(
    "decode_residual(Tensor indptr, Tensor indices, Tensor values, Tensor W_dec, Tensor b_dec, Tensor x, int? width)"
    " -> (Tensor, Tensor, Tensor)",
    fake=lambda indptr, indices, values, W_dec, b_dec, x, width: (
        torch.empty_like(x), b_dec.new_empty(len(x)), b_dec.new_empty(len(indices)),
    ),
)  # fmt: skip
def _residual(indptr, indices, values, W_dec, b_dec, x, width):
    if dense_is_faster(W_dec.device, len(W_dec), len(indices) / max(1, len(x))):
        from .dense import decode_residual as run

        return tuple(run(indptr, indices, values, W_dec, b_dec, x, width))
    run = kernel("decode_residual", W_dec.device, residual_reference)
    return tuple(run(indptr, indices, values, W_dec, b_dec, x, width))


def decode_reference(indptr: Tensor, indices: Tensor, values: Tensor, W_dec: Tensor, b_dec: Tensor) -> Tensor:
    """Scatter to dense rows of n entries and multiply, a chunk of rows at a time: the specification of `decode`."""
    batch, weight = len(indptr) - 1, W_dec.float()
    rows, columns = row_of_entry(indptr, len(indices)), indices.long()
    out = torch.empty(batch, W_dec.shape[1], device=W_dec.device)
    chunk = chunk_rows(len(W_dec), W_dec.device.type)
    for start in range(0, batch, chunk):
        stop = min(batch, start + chunk)
        part = slice(*indptr[[start, stop]].tolist()) if chunk < batch else slice(None)
        dense = torch.zeros(stop - start, len(W_dec), device=W_dec.device)
        dense.index_put_((rows[part] - start, columns[part]), values[part], accumulate=True)
        out[start:stop] = dense @ weight + b_dec
    return out


def residual_reference(
    indptr: Tensor, indices: Tensor, values: Tensor, W_dec: Tensor, b_dec: Tensor, x: Tensor, width: int | None = None
) -> Residual:
    """The specification of `decode_residual`."""
    residual = decode_reference(indptr, indices, values, W_dec, b_dec) - x
    rows = row_of_entry(indptr, len(indices))
    grads = torch.empty(len(indices), device=W_dec.device)
    for part in entry_slices(len(indices), W_dec.shape[1], W_dec.device.type):
        products = W_dec[indices[part].long()].float() * residual[rows[part]]
        grads[part] = products.sum(1) * (values[part] != 0)
    return Residual(residual, residual.square().sum(1), grads)
