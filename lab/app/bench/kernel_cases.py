"""Cases of `monosem bench kernels`: each kernel, its plain twin, fresh inputs, work, outputs that must agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ....kernels import batch_topk, decode, encode, pursuit, threshold, topk, update
from ....kernels.dispatch import choose
from .shapes import Planted, Shape

LOOSE = {"fp32": 1e-4, "int8": 1e-4, "bf16": 2e-2}
"""Relative error allowed in selected values, by the precision of the products."""


@dataclass(frozen=True)
class Case:
    """One kernel at one shape.

    Args:
        fresh: inputs of a round, new each time.
        ours: the kernel; `others`: its plain twin and, where there is one, torch's own operation.
        bytes: least traffic of main memory of one call; `flops`: multiply-adds, twice.
        error: between our result and another's.
    """

    name: str
    fresh: Callable[[], Any]
    ours: Callable[[Any], Any]
    others: dict[str, Callable[[Any], Any]]
    bytes: float
    flops: float
    error: Callable[[Any, Any], float]
    tolerance: float
    note: str = field(default="")


class Bed:
    """The weights, rows and codes that the cases of one shape share."""

    def __init__(self, shape: Shape) -> None:
        self.shape, self.supply = shape, Planted(shape)
        where = self.supply.device
        self.precision: Literal["fp32", "bf16", "int8"] = choose(where).encode
        g = torch.Generator(where).manual_seed(1)
        decoder = normalize(torch.randn(shape.n, shape.d, generator=g, device=where), dim=1)
        self.weights = update.Weights(decoder.clone(), decoder, torch.zeros(shape.n, device=where))
        self.low_precision = encode.low_precision_copy(self.weights.W_enc, self.weights.W_dec, self.precision)
        self.b_dec = torch.zeros(shape.d, device=where)
        self.chunk = min(shape.batch, encode.chunk_rows(shape.n, where.type))

    def pre_activations(self, rows: int | None = None) -> Tensor:
        """Fresh pre-activations [rows, n] (one row chunk by default) in fp32."""
        return self.supply.rows(rows or self.chunk) @ self.weights.W_enc.T

    def batch(self) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Fresh rows and their codes as (indptr, indices, values)."""
        x, shape = self.supply.rows(), self.shape
        values, columns = encode.encode_topk(
            x,
            self.weights.W_enc,
            self.weights.b_enc,
            shape.k,
            precision=self.precision,
            low_precision=self.low_precision,
        )
        indptr = torch.arange(0, shape.batch * shape.k + 1, shape.k, device=x.device)
        return x, (indptr, columns.flatten(), values.clamp_min_(0).flatten())


def topk_case(bed: Bed) -> Case:
    """Selection from one row chunk. Bytes: the chunk read once, a value and a column written for each code."""
    _, n, k, _ = bed.shape
    return Case(
        "topk", bed.pre_activations, lambda pre: topk.topk(pre, k),
        {"reference": lambda pre: topk.reference(pre, k), "torch.topk": lambda pre: topk.Codes(*pre.topk(k))},
        bytes=bed.chunk * (4 * n + 8 * k), flops=0, error=values_error, tolerance=0,
        note=f"{bed.chunk} rows",
    )  # fmt: skip


def encode_case(bed: Bed) -> Case:
    """Encode and select. FLOP: 2 batch n d. Bytes: rows and weights read once in the product's dtype, codes written."""
    (d, n, k, batch), weights = bed.shape, bed.weights
    size = {"fp32": 4, "bf16": 2, "int8": 1}[bed.precision]
    run = partial(encode.encode_topk, precision=bed.precision, low_precision=bed.low_precision)
    return Case(
        "encode_topk", bed.supply.rows, lambda x: run(x, weights.W_enc, weights.b_enc, k),
        {
            "reference": lambda x: encode.reference(x, weights.W_enc, weights.b_enc, k),
            "torch.topk": lambda x: topk.Codes(*torch.addmm(weights.b_enc, x, weights.W_enc.T).topk(k)),
        },
        bytes=size * d * (batch + n) + 8 * batch * k, flops=2 * batch * n * d, error=values_error,
        tolerance=LOOSE[bed.precision], note=bed.precision,
    )  # fmt: skip


def decode_case(bed: Bed) -> Case:
    """Decode, residual and code gradients. FLOP: 4 nnz d. Bytes: one decoder row a code (bf16 where there is a
    low-precision copy), the rows read and their residual written, 16 for each code."""
    (d, _, k, batch), weights = bed.shape, bed.weights
    low_precision = bed.low_precision.W_dec if bed.low_precision is not None else None
    rows = weights.W_dec if low_precision is None else low_precision

    def fresh() -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
        x, codes = bed.batch()
        return codes, (rows, bed.b_dec, x)

    return Case(
        "decode_residual", fresh,
        lambda inputs: decode.decode_residual(*inputs[0], *inputs[1], width=k),
        {"reference": lambda inputs: decode.residual_reference(*inputs[0], *inputs[1])},
        bytes=batch * k * (rows.element_size() * d + 16) + 8 * batch * d, flops=4 * batch * k * d,
        error=tensors_error, tolerance=1e-4,
    )  # fmt: skip


def update_case(bed: Bed) -> Case:
    """Both gradients, Adam, projection, unit norm. FLOP: 4 nnz d. Bytes: the row and the residual of every code,
    24 a parameter (weight and moments read and written), and the low-precision copy written."""
    d, n, k, batch = bed.shape
    kept = [part for part in bed.low_precision or () if part is not None and part.ndim == 2]
    states = {name: _state(bed) for name in ("ours", "reference")}
    steps = {name: 0 for name in states}

    def fresh() -> Any:
        x, codes = bed.batch()
        return codes, decode.decode_residual(*codes, bed.weights.W_dec, bed.b_dec, x, k), x

    def run(name: str, step: Callable[..., Any], inputs: Any) -> update.Weights:
        steps[name] += 1
        weights, moments, low_precision = states[name]
        step(*inputs, 2 / len(inputs[2]), weights, moments, update.Adam(1e-4, steps[name]), low_precision)
        return weights

    return Case(
        "latent_step", fresh, partial(run, "ours", update.latent_step),
        {"reference": partial(run, "reference", update.reference)},
        bytes=8 * batch * k * d + 48 * n * d + sum(part.nbytes for part in kept), flops=4 * batch * k * d,
        error=tensors_error, tolerance=1e-4,
    )  # fmt: skip


def _state(bed: Bed) -> tuple[update.Weights, update.Moments, encode.LowPrecisionCopy | None]:
    weights = update.Weights(*(part.clone() for part in bed.weights))
    low_precision = encode.low_precision_copy(weights.W_enc, weights.W_dec, bed.precision)
    return weights, update.new_moments(weights, 0.9, False), low_precision


def batch_topk_case(bed: Bed) -> Case:
    """The batch * k largest of a batch of one row chunk. Work as in `encode_case` for those rows."""
    (d, n, k, _), weights = bed.shape, bed.weights
    run = partial(batch_topk.encode_batch_topk, precision=bed.precision, low_precision=bed.low_precision)
    size = {"fp32": 4, "bf16": 2, "int8": 1}[bed.precision]
    return Case(
        "batch_topk", lambda: bed.supply.rows(bed.chunk), lambda x: run(x, weights.W_enc, weights.b_enc, k),
        {"reference": lambda x: batch_topk.reference(x, weights.W_enc, weights.b_enc, k)},
        bytes=size * d * (bed.chunk + n) + 8 * bed.chunk * k, flops=2 * bed.chunk * n * d, error=values_error,
        tolerance=LOOSE[bed.precision], note=f"{bed.chunk} rows, {bed.precision}",
    )  # fmt: skip


def threshold_case(bed: Bed) -> Case:
    """Everything above a bound that about k a row exceed. Bytes: one row chunk read, the codes written."""
    _, n, k, _ = bed.shape
    pre = bed.pre_activations(64)
    level = pre.flatten().kthvalue(pre.numel() - min(64 * k, pre.numel() - 1)).values
    bound, bias = level.expand(n).contiguous(), bed.weights.b_enc
    return Case(
        "threshold", bed.pre_activations, lambda pre: threshold.above(pre, bias, bound),
        {"reference": lambda pre: threshold.reference(pre, bias, bound)},
        bytes=bed.chunk * (4 * n + 8 * k), flops=0, error=values_error, tolerance=0, note=f"{bed.chunk} rows",
    )  # fmt: skip


PURSUIT_ATOMS, PURSUIT_ROWS = 8192, 64
"""A Gram matrix of 8,192 atoms is 256 MiB, and its plain twin takes k products a row."""


def pursuit_case(bed: Bed) -> Case:
    """Matching pursuit with a Gram matrix at hand. FLOP: a product, then 2 n a step. Bytes: a Gram row for each step.

    The time of the Gram matrix is left out, as where one dictionary encodes many batches; see `pursuit_gram_case`.
    """
    d, n, k, _ = bed.shape
    atoms = bed.weights.W_dec[:PURSUIT_ATOMS].contiguous()
    n, gram = len(atoms), atoms @ atoms.T
    return _pursued(bed, "pursuit", atoms, lambda x: pursuit.pursuit(x, atoms, k, gram=gram).values,
                    bytes=PURSUIT_ROWS * (4 * k * n + 4 * d + 8 * k) + 4 * n * d, flops=PURSUIT_ROWS * 2 * n * (d + k),
                    note="Gram at hand")  # fmt: skip


def pursuit_gram_case(bed: Bed) -> Case:
    """Matching pursuit that first computes its Gram matrix: 2 n^2 d FLOP and 8 n^2 bytes more than `pursuit_case`."""
    d, n, k, _ = bed.shape
    atoms = bed.weights.W_dec[:PURSUIT_ATOMS].contiguous()
    n = len(atoms)
    return _pursued(bed, "pursuit_gram", atoms, lambda x: pursuit.pursuit(x, atoms, k, gram=atoms @ atoms.T).values,
                    bytes=PURSUIT_ROWS * (4 * k * n + 4 * d + 8 * k) + 8 * n * d + 4 * n * n,
                    flops=PURSUIT_ROWS * 2 * n * (d + k) + 2 * n * n * d, note="Gram included")  # fmt: skip


def _pursued(
    bed: Bed, name: str, atoms: Tensor, ours: Callable[[Tensor], Tensor], *, bytes: float, flops: float, note: str
) -> Case:
    """A case of pursuit beside k products of the residual.

    What must agree is the energy that the codes explain: a choice between nearly equal atoms may fall either way.
    """
    return Case(
        name, lambda: bed.supply.rows(PURSUIT_ROWS), ours,
        {"reference": lambda x: pursuit.reference(x, atoms, bed.shape.k)[0]}, bytes=bytes, flops=flops,
        error=lambda a, b: relative(a.square().sum(), b.square().sum()), tolerance=1e-3,
        note=f"{PURSUIT_ROWS} rows, {len(atoms)} atoms, {note}",
    )  # fmt: skip


CASES: dict[str, Callable[[Bed], Case]] = {
    "topk": topk_case, "encode_topk": encode_case, "decode_residual": decode_case, "latent_step": update_case,
    "batch_topk": batch_topk_case, "threshold": threshold_case, "pursuit": pursuit_case,
    "pursuit_gram": pursuit_gram_case,
}  # fmt: skip


def relative(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b|."""
    return float((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-30))


def tensors_error(a: Any, b: Any) -> float:
    """The worst relative error of the tensors in two tuples."""
    return max(relative(tensor, other) for tensor, other in zip(a, b, strict=True))


def values_error(a: Any, b: Any) -> float:
    """Relative error of the selected values, both sorted: infinite where their number differs by over a percent."""
    ours, theirs = (part.values.flatten().sort(descending=True).values for part in (a, b))
    short = min(len(ours), len(theirs))
    if max(len(ours), len(theirs)) - short > 0.01 * short:
        return float("inf")
    return relative(ours[:short], theirs[:short])
