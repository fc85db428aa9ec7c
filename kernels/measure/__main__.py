"""`python kernels/measure --out FILE`: ceilings, selection, decode, update and whole steps on a GPU in under 8 minutes.

It needs torch, triton and numpy, nothing installed, and no network. Every section is a process of its own with a
budget of seconds; what does not fit is named and skipped, what fails stands in the table as failed and gives exit
status 1.
`--dry` runs everything at toy sizes on any machine. `--tests` runs the kernels' tests first, where pytest is there.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

SECONDS = 450
"""Of the whole run; eight minutes with the start and the last section's overrun."""


def main() -> int:
    """Measure everything; returns the exit status: 0 done, 1 something failed, 2 bad input."""
    options = _options()
    if not options.out.absolute().parent.is_dir():
        sys.stderr.write(f"--out {options.out}: there is no folder {options.out.parent}: create it first\n")
        return 2
    bare: Any = importlib.import_module(f"{__package__}.bare" if __package__ else "bare")
    sys.stderr.write(bare.prepare(options.wheels) + "\n")
    session: Any = importlib.import_module("monosem.kernels.measure.session").Session(
        options.out, options.seconds, options.dry
    )
    if session.device.type == "cpu" and not options.dry:
        sys.stderr.write("there is no GPU here: give --dry to run everything at toy sizes\n")
        return 2
    kept = options.out.with_name(options.out.name + ".json")
    if options.section:
        session.load(kept)
        _section(session, options.section, bare.ROOT)
        session.save(kept)
        return int(session.wrong)
    kept.unlink(missing_ok=True)
    titles = (*(("tests",) if options.tests else ()), *(title for title, _, _ in _sections(session)))
    for title in titles:
        _apart(session, title, kept)
    kept.unlink(missing_ok=True)
    sys.stdout.write(session.markdown())
    return int(session.wrong)


def _apart(session: Any, title: str, kept: Path) -> None:
    """Run one section in a process of its own, so that a fault of the device ends nothing but that section."""
    left = max(1.0, session.seconds - session.elapsed)
    command = [sys.executable, *(["-S"] if sys.flags.no_site else []), str(Path(__file__).parent), *sys.argv[1:]]
    session.save(kept)
    try:
        done = subprocess.run(
            [*command, "--section", title, f"--seconds={left}"], stderr=subprocess.PIPE, text=True, timeout=left + 60
        )
        reason = f"the process ended with {done.returncode}: {(done.stderr.strip().splitlines() or ['no output'])[-1]}"
        ended = done.returncode in (0, 1)
    except subprocess.TimeoutExpired:
        ended, reason = False, "the process took too long"
    lines = len(session.lines)
    session.load(kept)
    if not ended or len(session.lines) == lines:  # it ended before it said how long it took
        session.failed(title, "whole section", reason)


def _section(session: Any, asked: str, root: Path) -> None:
    """Run the section of that title."""
    if asked == "tests":
        session.section("tests", 240, [("kernels", lambda: _tests(session, root))])
        return
    dispatch: Any = importlib.import_module("monosem.kernels.dispatch")
    with dispatch.using("triton" if find_spec("triton") else "reference"):
        for title, budget, parts in _sections(session):
            if title == asked:
                session.section(title, budget, parts)


def _sections(session: Any) -> Any:
    operations, steps = (importlib.import_module(f"monosem.kernels.measure.{name}") for name in ("operations", "steps"))
    return (*operations.sections(session), *steps.sections(session))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python kernels/measure", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="file for the table")
    parser.add_argument("--wheels", type=Path, help="folder of pure Python wheels to import from")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time for everything")
    parser.add_argument("--dry", action="store_true", help="toy sizes on any machine; status 1 if anything fails")
    parser.add_argument("--section", help="only the section of that title, added to what FILE.json holds")
    parser.add_argument("--tests", action="store_true", help="the kernels' tests first")
    return parser.parse_args()


def _tests(session: Any, root: Path) -> None:
    if find_spec("pytest") is None:
        session.say("tests not run: there is no pytest here")
        return
    import pytest

    status = int(pytest.main(["-q", "-x", "-p", "no:cacheprovider", str(root / "tests" / "kernels")]))
    if status:
        raise RuntimeError(f"pytest ended with {status}")
    session.say("tests passed")


if __name__ == "__main__":
    sys.exit(main())
