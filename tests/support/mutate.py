"""Plant faults in a copy of the code, one at a time, and see that the tests named beside each fail on it.

    make mutate                                    all faults
    python tests/support/mutate.py conformal tpp   those with one of these words in their file or their description

Prints a table: the fault, died or LIVED, the test that killed it, seconds. The exit status is 1 if a fault lives, if
the text that it replaces does not stand exactly once in its file, or if a named test fails without any fault.

The working tree is never edited. Every run of tests is a fork of a process that has imported torch, so that a fault
costs little more than its tests.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PACKAGES = ("lab", "saes", "probes", "interventions", "kernels")
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", ".*_cache", ".hypothesis", "*.egg-info", "build", "dist", "runs")
LONGEST = 300
"""Seconds after which a run of tests is stopped: the fault has not died."""
LOADED = ("torch", "transformers", "sklearn.linear_model", "scipy.stats", "numba", "datasets", "tyro", "hypothesis")
"""Libraries that are imported once, before the forks."""


class Fault(NamedTuple):
    """One fault: in `file`, `new` stands in the place of `old`, and each of `tests` must fail."""

    what: str
    file: str
    old: str
    new: str
    tests: Sequence[str]


FAULTS = (
)


class Outcome(NamedTuple):
    """End of one run of tests: the names of those that failed, and of files that could not be collected."""

    failed: list[str]
    broken: list[str]
    seconds: float


class Recorder:
    """A plugin of pytest that keeps the names of tests that fail."""

    def __init__(self) -> None:
        self.failed: list[str] = []
        self.broken: list[str] = []
        self.ran = 0

    def pytest_runtest_logreport(self, report) -> None:
        """Keep a failed test, or one whose fixture fails."""
        self.ran += report.when == "call"
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_collectreport(self, report) -> None:
        """Keep a file that cannot be collected: that is no death of a fault."""
        if report.failed:
            self.broken.append(report.nodeid)


def copied(folder: Path) -> Path:
    """A copy of the working tree, in which `monosem` is imported from the copy."""
    tree = folder / "tree"
    shutil.copytree(ROOT, tree, ignore=LEFT_OUT, symlinks=True)
    (folder / "path" / "monosem").mkdir(parents=True)
    for package in PACKAGES:
        (folder / "path" / "monosem" / package).symlink_to(tree / package)
    return tree


@contextlib.contextmanager
def planted(tree: Path, fault: Fault) -> Iterator[None]:
    """The copy with a fault in it."""
    path = tree / fault.file
    text, stat = path.read_text(), path.stat()
    path.write_text(text.replace(fault.old, fault.new))
    try:
        yield
    finally:
        path.write_text(text)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # what was compiled from the text is fresh again


def misplaced(fault: Fault) -> str | None:
    """The reason why a fault cannot be planted, if there is one."""
    found = (ROOT / fault.file).read_text().count(fault.old) if (ROOT / fault.file).is_file() else 0
    return None if found == 1 else f"its text stands {found} times in {fault.file}"


def run(tree: Path, tests: Sequence[str], *, first: bool) -> Outcome:
    """Run tests of the copy in a fork, up to the first that fails if `first`."""
    start, reading, log = time.monotonic(), tree.parent / "outcome.json", tree.parent / "log"
    reading.unlink(missing_ok=True)
    child = os.fork()
    if not child:
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        _test(tree, tests, reading, first)
        os._exit(0)
    ended = False
    while not ended and time.monotonic() - start < LONGEST:
        ended = os.waitpid(child, os.WNOHANG)[0] == child
        time.sleep(0 if ended else 0.05)
    if not ended:
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
    seconds = time.monotonic() - start
    if not reading.exists():
        tail = log.read_text(errors="replace").splitlines()[-1:] if ended else [f"stopped after {LONGEST} s"]
        return Outcome([], tail or ["nothing ran"], seconds)
    outcome = json.loads(reading.read_text())
    return Outcome(outcome["failed"], outcome["broken"], seconds)


def _test(tree: Path, tests: Sequence[str], reading: Path, first: bool) -> None:
    """Run pytest on the copy, as in a process of its own, and write what failed."""
    import pytest

    os.chdir(tree)
    path = str(tree.parent / "path")
    sys.path.insert(0, path)
    os.environ["PYTHONPATH"] = path
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True
    importlib.invalidate_caches()
    recorder, options = Recorder(), ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--durations=0"]
    pytest.main([*options, *(["-x"] if first else []), f"--rootdir={tree}", *tests], plugins=[recorder])
    here = importlib.import_module("monosem.kernels").__file__ or ""
    assert recorder.ran == 0 or here.startswith((str(tree), path)), f"{here} is not of the copy"
    broken = recorder.broken or ([] if recorder.ran or recorder.failed else ["no test ran"])
    reading.write_text(json.dumps({"failed": recorder.failed, "broken": broken}))


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows in columns as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def main(words: Sequence[str]) -> int:
    """Plant all faults that have one of the words, or all there are; 0 if every one died."""
    faults = [fault for fault in FAULTS if not words or any(word in f"{fault.file} {fault.what}" for word in words)]
    if not faults:
        print(f"no fault has {' or '.join(words)} in its file or its description")
        return 1
    os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
    for name in LOADED:
        importlib.import_module(name)
    rows, lived = [("fault", "", "killed by", "seconds")], 0
    with tempfile.TemporaryDirectory(prefix="mutate-") as folder:
        tree = copied(Path(folder))
        tests = dict.fromkeys(test for fault in faults for test in fault.tests)
        whole = run(tree, list(tests), first=False)
        for name in (*whole.failed, *whole.broken):
            print(f"fails without any fault: {name}")
        print(f"{len(tests)} tests without any fault: {whole.seconds:.0f} s", flush=True)
        for number, fault in enumerate(faults, 1):
            reason, seconds = misplaced(fault), 0.0
            if reason is None:
                with planted(tree, fault):
                    outcome = run(tree, fault.tests, first=True)
                seconds = outcome.seconds
                reason = None if outcome.failed else " ".join(outcome.broken) or "no test fails"
                killer = outcome.failed[0].removeprefix("tests/") if outcome.failed else ""
            lived += reason is not None
            rows.append((fault.what, "LIVED" if reason else "died", reason or killer, f"{seconds:.1f}"))
            print(f"{number}/{len(faults)}", *rows[-1], flush=True, file=sys.stderr)
    print(table(rows))
    print(f"{len(faults) - lived} of {len(faults)} faults died")
    return 1 if lived or whole.failed or whole.broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
