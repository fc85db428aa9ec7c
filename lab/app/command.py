"""`Command`: options as a frozen dataclass, and `run()`, which gives a `Result`.

A command is one file in `commands/` (or `bench/`) with one such class, and one line in the table of its package. Its
docstring and those under its fields are the help; `example` is the line that the help ends with.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from ..evidence import Evidence

INCOMPLETE = 3
"""Exit status of a command that ran to its end and could not give all that was asked for."""


@dataclass(frozen=True)
class Result:
    """The outcome of a command: values for programs, text for people, a page where there is one."""

    values: Mapping[str, Any]
    """JSON values; `--json` prints them as one line."""
    text: str
    """The same for a terminal."""
    page: Path | None = None
    """An HTML page that shows the result."""
    incomplete: tuple[str, ...] = ()
    """A sentence for each thing that was asked for and is not in the result; any gives the exit status `INCOMPLETE`."""

    def as_json(self) -> str:
        """The values on one line."""
        return json.dumps(self.values)


class Command:
    """The base of every command."""

    example: ClassVar[str]
    """A command line that works as it stands."""
    always_json: ClassVar[bool] = False
    """True if the result is printed as JSON without `--json` too."""

    def run(self) -> Result:
        """Do what the command is for.

        Raises:
            InputError: an option, file or folder that cannot be used; nothing is written then.
        """
        raise NotImplementedError

    def as_text(self, result: Mapping[str, Any]) -> str:
        """The result for a terminal: by default one line for each value."""
        return as_lines(result)

    def result(
        self, values: Mapping[str, Any], page: Path | str | None = None, *, incomplete: Iterable[str] = ()
    ) -> Result:
        """The `Result` with these values; `incomplete` says what was asked for and is not in them."""
        return Result(values, self.as_text(values), None if page is None else Path(page), tuple(incomplete))


def missing_nulls(scores: Iterable[Evidence]) -> list[str]:
    """A sentence for each null that could not be measured, with the reason and the scores that lack it."""
    lacking: dict[tuple[str, str], list[str]] = {}
    for score in scores:
        for null, reason in score.missing.items():
            lacking.setdefault((null, reason), []).append(score.name)
    return [
        f"the null {null} of {', '.join(dict.fromkeys(names))} could not be measured: {reason}"
        for (null, reason), names in lacking.items()
    ]


def as_lines(values: Mapping[str, Any], indent: str = "") -> str:
    """A mapping as indented lines, numbers to four digits."""
    lines = []
    for key, value in values.items():
        if isinstance(value, dict) and value:
            lines += [f"{indent}{key}:", as_lines(value, indent + "  ")]
        else:
            lines.append(f"{indent}{key}: {f'{value:.4g}' if isinstance(value, float) else value}")
    return "\n".join(lines)
