"""DTensor rules of the operators that treat rows apart: a batch sharded over ranks is served without communication."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from . import encode, topk  # noqa: F401  (they register the operators)


@cache
def register() -> None:
    """Let `topk` and `encode_topk` take DTensors: rows sharded, weights replicated, or everything replicated."""
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.experimental import register_sharding

    def rows(x: Any, *others: Any) -> list[tuple[list[Any], list[Any]]]:
        placed = [None if not hasattr(other, "mesh") else Replicate() for other in others]
        everywhere = [None if place is None else Replicate() for place in placed]
        return [([Shard(0), Shard(0)], [Shard(0), *placed]), ([Replicate(), Replicate()], [Replicate(), *everywhere])]

    for name in ("topk", "encode_topk"):
        register_sharding(getattr(torch.ops.monosem, name).default)(rows)
