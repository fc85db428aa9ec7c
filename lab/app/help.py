"""Help of the command line, read from `help.json` (written by `lab.app.describe`) without importing a command."""

from __future__ import annotations

import json
import shutil
import textwrap
from functools import cache
from pathlib import Path
from typing import Any

from .commands import COMMANDS

BENCH = "bench"
FILE = Path(__file__).parent / "help.json"
HELP_OPTIONS = ("-h", "--help")
INDENT = 26
WIDEST = 110


@cache
def records() -> dict[str, dict[str, Any]]:
    """Summary, description, example and options of each command by its name."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def options_of(name: str) -> tuple[str, ...]:
    """The options of a command, as they are typed."""
    record = records().get(name)
    return () if record is None else tuple(flag for option in record["options"] for flag in option["flags"])


def positionals_of(name: str) -> tuple[str, ...]:
    """The arguments of a command that have no flag, in capitals and in their order."""
    record = records().get(name, {"options": []})
    return tuple(option["name"].upper() for option in record["options"] if not option["flags"])


def spelt_otherwise(name: str) -> dict[str, str]:
    """From each option that a command's dataclasses make to the one that is typed in its place."""
    record = records().get(name, {"options": []})
    return {inner: option["flags"][0] for option in record["options"] for inner in option.get("inner", ())}


def overview(group: str | None = None) -> str:
    """The commands by group, each with its summary; of `bench` the benchmarks alone."""
    groups = {BENCH: [name for name in records() if name.startswith(f"{BENCH} ")]}
    if group is None:
        groups = {**{title: list(names) for title, names in COMMANDS.items()}, **groups}
    lines = ["usage: monosem COMMAND [options]", "       monosem COMMAND --help", "       monosem --version", ""]
    for title, names in groups.items():
        lines += [f"{title}:"]
        for name in names:
            lines += _entry(name, records()[name]["summary"], 23)
        lines += [""]
    lines += ["--json prints the result as one JSON object, the last line of stdout.", "", "example:", "  monosem demo"]
    return "\n".join(lines) + "\n"


def command_help(name: str) -> str:
    """The help of one command: usage, description, options by section, and an example as its last line."""
    record = records()[name]
    sections: dict[str, list[str]] = {}
    for option in record["options"]:
        sections.setdefault(option["section"], []).extend(_entry(_heading(option), option["help"], INDENT))
    needed = [_heading(option) for option in record["options"] if option["required"]]
    lines = ["usage: " + " ".join(["monosem", name, *needed, "[options]"]), ""]
    for paragraph in record["about"].split("\n\n"):
        lines += [*textwrap.wrap(paragraph, _columns()), ""]
    for section, entries in sections.items():
        lines += [f"{section}:", *entries, ""]
    return "\n".join([*lines, "example:", f"  {record['example']}"]) + "\n"


def _heading(option: dict[str, Any]) -> str:
    if not option["flags"]:
        return option["name"].upper()
    return f"{option['flags'][0]} {option['metavar']}".rstrip()


def _entry(heading: str, text: str, indent: int) -> list[str]:
    """A name, and beside it (below, where it is long) its text."""
    body = textwrap.wrap(text, max(_columns() - indent, 30)) or [""]
    first = f"  {heading}".ljust(indent)
    if not first.endswith(" "):
        return [first, *(" " * indent + line for line in body)]
    return [(first + body[0]).rstrip(), *(" " * indent + line for line in body[1:])]


def _columns() -> int:
    return min(shutil.get_terminal_size((100, 24)).columns, WIDEST)
