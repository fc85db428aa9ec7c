"""`HostWaits`: what a step on a GPU would make the host wait for, counted on tensors of the CPU.

Kernels run in Triton's interpreter; whatever the interpreter itself does is not counted.
"""

from __future__ import annotations

import pkgutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import monosem.kernels
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

READS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount",
         "equal", "is_nonzero")  # fmt: skip
"""Operations whose result, or the size of it, the host reads from the device."""


class HostWaits(TorchDispatchMode):
    """Counts reads of the device, and copies to it from memory that Python filled (`torch.tensor` of numbers)."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[-1]
        indexed = name in ("index", "index_put", "index_put_", "_index_put_impl_")
        if indexed and any(part is not None and part.dtype == torch.bool for part in args[1]):
            self.found[f"{name} by a mask"] += 1
        elif (name == "repeat_interleave" and "output_size" not in (kwargs or {})) or name in READS:
            self.found[name] += 1
        elif name == "lift_fresh":
            self.found["copy of numbers from Python"] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def host_waits() -> Iterator[Counter[str]]:
    """Count within the context, inside the operators too."""
    from triton.runtime.interpreter import GridExecutor

    run, select = GridExecutor.__call__, import_module("monosem.kernels.topk").reference

    def unwatched(*args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes():
            return run(*args, **kwargs)

    def selected(*args: Any, **kwargs: Any) -> Any:  # in the interpreter it takes seconds
        with _disable_current_modes():
            return select(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, HostWaits() as mode:
        patch.setattr(GridExecutor, "__call__", unwatched)
        patch.setattr("monosem.kernels.gpu.topk.topk", selected)
        for found in pkgutil.iter_modules(monosem.kernels.__path__, "monosem.kernels."):
            if found.ispkg:
                continue
            module = import_module(found.name)
            for name, value in list(vars(module).items()):
                if isinstance(value, torch._library.custom_ops.CustomOpDef):
                    patch.setattr(module, name, value._init_fn)
        yield mode.found
