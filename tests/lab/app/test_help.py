"""Help: data that agrees with the commands, read without importing one; every quantity has one spelling."""

from __future__ import annotations

import subprocess
import sys

import pytest
from monosem.lab.app.cli import command_class, homes, parse
from monosem.lab.app.command import Command
from monosem.lab.app.commands import COMMANDS
from monosem.lab.app.describe import as_json, describe
from monosem.lab.app.help import FILE, command_help, options_of, overview, records, spelt_otherwise
from monosem.lab.app.spellings import MOVED, OWN, SHARED, inner_spellings
from monosem.lab.errors import InputError

HEAVY = ("torch", "transformers", "tyro", "numpy", "scipy", "sklearn", "monosem.lab.app.commands.train")


def test_the_file_is_as_the_commands_are() -> None:
    assert FILE.read_text() == as_json(describe()), "run: python -m monosem.lab.app.describe"


def test_help_imports_nothing_heavy() -> None:
    code = f"""
import sys
from monosem.lab.app.cli import main
assert main(["--help"]) == main(["train", "--help"]) == main(["bench", "step", "-h"]) == main(["--version"]) == 0
loaded = [name for name in {HEAVY} if name in sys.modules]
assert not loaded, loaded
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_commands_stand_in_groups() -> None:
    text = overview()
    places = [text.index(f"\n{group}:\n") for group in (*COMMANDS, "bench")]
    assert places == sorted(places) and list(COMMANDS) == ["train", "measure", "analyse", "exchange", "machine"]
    assert all(f"\n  {name} " in text for name in homes())


@pytest.mark.parametrize("name", homes())
def test_help_ends_with_a_line_that_parses(name: str) -> None:
    last = command_help(name).splitlines()[-1]
    program, *arguments = last.split()
    assert program == "monosem" and " ".join(arguments).startswith(name)
    command = parse(arguments)
    assert isinstance(command, command_class(name)) and issubclass(command_class(name), Command)


@pytest.mark.parametrize("name", homes())
def test_an_option_is_spelt_once(name: str) -> None:
    """No two fields of a command share a spelling, and none is spelt as another command's same quantity was."""
    options = options_of(name)
    assert len(set(options)) == len(options)
    assert not {*SHARED, *MOVED} & set(options)
    assert {inner for inner in OWN.get(name, {})}.isdisjoint(options)


def test_a_spelling_reaches_its_field() -> None:
    typed = ["out", "--rows=7", "--texts", "5", "--k=4"]
    assert inner_spellings("train", typed) == ["out", "--training.rows=7", "--text.limit", "5", "--k=4"]
    assert inner_spellings("itda", ["--rows", "7"]) == ["--rows", "7"]
    for name in homes():
        for old in spelt_otherwise(name):
            with pytest.raises(InputError, match=f"{old} of monosem {name} is called"):
                inner_spellings(name, [old])


def test_records_tell_what_is_needed() -> None:
    needed = {name: [one["name"] for one in record["options"] if one["required"]] for name, record in records().items()}
    assert needed["train"] == ["out"] and needed["finetune"] == ["dictionary", "out"] and needed["demo"] == []
    assert needed["features"] == ["dictionary", "out"] and needed["probe"] == ["out", "data"]
