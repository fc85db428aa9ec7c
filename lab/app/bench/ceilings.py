"""Ceilings of this machine: copy rate and matrix-product rates, measured like everything else here."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from ....kernels.chunks import chunk_rows
from ....kernels.dispatch import has_bf16
from .shapes import Shape, device

REPEATS = 5
"""Calls of which the quickest counts: a ceiling is what was once reached."""
COPY_BYTES = {"cpu": 256 << 20, "cuda": 4 << 30}
"""Far beyond any cache."""


def ceilings(shape: Shape) -> dict[str, float]:
    """Bytes/s of a copy (read and written bytes both count), and FLOP/s of the products that the encode may use.

    The products are rows [chunk, d] times weights [n, d]: the chunk that `encode_topk` takes at that shape.
    """
    where = device()
    rows = min(shape.batch, chunk_rows(shape.n, where.type))
    x, weight = torch.randn(rows, shape.d, device=where), torch.randn(shape.n, shape.d, device=where)
    flops = 2 * rows * shape.d * shape.n
    rates = {"copy_bytes_per_second": copy_rate(), "fp32_flops_per_second": flops / _quickest(lambda: x @ weight.T)}
    if has_bf16(where):
        short, short_weight = x.bfloat16(), weight.bfloat16()
        rates["bf16_flops_per_second"] = flops / _quickest(lambda: short @ short_weight.T)
    if where.type == "cpu" or (rows > 16 and shape.d % 8 == shape.n % 8 == 0):
        byte, byte_weight = _bytes(x), _bytes(weight)
        rates["int8_flops_per_second"] = flops / _quickest(lambda: torch._int_mm(byte, byte_weight.T))
    return rates


def copy_rate() -> float:
    """Bytes/s of one large copy; what is read and what is written both count."""
    source = torch.zeros(COPY_BYTES[device().type] // 4, device=device())
    target = torch.empty_like(source)
    return 2 * 4 * source.numel() / _quickest(lambda: target.copy_(source))


def _bytes(x: Tensor) -> Tensor:
    return (x * (127 / x.abs().amax())).round().to(torch.int8)


def _quickest(call: Callable[[], object]) -> float:
    """Fewest seconds of `REPEATS` calls after one that warms up."""
    best = float("inf")
    for number in range(REPEATS + 1):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if number:
            best = min(best, time.perf_counter() - start)
    return best
