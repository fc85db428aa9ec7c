"""BatchTopK over all layers of a cross-layer transcoder at once: the largest codes, in whichever layers they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float32
from torch import Tensor

from ....kernels.batch_topk import MARGIN, encode_batch_topk
from ....kernels.dispatch import choose
from ....kernels.kth import among_largest, kth_largest
from ....kernels.tuples import Kth, LowPrecisionCopy
from ...sparse_code import SparseCode
from ..sae import SparseAutoencoder, keep_above

HEADROOM = 2
"""Codes of a layer in the first pass, in multiples of its even share."""


def select_jointly(
    blocks: Sequence[SparseAutoencoder],
    rows: Sequence[Float32[Tensor, "batch d"]],
    low_precision_copies: Sequence[LowPrecisionCopy | None],
) -> list[SparseCode]:
    """The batch * k * layers largest pre-activations of all layers together, less those at or below zero.

    Exact: `HEADROOM` times its share of each layer gives a bound that the final one cannot be below, and layers that
    had all of those kept are encoded again for everything that reaches the bound. Ties go to the earlier layer.

    Args:
        rows: what each block's encoder reads.
    """
    k, n = blocks[0].config.k, blocks[0].n_latents
    first = min(n, HEADROOM * k)
    given = list(zip(blocks, rows, low_precision_copies, strict=True))
    largest = [_largest(block, x, low_precision, first) for block, x, low_precision in given]
    wanted = len(rows[0]) * k * len(blocks)
    kept, kth = _cut(largest, wanted)
    full = [first < n and len(code.values) == len(x) * first for code, x in zip(kept, rows, strict=True)]
    if kth is None or not any(full):
        return kept
    bound = (kth.value.clamp_min(0) * (1 - MARGIN)).nan_to_num(torch.inf)
    again = [
        keep_above(block, x, bound, low_precision) if more else code
        for (block, x, low_precision), code, more in zip(given, largest, full, strict=True)
    ]
    return _cut(again, wanted)[0]


def _largest(block: SparseAutoencoder, x: Tensor, low_precision: LowPrecisionCopy | None, k: int) -> SparseCode:
    precision = choose(x.device, block.precision).encode
    code = encode_batch_topk(x, block.W_enc, block.b_enc, k, precision=precision, low_precision=low_precision)
    return SparseCode(*code, block.n_latents)


def _cut(codes: Sequence[SparseCode], wanted: int) -> tuple[list[SparseCode], Kth | None]:
    """The `wanted` largest positive entries of all codes, and the last of them; all where there are no more."""
    values = torch.cat([code.values for code in codes])
    if len(values) <= wanted:
        return list(codes), None
    kth = kth_largest(values, wanted)
    keep = among_largest(values, kth) & ~(values <= 0)
    masks = keep.split([len(code.values) for code in codes])
    return [code.where(mask) for code, mask in zip(codes, masks, strict=True)], kth
