"""Kernels as PyTorch operators, so that torch.compile, fake tensors and DTensor see through them.

An operator runs whichever backend serves the device of its tensors; its `fake` twin says only what comes out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

NAMESPACE = "monosem"


def operator(schema: str, fake: Callable[..., Any], mutates: tuple[str, ...] = ()) -> Callable[[Callable], Any]:
    """Register the decorated function as `monosem::NAME`.

    Args:
        schema: NAME(arguments) -> results in PyTorch's schema language.
        fake: the same arguments to empty results of the right shapes, dtypes and device.
        mutates: names of the arguments written in place.
    """
    name, signature = schema.split("(", 1)

    def register(function: Callable) -> Any:
        made = torch.library.custom_op(f"{NAMESPACE}::{name}", function, mutates_args=mutates, schema=f"({signature}")
        made.register_fake(fake)
        return made

    return register
