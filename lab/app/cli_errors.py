"""Sentences for what the option parser refuses.

tyro draws a box: the complaint, a rule, then suggestions of all kinds. A sentence on the last line is what a person
finds and what a program can show; it suggests only what the command has.
"""

from __future__ import annotations

import re

from ..errors import InputError, nearest, unknown
from .help import records, spelt_otherwise

FRAME = " \t╭╮╰╯│─|+-"
CHOICE = re.compile(
    r"invalid choice '(?P<value>.*)' for argument '(?P<option>\S+)'\. Expected one of \((?P<all>.*)\)\."
)
UNRECOGNIZED, MISSING = "Unrecognized options: ", "Missing from "


def refusal(name: str, box: str) -> InputError:
    """The `InputError` for the box that tyro draws of a wrong command line of `monosem NAME`."""
    message = _complaint(box)
    for inner, option in spelt_otherwise(name).items():
        message = re.sub(rf"{re.escape(inner)}(?![\w.-])", option, message)
    if match := CHOICE.fullmatch(message):
        allowed = [choice for choice in re.findall(r"'([^']*)'", match["all"]) if choice != "None"]
        return unknown(f"value of {match['option']}", match["value"], allowed)
    if message.startswith(UNRECOGNIZED):
        return _unrecognized(name, message.removeprefix(UNRECOGNIZED).split(", "))
    if message.startswith(MISSING):
        return _missing(name)
    return InputError((message[:1].lower() + message[1:]).removesuffix(".") or f"see monosem {name} --help")


def _unrecognized(name: str, words: list[str]) -> InputError:
    flag = next((word for word in words if word.startswith("-")), None)
    if flag is None:
        return InputError(f"monosem {name} has no place for {words[0]!r}: see monosem {name} --help")
    flag = flag.partition("=")[0].replace("_", "-")
    options = [option["flags"][0] for option in records()[name]["options"] if option["flags"]]
    last = flag.rpartition(".")[2].lstrip("-")
    close = [option for option in options if option.rpartition(".")[2].lstrip("-") == last]
    close = close or nearest(flag, options, 1)
    hint = f"did you mean {' or '.join(close[:3])}?" if close else f"monosem {name} --help lists those it has"
    return InputError(f"monosem {name} has no option {flag}: {hint}")


def _missing(name: str) -> InputError:
    record = records()[name]
    needed = [
        option["flags"][0] if option["flags"] else option["name"].upper()
        for option in record["options"]
        if option["required"]
    ]
    return InputError(f"monosem {name} needs {' and '.join(needed)}, as in: {record['example']}")


def _complaint(box: str) -> str:
    """The box's first lines without its frame, up to the first rule; the title, which they repeat, is left out."""
    lines: list[str] = []
    for line in box.splitlines()[1:]:
        text = line.strip(" │|")
        if text and not text.strip(FRAME):
            if lines:
                break
            continue  # without Unicode the title stands above a rule of its own
        lines += [text] if text else []
    return " ".join(lines)
