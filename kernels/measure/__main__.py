"""`python kernels/measure --out FILE`: ceilings, selection, decode, update and whole steps on a GPU in under 8 minutes.

It needs torch, triton and numpy, nothing installed, and no network. Every section has a budget of seconds; what does
not fit is named and skipped, what fails is named and passed over, and FILE holds all that was measured so far.
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
    """Measure everything; returns the exit status."""
    options = _options()
    if not options.out.absolute().parent.is_dir():
        sys.stderr.write(f"--out {options.out}: there is no folder {options.out.parent}: create it first\n")
        return 2
    bare: Any = importlib.import_module(f"{__package__}.bare" if __package__ else "bare")
    bare.prepare(options.wheels)
    session: Any = importlib.import_module("monosem.kernels.measure.session").Session(
        options.out, options.seconds, options.dry
    )
    if session.device.type == "cpu" and not options.dry:
        sys.stderr.write("there is no GPU here: give --dry to run everything at toy sizes\n")
        return 2
    if options.tests:
        session.section("tests", 240, [("kernels", lambda: _tests(session, bare.ROOT))])
    operations, steps, dispatch = (
        importlib.import_module(f"monosem.kernels.{name}")
        for name in ("measure.operations", "measure.steps", "dispatch")
    )
    with dispatch.using("triton" if find_spec("triton") else "reference"):
        for title, budget, parts in (*operations.sections(session), *steps.sections(session)):
            session.section(title, budget, parts)
    sys.stdout.write(session.markdown())
    return int(options.dry and any(line.startswith("failed") for line in session.lines))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python kernels/measure", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="file for the table")
    parser.add_argument("--wheels", type=Path, help="folder of pure Python wheels to import from")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time for everything")
    parser.add_argument("--dry", action="store_true", help="toy sizes on any machine; status 1 if anything fails")
    parser.add_argument("--tests", action="store_true", help="the kernels' tests first")
    return parser.parse_args()


def _tests(session: Any, root: Path) -> None:
    if find_spec("pytest") is None:
        session.say("tests not run: there is no pytest here")
        return
    command = [sys.executable, "-m", "pytest", "-q", "-x", "tests/kernels"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=240)
    session.say(f"tests ended with {done.returncode}: {(done.stdout.strip().splitlines() or ['no output'])[-1]}")


if __name__ == "__main__":
    sys.exit(main())
