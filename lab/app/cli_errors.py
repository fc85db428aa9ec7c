"""What the option parser says of a wrong command line, as one sentence.

tyro draws a box: what is wrong, a rule, then suggestions and where to find help. A sentence on the last line is what
a person finds and what a program can show.
"""

from __future__ import annotations

import re

from ..errors import InputError, unknown

FRAME = " \t╭╮╰╯│─|+-"
CHOICE = re.compile(
    r"invalid choice '(?P<value>.*)' for argument '(?P<option>\S+)'\. Expected one of \((?P<all>.*)\)\."
)
SUGGESTED = "Perhaps you meant:"
COMMANDS = "Available subcommands:"


def misspelt(box: str) -> InputError:
    """The refusal that a box tells of: what is wrong and, where it suggests something, what may have been meant."""
    wrong, *others = _paragraphs(box) or [["the command line could not be read: see monosem --help"]]
    message = " ".join(wrong)
    if found := CHOICE.fullmatch(message):
        allowed = [name for name in re.findall(r"'([^']*)'", found["all"]) if name != "None"]
        return unknown(f"value of {found['option']}", found["value"], allowed)
    for lines in others:
        if lines[0].startswith(SUGGESTED):
            options = dict.fromkeys(line for line in lines[1:] if line.startswith("--"))
            return InputError(f"{_lowered(message)}; did you mean {' or '.join(list(options)[:3])}?")
        if lines[0].startswith(COMMANDS):
            names = " ".join(lines).removeprefix(COMMANDS).replace(" ", "").split(",")
            return unknown("command", message.rpartition(": ")[2], names)
    return InputError(_lowered(message.removesuffix(".")))


def _paragraphs(box: str) -> list[list[str]]:
    """The box's lines without its frame, split at its rules; the title, which the text repeats, is left out."""
    found: list[list[str]] = [[]]
    for line in box.splitlines()[1:]:
        text = line.strip(" │|")
        if text and not text.strip(FRAME):
            found.append([])
        elif text:
            found[-1].append(text)
    return [lines for lines in found if lines]


def _lowered(text: str) -> str:
    return text[:1].lower() + text[1:]
