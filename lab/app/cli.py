"""The `monosem` command: parses options, runs one command, reports errors in one sentence.

Every command is a frozen dataclass in its own file with a `run()` that returns a JSON-able dict. With `--json`
that dict is the last line of stdout and everything else goes to stderr. Exit status: 0 done, 2 bad input,
130 interrupted, 1 any other failure (with a traceback).
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Union

import tyro

from ..errors import InputError
from .bench.command import Bench
from .cli_errors import misspelt
from .commands.atoms import Atoms
from .commands.compare import Compare
from .commands.demo import Demo
from .commands.evaluate import Eval
from .commands.export import Export
from .commands.fast import Fast
from .commands.features import Features
from .commands.finetune import Finetune
from .commands.geography import Geography
from .commands.harvest import Harvest
from .commands.itda import Itda
from .commands.outliers import Outliers
from .commands.probe import Probe
from .commands.sparsity import Sparsity
from .commands.sweep import Sweep
from .commands.train import Train
from .commands.truth import Truth

COMMANDS = {
    "demo": Demo,
    "harvest": Harvest,
    "train": Train,
    "finetune": Finetune,
    "itda": Itda,
    "sweep": Sweep,
    "eval": Eval,
    "features": Features,
    "export": Export,
    "fast": Fast,
    "compare": Compare,
    "atoms": Atoms,
    "sparsity": Sparsity,
    "probe": Probe,
    "truth": Truth,
    "geography": Geography,
    "outliers": Outliers,
    "bench": Bench,
}
"""Name on the command line to the dataclass that holds its options."""


def parse(argv: Sequence[str]) -> Any:
    """The command and its options.

    Raises:
        InputError: an unknown command or option, with the nearest right spelling; one that is missing; or a value that
            is none of its kind or that the dataclass it is for refuses.
    """
    kinds = tuple(Annotated[kind, tyro.conf.subcommand(name)] for name, kind in COMMANDS.items())
    command = Union[kinds]  # type: ignore  # noqa: UP007 (built at run time)
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            return tyro.cli(command, prog="monosem", args=list(argv), config=(tyro.conf.OmitSubcommandPrefixes,))  # type: ignore
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        raise _refusal(stop) or misspelt(told.getvalue()) from None


def _refusal(error: BaseException | None) -> InputError | None:
    """The `InputError` that led to an exception, if one did: tyro turns it into a box that names its own parts."""
    while error is not None and not isinstance(error, InputError):
        error = error.__context__
    return error


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in argv
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        command = parse([arg for arg in argv if arg != "--json"])
        as_json = as_json or getattr(command, "always_json", False)
        result = command.run()
    except InputError as error:
        sys.stderr.write(f"monosem: {error}\n")
        return 2
    except KeyboardInterrupt as stop:
        sys.stderr.write(f"\nmonosem: {str(stop) or 'interrupted'}\n")
        return 130
    sys.stdout.write(json.dumps(result) + "\n" if as_json else getattr(command, "told", render)(result) + "\n")
    sys.stdout.flush()
    return 0


def render(result: dict[str, Any], indent: str = "") -> str:
    """A dict as indented lines, numbers to four digits."""
    lines = []
    for key, value in result.items():
        if isinstance(value, dict) and value:
            lines += [f"{indent}{key}:", render(value, indent + "  ")]
        else:
            lines.append(f"{indent}{key}: {f'{value:.4g}' if isinstance(value, float) else value}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
