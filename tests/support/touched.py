"""Count the files of monosem in which a function runs while a command does.

    python tests/support/touched.py train OUT --model ... --corpus ...

Module bodies, class bodies and functions that only run during an import do not count. Prints one file a line, then how
many they are.
"""

from __future__ import annotations

import importlib
import sys
import threading
from pathlib import Path
from types import CodeType, FrameType

ROOT = Path(__file__).parents[2]
ROOMS = ("lab", "saes", "probes", "interventions", "kernels")


def touched(argv: list[str]) -> list[str]:
    """Files of ours, relative to the repository, in which a function was called by `monosem ARGV`."""
    main = importlib.import_module("monosem.lab.app.cli").main
    seen: set[CodeType] = set()

    def outside_imports(frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        new = event == "call" and code not in seen and code.co_filename.startswith(str(ROOT))
        if new and code.co_name != "<module>" and not imported(frame):
            seen.add(code)

    def imported(frame: FrameType | None) -> bool:
        while frame is not None:
            if frame.f_code.co_name == "<module>" and frame.f_code.co_filename != __file__:
                return True
            frame = frame.f_back
        return False

    threading.setprofile(outside_imports)
    sys.setprofile(outside_imports)
    try:
        status = main(argv)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    if status:
        raise SystemExit(status)
    files = {str(Path(code.co_filename).relative_to(ROOT)) for code in seen}
    return sorted(file for file in files if file.split("/")[0] in ROOMS)


if __name__ == "__main__":
    listed = touched(sys.argv[1:])
    print(*listed, len(listed), sep="\n")  # noqa: T201
