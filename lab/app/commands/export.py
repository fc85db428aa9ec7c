"""`monosem export`: a dictionary in another library's files, without loss unless that is asked for."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import tyro

from ....saes import formats
from ....saes.files import find_dictionary
from ...errors import unknown
from ..checks import check_folder
from ..command import Command, Result

log = logging.getLogger(__name__)

WRITTEN = tuple(name for name, form in formats.FORMATS.items() if form.compose)
"""Formats that can be written; the others are only read."""


@dataclass(frozen=True)
class ExportCommand(Command):
    """Write a dictionary in another library's format."""

    example = "monosem export runs/first exported --to sae-lens"

    dictionary: tyro.conf.Positional[str]
    """Folder of a dictionary, of a run with exactly one, a dictionary of another library, `hf:ORG/REPO[/FOLDER]` or
    `sae-lens:RELEASE/ID`."""
    out: tyro.conf.Positional[Path]
    """A new folder."""
    to: str = "sae-lens"
    """sae-lens, sparsify, dictionary-learning, gemma-scope, gemma-scope-2, circuit-tracer or openai."""
    lossy: bool = False
    """Go on where the other format cannot hold everything; the result says what was lost."""

    def __post_init__(self) -> None:
        if self.to not in WRITTEN:
            raise unknown("format to write", self.to, WRITTEN)

    def run(self) -> Result:
        """Convert, check that both sides give the same outputs, write."""
        check_folder(self.out)
        formats.require_new(self.out)
        log.info("reading %s", self.dictionary)
        place = self.dictionary
        if not place.startswith(formats.RELEASED):
            place = str(formats.located(place))
        if place.startswith(formats.RELEASED) or formats.recognise(place):
            dictionary = formats.read(place, lossy=self.lossy)
        else:
            _, dictionary = find_dictionary(Path(place))
        log.info("writing %r as %s, and checking that both give the same outputs", dictionary, self.to)
        done = formats.write(dictionary, self.out, self.to, self.lossy)
        lost, rounded = list(done.lost), list(done.rounded)
        return self.result(
            {"architecture": dictionary.architecture, "format": done.format, "out": str(done.path), "lost": lost,
             "rounded": rounded}
        )  # fmt: skip
