"""One spelling for one quantity: the option that is typed, where a command's dataclasses nest the field elsewhere.

Rows to train on are `--rows`, tokens to measure on `--tokens`, documents to read at most `--texts`, in every command.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import InputError
from .help import options_of, positionals_of, spelt_otherwise

SHARED = {"--training.rows": "--rows", "--evaluation.tokens": "--tokens", "--text.limit": "--texts"}
"""From the option that nested dataclasses make to the one that is typed."""
OWN: dict[str, dict[str, str]] = {
    "fast": {"--batch": "--stream.batch", "--buffer": "--stream.buffer"},
    "truth": {"--batch": "--text.batch-rows"},
    "geography": {"--batch": "--text.batch-rows"},
    "probe": {"--batch": "--text.batch-rows", "--tokens": "--text.context"},
    "outliers": {"--scoring.batch": "--text.batch-rows", "--scoring.tokens": "--text.context"},
}
"""The same for one command."""
MOVED = {
    "--sinks": ("--trackers", "--attention-sinks"),
    "--train-rows": ("--rows",),
    "--out": ("--page", "OUT"),
}
"""Options of before, and those in their place (`OUT` is positional): a command has one of them."""


def spelt(name: str) -> dict[str, str]:
    """From each option of a command's dataclasses that is spelt otherwise to its spelling."""
    return {**SHARED, **OWN.get(name, {})}


def inner_spellings(name: str, arguments: Sequence[str]) -> list[str]:
    """The arguments of a command with options as its dataclasses have them.

    Raises:
        InputError: an option by a spelling of before.
    """
    options, outer = options_of(name), spelt_otherwise(name)
    inner_of = {option: inner for inner, option in outer.items()}
    positional = positionals_of(name)
    known = (*options, *positional)
    spelled = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        plain = flag.replace("_", "-") if flag.startswith("--") else flag
        now = next((option for option in MOVED.get(plain, ()) if option in known), outer.get(plain))
        if now in positional and plain not in options:
            line = " ".join(["monosem", name, *positional])
            raise InputError(f"monosem {name} has no option {plain}: write its value without {plain}, as in: {line}")
        if now is not None and plain not in options:
            raise InputError(f"the option {plain} of monosem {name} is called {now} now")
        spelled.append(f"{inner_of[plain]}{equals}{value}" if plain in inner_of else argument)
    return spelled
