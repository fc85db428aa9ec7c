"""Two decorators compile the CPU loops with numba, so that the same source gives the same bytes in every process.

numba links a copy of each called function into its caller, optimises it once more there, and lets the loader pick one
of the copies by name. The process that compiled a loop ran one copy of a helper and the process that loaded the loop
from the cache ran another, whose last bits differed. A helper is inlined into every caller, so that none is left.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from numba import njit, types
from numba.extending import intrinsic

log = logging.getLogger(__name__)

_njit = partial(njit, nogil=True, error_model="numpy")


def compiled(function: Callable[..., Any]) -> Any:
    """A loop that Python calls: compiled on its first call, and kept in numba's cache on disk."""
    try:
        loop: Any = _njit(cache=True)(function)
    except RuntimeError as error:  # no folder for the cache can be written: numba looks for one when it decorates
        _told(str(error))
        return _njit()(function)
    # numba compares one file's time stamp; a loop also holds the helpers of the other files
    loop._cache._cache_file._source_stamp = _source_digest()
    save = loop._cache.save_overload

    def saved(*given: Any) -> None:
        try:
            save(*given)
        except OSError as error:  # such as a full disk: the loop is compiled, and runs
            _told(str(error))

    loop._cache.save_overload = saved
    return loop


@cache
def _told(reason: str) -> None:
    """Say once that compiled loops are not kept."""
    log.warning("compiled loops cannot be kept (%s) and are compiled again in every process: set NUMBA_CACHE_DIR to a "
                "folder that can be written", reason.partition("\n")[0])  # fmt: skip


def inlined(function: Callable[..., Any] | None = None, *, fastmath: bool | set[str] = False) -> Any:
    """A helper that other loops call: LLVM inlines every call, so that no copy of the helper is linked by name.

    Args:
        fastmath: LLVM's fast-math flags for the helper's own instructions.
    """
    decorate = _njit(forceinline=True, fastmath=fastmath)
    return decorate if function is None else decorate(function)


@intrinsic
def fused(typingctx, a, b, c):
    """a * b + c, rounded once: the sum of two products has two such forms, and the optimizer may take either."""
    if any(kind != types.float32 for kind in (a, b, c)):
        return None
    return types.float32(a, b, c), lambda context, builder, signature, values: builder.fma(*values)


@cache
def _source_digest() -> str:
    """SHA-256 of all files of this folder: a cached loop is fresh while none of them has changed."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
