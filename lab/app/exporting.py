"""`monosem export`: a dictionary in another library's files, without loss unless that is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from ...saes import formats
from .evaluating import find_dictionary


@dataclass(frozen=True)
class Export:
    """Write a dictionary in another library's format."""

    dictionary: tyro.conf.Positional[Path]
    """Folder of a dictionary, of a run with exactly one, or a dictionary of another library."""
    out: tyro.conf.Positional[Path]
    """A new folder."""
    to: str = "sae-lens"
    """sae-lens, sparsify, dictionary-learning, gemma-scope, gemma-scope-2, circuit-tracer or openai."""
    lossy: bool = False
    """Go on where the other format cannot hold everything; the result says what was lost."""

    def run(self) -> dict[str, Any]:
        """Convert, check that both sides give the same outputs, write."""
        if formats.recognise(self.dictionary):
            dictionary = formats.read(self.dictionary, lossy=self.lossy)
        else:
            _, dictionary = find_dictionary(self.dictionary)
        done = formats.write(dictionary, self.out, self.to, self.lossy)
        return {
            "architecture": dictionary.architecture,
            "format": done.format,
            "out": str(done.path),
            "lost": list(done.lost),
            "rounded": list(done.rounded),
        }
