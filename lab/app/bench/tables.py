"""Dated tables of measurements, appended to `kernels/BENCHMARKS.md`."""

from __future__ import annotations

import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .... import kernels
from ...errors import InputError
from ...storage import atomic_path
from .timing import machine

FILE = Path(str(kernels.__file__)).parent / "BENCHMARKS.md"
VERSIONS = ("torch", "triton", "numba")


def append(title: str, command: str, table: str) -> None:
    """Add a section with today's date, the hardware, the versions and the command that made the table."""
    today = datetime.datetime.now(datetime.UTC).date()
    facts = machine()
    hardware = ", ".join([*facts["accelerators"], processor(), f"{facts['threads']} threads"])
    versions = ", ".join(f"{name} {version(name)}" for name in VERSIONS)
    section = f"\n## {title}\n\n{today}, {hardware}; {versions}. `{command}`\n\n{table}\n"
    if not FILE.is_file():
        raise InputError(f"--write adds to {FILE}, which is not there: run from a checkout of the repository")
    with atomic_path(FILE) as temporary:
        temporary.write_text(FILE.read_text() + section)


def processor() -> str:
    """The CPU's own name where the system tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else str(machine()["machine"])


def rounded(value: Any) -> str:
    """Three significant digits, with a unit prefix from a thousand on."""
    if not isinstance(value, int | float):
        return str(value)
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"
