"""The `monosem` command: finds one command, parses its options, runs it, reports errors in one sentence.

Only the module of the chosen command is imported; help is data (`help.json`), so that it needs none of them. With
`--json` the result is the last line of stdout and everything else goes to stderr. Exit status: 0 done, 2 bad input,
3 done without something that was asked for, 130 interrupted, 1 any other failure (with a traceback).
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from ..errors import InputError, unknown
from .bench import BENCHES
from .cli_errors import refusal
from .command import INCOMPLETE, Command
from .commands import COMMANDS
from .help import BENCH, HELP_OPTIONS, command_help, overview
from .spellings import inner_spellings


def homes() -> dict[str, str]:
    """Every command's name, that of a benchmark as `bench NAME`, and its module and class below `lab.app`."""
    ours = {name: f"commands.{home}" for group in COMMANDS.values() for name, home in group.items()}
    return {**ours, **{f"{BENCH} {name}": f"bench.{home}" for name, home in BENCHES.items()}}


def command_class(name: str) -> type[Command]:
    """The class of a command, imported now."""
    module, _, kind = homes()[name].rpartition(".")
    return getattr(importlib.import_module(f".{module}", __package__), kind)


def command_name(argv: Sequence[str]) -> tuple[str, list[str]]:
    """The name of the command that `argv` begins with, and the rest.

    Raises:
        InputError: no command, or an unknown one, with the nearest right name.
    """
    if not argv:
        raise InputError("no command is given: monosem --help lists them")
    first, *rest = argv
    if first != BENCH:
        names = [name for name in homes() if " " not in name]
        if first not in names:
            raise unknown("command", first, [*names, BENCH])
        return first, rest
    if not rest:
        raise InputError(f"no benchmark is given: write monosem bench and one of {', '.join(BENCHES)}")
    if rest[0] not in BENCHES:
        raise unknown("benchmark", rest[0], BENCHES)
    return f"{BENCH} {rest[0]}", rest[1:]


def parse(argv: Sequence[str]) -> Command:
    """The command with its options.

    Raises:
        InputError: an unknown command or option, with the nearest right spelling; one that is missing; or a value that
            is none of its kind or that the dataclass it is for refuses.
    """
    name, rest = command_name(argv)
    arguments = inner_spellings(name, rest)
    kind: Any = command_class(name)
    import tyro

    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(kind, prog=f"monosem {name}", args=arguments)
    except SystemExit as stop:
        raise _cause(stop) or refusal(name, box.getvalue()) from None


def _cause(error: BaseException | None) -> InputError | None:
    """The `InputError` that led to an exception, if one did: tyro turns it into a box that names its own parts."""
    while error is not None and not isinstance(error, InputError):
        error = error.__context__
    return error


def help_asked(argv: Sequence[str]) -> str | None:
    """The help that `argv` asks for; None where it asks for none."""
    if not any(option in argv for option in HELP_OPTIONS):
        return None
    if argv[0] in HELP_OPTIONS:
        return overview()
    if argv[0] == BENCH and argv[1] in HELP_OPTIONS:
        return overview(BENCH)
    return command_help(command_name(argv)[0])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv == ["--version"]:
        sys.stdout.write(f"monosem {version('monosem')}\n")
        return 0
    as_json = "--json" in argv
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name need not be text
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        if text := help_asked(argv):
            sys.stdout.write(text)
            return 0
        command = parse([argument for argument in argv if argument != "--json"])
        result = command.run()
    except InputError as error:
        notes = getattr(error, "__notes__", [])
        sys.stderr.write(f"monosem: {'; '.join([str(error), *notes])}\n")
        return 2
    except KeyboardInterrupt as stop:
        sys.stderr.write(f"\nmonosem: {str(stop) or 'interrupted'}\n")
        return 130
    sys.stdout.write((result.as_json() if as_json or command.always_json else result.text) + "\n")
    sys.stdout.flush()
    for sentence in result.incomplete:
        sys.stderr.write(f"monosem: {sentence}\n")
    return INCOMPLETE if result.incomplete else 0


if __name__ == "__main__":
    sys.exit(main())
