"""Row-parallel calls of compiled CPU kernels that release the interpreter lock.

Every output row is computed by one thread in a fixed order, so results do not depend on the thread count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

import numpy as np
import torch


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="monosem-kernel")


def even_parts(n: int, parts: int) -> list[tuple[int, int]]:
    """Cut `range(n)` into at most `parts` contiguous pieces of nearly equal length."""
    cuts = np.linspace(0, n, max(1, min(parts, n)) + 1).astype(np.int64)
    return [(int(a), int(b)) for a, b in pairwise(cuts) if b > a]


def weighted_parts(cost: np.ndarray, parts: int) -> list[tuple[int, int]]:
    """Cut the rows into contiguous pieces of nearly equal total `cost` [n]."""
    total = np.cumsum(cost, dtype=np.float64)
    targets = total[-1] * np.arange(1, parts) / parts
    cuts = np.unique(np.concatenate([[0], np.searchsorted(total, targets) + 1, [len(cost)]]))
    return [(int(a), int(b)) for a, b in pairwise(cuts) if b > a]


def run_parts(kernel: Callable[..., object], parts: Sequence[tuple[int, int]], *args: object) -> None:
    """Call `kernel(start, stop, *args)` for every part, one thread each, and wait for all."""
    if len(parts) == 1:
        kernel(*parts[0], *args)
        return
    futures = [_pool(len(parts)).submit(kernel, start, stop, *args) for start, stop in parts]
    for future in futures:
        future.result()


def run_rows(kernel: Callable[..., object], n_rows: int, *args: object) -> None:
    """Call `kernel(start, stop, *args)` over `range(n_rows)` cut evenly over torch's thread count."""
    if n_rows:
        run_parts(kernel, even_parts(n_rows, torch.get_num_threads()), *args)
