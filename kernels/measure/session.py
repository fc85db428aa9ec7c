"""One measuring session: a running clock, timed calls, and a table that is on disk after every section."""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch


class Shape(NamedTuple):
    """Width of the rows, latents, codes a row, rows a batch."""

    d: int
    n: int
    k: int
    batch: int


SHAPES = (
    Shape(768, 24576, 32, 8192),
    Shape(2304, 65536, 64, 8192),
    Shape(4096, 131072, 64, 8192),
    Shape(4096, 1048576, 64, 4096),
)
TOY_SHAPES = (Shape(20, 36, 3, 6),)
"""For a machine without a GPU: everything runs, nothing is worth reading."""


class Row(NamedTuple):
    """One line of the table. `floor` is milliseconds at the measured ceilings, `memory` bytes of the peak over what
    was held before; `note` says what was checked."""

    what: str
    shape: str
    milliseconds: float
    bytes: float
    flops: float
    floor: float
    memory: float
    note: str


@dataclass
class Session:
    """Measurements of a run so far.

    Args:
        out: the file that holds the table after each section.
        seconds: time for everything.
        dry: toy sizes, one repetition.
    """

    out: Path
    seconds: float
    dry: bool
    rows: list[Row] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    rates: dict[str, float] = field(default_factory=dict)
    """Ceilings: bytes/s under "copy", FLOP/s under "bf16 d,n,k,batch"."""
    started: float = field(default_factory=time.monotonic)

    @property
    def device(self) -> torch.device:
        """The GPU, but not in a dry run without one."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """The shapes of this run."""
        return TOY_SHAPES if self.dry else SHAPES

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def section(self, title: str, budget: float, parts: Iterable[tuple[str, Callable[[], None]]]) -> None:
        """Run the parts of a section until its budget of seconds, or the whole run's, is spent.

        What is skipped is a line of the result, what fails a line and a row of the table; the rest goes on.
        """
        start = time.monotonic()
        for name, part in parts:
            spent = time.monotonic() - start
            if not self.dry and (spent > budget or self.elapsed > self.seconds):
                self.say(f"skipped: {title}, {name}: {self.elapsed:.0f} s have passed")
                continue
            try:
                part()
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
            except Exception as error:
                last = traceback.extract_tb(error.__traceback__)[-1]
                reason = (str(error).splitlines() or [""])[0][:200]
                self.failed(title, name, f"{type(error).__name__}: {reason} ({last.name}:{last.lineno})")
        self.say(f"{title}: {time.monotonic() - start:.0f} s, {self.elapsed:.0f} s in all")

    def failed(self, title: str, name: str, reason: str) -> None:
        """Keep a failure: a row that says so, and a line with the reason."""
        self.rows.append(Row(f"{title}, {name}", "", math.nan, 0, 0, 0, 0, "FAILED"))
        self.say(f"failed: {title}, {name}: {reason}")

    @property
    def wrong(self) -> bool:
        """True if something failed or gave other values than it must."""
        return any(row.note == "FAILED" or "DIFFER" in row.note for row in self.rows)

    def save(self, path: Path) -> None:
        """Keep rows, lines and ceilings for the next process."""
        path.write_text(json.dumps({"rows": self.rows, "lines": self.lines, "rates": self.rates}))

    def load(self, path: Path) -> None:
        """Go on from what another process kept."""
        if path.is_file():
            kept = json.loads(path.read_text())
            self.rows = [Row(*row) for row in kept["rows"]]
            self.lines, self.rates = kept["lines"], kept["rates"]

    def say(self, line: str) -> None:
        """Keep a line of text, and write everything to disk."""
        self.lines.append(line)
        temporary = self.out.with_name(self.out.name + ".part")
        temporary.write_text(self.markdown())
        temporary.replace(self.out)

    def add(
        self,
        label: str,
        shape: object,
        call: Callable[[int], object],
        *,
        bytes: float = 0,
        flops: float = 0,
        floor: float | None = None,
        note: str = "",
        repeat: int = 7,
        warmup: int = 2,
    ) -> Row:
        """Time `call(number)` and keep the row.

        Args:
            floor: milliseconds; by default those of `bytes` at the copy rate.
            note: told in the last column.
        """
        milliseconds, memory = self.timed(call, 1 if self.dry else repeat, 0 if self.dry else warmup)
        if floor is None:
            floor = 1e3 * bytes / self.rates.get("copy", float("inf"))
        shape = ",".join(map(str, shape)) if isinstance(shape, tuple) else str(shape)
        self.rows.append(Row(label, shape, milliseconds, bytes, flops, floor, memory, note))
        return self.rows[-1]

    def timed(self, call: Callable[[int], object], repeat: int, warmup: int) -> tuple[float, float]:
        """Median milliseconds of `repeat` calls after `warmup`, the last-level cache flushed before each; and the
        peak of memory in bytes over what was held."""
        cuda = self.device.type == "cuda"
        flush = torch.empty(256 << 20, dtype=torch.int8, device=self.device) if cuda else None
        held = 0
        times: list[float] = []
        for number in range(warmup + repeat):
            if flush is None:
                start = time.perf_counter()
                call(number)
                times.append(1e3 * (time.perf_counter() - start))
                continue
            flush.zero_()
            if number == warmup:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
                held = torch.cuda.memory_allocated()
            torch.cuda._sleep(2_000_000)  # the host runs ahead, so that no launch is waited for between the events
            events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            events[0].record()
            call(number)
            events[1].record()
            torch.cuda.synchronize()
            times.append(events[0].elapsed_time(events[1]))
        memory = torch.cuda.max_memory_allocated() - held if cuda else 0
        return median(times[warmup:]), memory

    def encode_floor(self, shape: Shape) -> float:
        """Milliseconds of the encode product at its measured bf16 rate."""
        return 2e3 * shape.batch * shape.n * shape.d / self.rates.get("bf16 " + ",".join(map(str, shape)), float("inf"))

    def markdown(self) -> str:
        """All of it: date, hardware, versions, table, lines."""
        names = ("what", "d,n,k,batch", "ms", "bytes/s", "FLOP/s", "floor ms", "x floor", "peak MiB", "note")
        lines_of_table = [
            f"| {' | '.join(names)} |",
            "| --- | --- |" + " ---: |" * 6 + " --- |",
            *map(_line, self.rows),
        ]
        lines = "\n".join(f"- {line}" for line in self.lines)
        return f"## GPU plan\n\n{_where(self.device)}\n\n" + "\n".join(lines_of_table) + f"\n\n{lines}\n"


def _line(row: Row) -> str:
    if row.note == "FAILED":
        return f"| {row.what} | {row.shape} | failed |" + " |" * 5 + " FAILED |"
    seconds = row.milliseconds / 1e3
    ratio = f"{row.milliseconds / row.floor:.2f}" if row.floor else ""
    rates = [f"{amount / seconds / 1e12:.3f}T" if amount else "" for amount in (row.bytes, row.flops)]
    floor = f"{row.floor:.3f}" if row.floor else ""
    cells = [row.what, row.shape, f"{row.milliseconds:.3f}", *rates, floor, ratio, f"{row.memory / 2**20:.0f}"]
    return f"| {' | '.join([*cells, row.note])} |"


def _where(device: torch.device) -> str:
    import numpy

    try:
        import triton
    except ImportError:
        versions = "no triton"
    else:
        versions = f"triton {triton.__version__}"
    today = datetime.datetime.now(datetime.UTC).date()
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"no GPU ({platform.machine()})"
    if os.environ.get("TRITON_INTERPRET", "0") == "1":
        versions += " (interpreter)"
    versions = f"torch {torch.__version__}, {versions}, numpy {numpy.__version__}"
    return f"{today}, {name}; {versions}. `python kernels/measure`"
