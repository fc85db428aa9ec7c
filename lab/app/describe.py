"""`python -m monosem.lab.app.describe`: write `help.json` from the commands themselves.

Options come from the dataclasses with their docstrings as tyro reads them, summaries from the first sentence of each
command's docstring. Run it after changing an option; a test compares.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
import warnings
from typing import Any

import tyro

from ..storage import atomic_path
from .cli import command_class, homes
from .help import FILE
from .spellings import spelt


def describe() -> dict[str, dict[str, Any]]:
    """A record for each command."""
    return {name: _record(name) for name in homes()}


def as_json(records: dict[str, dict[str, Any]]) -> str:
    """The text of the file: one line for each option, so that changes are easy to merge."""
    commands = []
    for name, record in records.items():
        options = ",\n".join(f"  {json.dumps(option, ensure_ascii=False)}" for option in record["options"])
        facts = {key: value for key, value in record.items() if key != "options"}
        head = json.dumps(facts, ensure_ascii=False)[:-1]
        commands.append(f'{json.dumps(name)}: {head}, "options": [\n{options}\n ]}}')
    return "{\n" + ",\n".join(commands) + "\n}\n"


def _record(name: str) -> dict[str, Any]:
    kind = command_class(name)
    about = _joined(inspect.cleandoc(str(kind.__doc__)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parser: Any = tyro.extras.get_parser(kind, prog=f"monosem {name}")
    options = [_option(name, action) for action in parser._actions if "--help" not in action.option_strings]
    summary = re.split(r"(?<=\.)\s", about, maxsplit=1)[0]
    return {"summary": summary, "about": about, "example": kind.example, "options": options}


def _option(name: str, action: Any) -> dict[str, Any]:
    given, renamed = list(action.option_strings), spelt(name)
    text = re.sub(r"\s+", " ", str(action.help or "").replace("%%", "%")).strip()
    flags: list[str] = list(dict.fromkeys(renamed.get(str(flag), str(flag)) for flag in given))
    section = flags[0].lstrip("-").rpartition(".")[0] if flags else "arguments"
    return {
        "name": action.dest,
        "flags": flags,
        "metavar": _metavar(action.metavar or ""),
        "required": "(required)" in text,
        "section": section if not flags else f"{section} options".strip(),
        **({"inner": given} if flags != given else {}),
        "help": re.sub(r"\((required|default: (None)?)\)", "", text).strip(),
    }


def _metavar(kind: Any) -> str:
    """`{None}|INT` as INT, `[STR [STR ...]]` as STR ..., choices as they are."""
    text = (" ".join(kind) if isinstance(kind, tuple) else str(kind)).replace("{None}|", "").replace("{None,", "{")
    many = re.fullmatch(r"\{?\[+(\S+) \[.*\]\}?", text)
    return f"{many[1]} ..." if many else text


def _joined(text: str) -> str:
    """Paragraphs on one line each."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def main() -> int:
    """Write the file."""
    with atomic_path(FILE) as temporary:
        temporary.write_text(as_json(describe()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
