"""Importing the kernels from a checkout that is not installed, on a machine with torch, triton and numpy only."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[2]


class _Annotation:
    """Stands for `Float` and the like where jaxtyping is missing: `Float[Tensor, "shape"]` is just `Tensor`."""

    def __class_getitem__(cls, item: tuple[Any, ...]) -> Any:
        return item[0]


class _Jaxtyping(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Annotation


def prepare(wheels: Path | None) -> str:
    """Make this checkout importable as `monosem`.

    Args:
        wheels: a folder of pure Python wheels to import from (jaxtyping, pytest); without jaxtyping its annotations
            are stood in for.

    Returns:
        A sentence that says where the kernels run.
    """
    import torch  # does not import triton, which reads its environment when it is imported

    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        os.environ["TRITON_INTERPRET"] = "1"  # kernels run on CPU tensors
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).parent]
    for wheel in sorted(wheels.glob("*.whl")) if wheels else ():
        sys.path.append(str(wheel))
    if "monosem" not in sys.modules:
        package = ModuleType("monosem")
        package.__path__ = [str(ROOT)]
        sys.modules["monosem"] = package
    if find_spec("jaxtyping") is None:
        sys.modules["jaxtyping"] = _Jaxtyping("jaxtyping")
    return "Triton kernels run on the GPU" if on_gpu else "no GPU that torch can use: Triton kernels run interpreted"
