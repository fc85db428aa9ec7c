"""Files and folders whose names are not text."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from tiny_commands import Ended, Tiny

Command = Callable[..., Ended]


def test_a_name_that_is_no_text_is_read_written_and_told(tiny: Tiny, monosem: Command, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    text = tmp_path / f"{name}.txt"
    if tiny.text.is_dir():
        shutil.copytree(tiny.text, text)
    else:
        shutil.copy(tiny.text, text)
    options = ("--sites", "resid_post.1", "--n-latents=16", "--k=2", "--rows=256", *tiny.stream)
    source = [option for option in tiny.source if "--corpus" not in str(option)]
    ended = monosem("train", tmp_path / name, *source, f"--corpus=text:{text}", *options, "--json")
    assert ended.status == 0, ended.err
    assert list((tmp_path / name).glob("dictionaries/*/dictionary.json"))
