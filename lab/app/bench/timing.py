"""Timing side by side: contestants take turns on the same input, medians are compared."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import torch

from ...environment import hardware, versions
from ...errors import InputError, unknown


def interleaved(
    contestants: Mapping[str, Callable[[int], object]],
    rounds: int,
    warmup: int,
    prepare: Callable[[int], object] | None = None,
    lead_in: Mapping[str, Callable[[int], object]] | None = None,
) -> dict[str, float]:
    """Median seconds of every contestant over `rounds`, each called once a round in turn with the round's number.

    Interleaving makes a noisy machine slow all of them alike. The first `warmup` rounds are not counted, nor is
    `prepare`, which is called before each round (for fresh inputs). `lead_in` is what a contestant does just before
    its timed call, untimed: what then lies in caches is its own, not the one's before it.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(warmup + rounds):
        if prepare is not None:
            prepare(number)
        for name, call in contestants.items():
            if lead_in is not None:
                lead_in[name](number)
            _wait()
            start = time.perf_counter()
            call(number)
            _wait()
            if number >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return {name: median(values) for name, values in seconds.items()}


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def named(
    against: str, allowed: Mapping[str, Any] | Sequence[str], kind: str = "peer", option: str = "--against"
) -> list[str]:
    """The comma-separated names of peers, or of whatever else an option lists.

    Raises:
        InputError: a name that is not in `allowed`.
    """
    names = [name.strip() for name in against.split(",") if name.strip()]
    for name in names:
        if name not in allowed:
            raise unknown(kind, name, allowed)
    if not names:
        raise InputError(f"{option} names no {kind}: give some of {', '.join(allowed)}")
    return names


def machine() -> dict[str, Any]:
    """Hardware and versions, for the record."""
    return {**hardware(), "versions": versions()}
