"""Write `docs/commands.md` from the help of the command line: `python docs/generate_commands.py`. A test compares."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from monosem.lab.app.commands import COMMANDS
from monosem.lab.app.help import BENCH, records

PAGE = Path(__file__).parent / "commands.md"
HEAD = """# Commands

Written by `python docs/generate_commands.py` from `monosem COMMAND --help`; change the help, not this page.

Every command takes `--json` (one JSON object as the last line of stdout, everything else on stderr) and `--help`.
Exit status: 0 done, 2 bad input (one sentence that names the value and the fix), 3 done without something that was
asked for (a sentence says what and why), 130 interrupted, 1 any other failure.
"""


def page() -> str:
    """The page: a list of all commands by group, then each with its options and one example."""
    groups = {title: list(names) for title, names in COMMANDS.items()}
    groups[BENCH] = [name for name in records() if name.startswith(f"{BENCH} ")]
    lines = [HEAD]
    for title, names in groups.items():
        links = ", ".join(f"[{name}](#monosem-{name.replace(' ', '-')})" for name in names)
        lines += [f"- **{title}**: {links}"]
    for names in groups.values():
        for name in names:
            lines += ["", *described(name, records()[name])]
    return "\n".join(lines) + "\n"


def described(name: str, record: dict[str, Any]) -> Iterator[str]:
    """The section of one command."""
    yield f"## monosem {name}"
    yield f"\n{record['about']}\n"
    yield f"```\n{record['example']}\n```"
    if record["options"]:
        yield "\n| option | meaning |\n| --- | --- |"
    for option in record["options"]:
        typed = f"{option['flags'][0]} {option['metavar']}".rstrip() if option["flags"] else option["name"].upper()
        yield f"| `{cell(typed)}` | {cell(option['help'])} |"


def cell(text: str) -> str:
    """Text that stays inside one cell of a table."""
    return text.replace("|", "\\|").replace("\n", " ").strip()


if __name__ == "__main__":
    PAGE.write_text(page())
