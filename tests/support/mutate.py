"""Plant faults in a copy of the code, one at a time, and see that the test named beside each fails on it.

    make mutate                                    all faults
    python tests/support/mutate.py conformal tpp   those with one of these words in their file or their description

Prints a table: the fault, died or LIVED, seconds, the test that killed it. The exit status is 1 if a fault lives, if
the text that it replaces does not stand exactly once in its file, or if a named test fails without any fault.

The working tree is never edited. Every run of tests is a fork of a process that has imported the libraries but nothing
of monosem, so that a fault costs little more than its test.
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
from typing import Any, NamedTuple

from faults import FAULTS, Fault

ROOT = Path(__file__).parents[2]
PACKAGES = ("lab", "saes", "probes", "interventions", "kernels")
COPIED = (*PACKAGES, "tests", "examples", "docs", "pyproject.toml", "README.md", "CONTRIBUTING.md")
LONGEST = 600
"""Seconds after which a run of tests is stopped."""
LOADED = (
    *("torch._dynamo", "transformers.modeling_utils", "datasets", "numba.extending", "scipy.stats", "jaxtyping"),
    *("sklearn.linear_model", "sklearn.model_selection", "tyro", "hypothesis.strategies", "pytest"),
)
"""Libraries that are imported once, before the forks."""


class Outcome(NamedTuple):
    """End of one run: the tests that failed, why there is no answer if there is none, and seconds."""

    failed: list[str]
    broken: str
    seconds: float


class Recorder:
    """A plugin of pytest that keeps the names of tests that fail, and of files that cannot be collected."""

    def __init__(self) -> None:
        self.failed: list[str] = []
        self.broken: list[str] = []
        self.ran = 0

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Keep a test that fails, or whose fixture does."""
        self.ran += report.when == "call" and not report.skipped
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_collectreport(self, report: Any) -> None:
        """Keep a file that cannot be collected: a fault that breaks an import has not died by a test."""
        if report.failed:
            self.broken.append(f"{report.nodeid} cannot be collected")


def copied(folder: Path) -> Path:
    """A copy of the working tree, and beside it a folder from which `monosem` is imported out of the copy."""
    tree = folder / "tree"
    tree.mkdir()
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name)
        else:
            shutil.copy2(ROOT / name, tree / name)
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
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # bytecode of the text is fresh again


def misplaced(tree: Path, fault: Fault) -> str:
    """The reason why a fault cannot be planted; empty if it can."""
    path = tree / fault.file
    found = path.read_text().count(fault.old) if path.is_file() else 0
    return "" if found == 1 else f"the text to replace stands {found} times in {fault.file}"


def run(tree: Path, tests: Sequence[str], *, first: bool) -> Outcome:
    """Run tests of the copy in a fork; up to the first that fails if `first`."""
    start, outcome, log = time.monotonic(), tree.parent / "outcome.json", tree.parent / "log"
    outcome.unlink(missing_ok=True)
    child = os.fork()
    if not child:
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        try:
            _test(tree, tests, outcome, first)
        finally:
            os._exit(0)
    ended = 0
    while not ended and time.monotonic() - start < LONGEST:
        time.sleep(0.05)
        ended, _ = os.waitpid(child, os.WNOHANG)
    if not ended:
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
    seconds = time.monotonic() - start
    if not outcome.exists():
        return Outcome([], "the tests crashed" if ended else f"stopped after {LONGEST} s", seconds)
    return Outcome(**json.loads(outcome.read_text()), seconds=seconds)


def _test(tree: Path, tests: Sequence[str], outcome: Path, first: bool) -> None:
    """Run pytest on the copy, and write what failed."""
    import pytest

    path = str(tree.parent / "path")
    os.chdir(tree)
    os.environ.update(PYTHONPATH=path, PYTHONDONTWRITEBYTECODE="1")
    sys.path.insert(0, path)
    sys.dont_write_bytecode = True
    recorder, options = Recorder(), ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", *(["-x"] if first else [])]
    pytest.main([*options, f"--rootdir={tree}", *(f"tests/{test}" for test in tests)], plugins=[recorder])
    ours = [str(module.__file__) for name, module in sys.modules.items() if name.startswith("monosem.")]
    if strange := [file for file in ours if not file.startswith(path)]:
        recorder.broken.append(f"{strange[0]} was tested, which is not in the copy")
    elif not recorder.ran and not recorder.failed:
        recorder.broken.append("no test ran")
    outcome.write_text(json.dumps({"failed": recorder.failed, "broken": ", ".join(recorder.broken)}))


def say(*words: object) -> None:
    """Print one line at once."""
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def main(words: Sequence[str]) -> int:
    """Plant the faults that have one of the words, or all there are; 0 if every one died."""
    faults = [fault for fault in FAULTS if not words or any(word in f"{fault.file} {fault.what}" for word in words)]
    if not faults:
        say("no fault has", " or ".join(words), "in its file or its description")
        return 1
    os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
    if not Path("/dev/nvidia0").exists():
        os.environ["TRITON_INTERPRET"] = "1"  # as `tests/conftest.py` has it, and before Triton is imported
    for name in LOADED:
        importlib.import_module(name)
    begin, lived, width = time.monotonic(), 0, max(len(fault.what) for fault in faults)
    with tempfile.TemporaryDirectory(prefix="mutate-") as folder:
        tree = copied(Path(folder))
        tests = list(dict.fromkeys(fault.test for fault in faults))
        whole = run(tree, tests, first=False)
        for reason in (*whole.failed, *filter(None, [whole.broken])):
            say("without any fault:", reason)
        say(f"{len(tests)} tests without any fault, {whole.seconds:.0f} s")
        for fault in faults:
            outcome = Outcome([], misplaced(tree, fault), 0.0)
            if not outcome.broken:
                with planted(tree, fault):
                    outcome = run(tree, [fault.test], first=True)
            died = bool(outcome.failed) and not outcome.broken
            lived += not died
            by = outcome.failed[0].removeprefix("tests/") if died else outcome.broken or f"{fault.test} passes"
            say(f"{fault.what:{width}}  {'died ' if died else 'LIVED'}  {outcome.seconds:5.1f} s  {by}")
    say(f"{len(faults) - lived} of {len(faults)} faults died, {time.monotonic() - begin:.0f} s")
    return 1 if lived or whole.failed or whole.broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
