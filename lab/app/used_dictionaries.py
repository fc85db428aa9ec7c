"""`UsedDictionaries`: how a command reads dictionaries, ours or another library's, and opens their model.

Files of other libraries may lack the sites, or call the model by another name than the one it is loaded by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...saes.dictionary import Dictionary
from ...saes.files import find_dictionary
from ...saes.formats import RELEASED
from ..errors import InputError
from ..models.hooked_model import HookedModel
from .options import ModelOptions


@dataclass(frozen=True)
class UsedDictionaries:
    """Statements on dictionaries whose files do not tell where and on which model they were trained."""

    place: str | None = field(default=None, kw_only=True)
    """Sites that the dictionary reads and predicts, as in `resid_post.12` or `resid_mid.12 -> mlp_out.12`; by default
    those that its files name."""
    model_is_the_same: bool = field(default=False, kw_only=True)
    """Use the dictionary on the loaded model, although its files name another one."""

    def read(self, path: Path) -> tuple[Path, Dictionary]:
        """A dictionary with its own folder, at the stated place.

        Raises:
            InputError: there is none or more than one, or the place does not fit it.
        """
        folder, dictionary = find_dictionary(path)
        if self.place is not None:
            dictionary.place = self.place
        return folder, dictionary

    def given(self) -> dict[str, Any]:
        """The place, where it is stated: results of another place are others."""
        return {} if self.place is None else {"place": self.place}

    def check(self, source: ModelOptions, dictionaries: Sequence[Dictionary], sites: Sequence[Any] = ()) -> HookedModel:
        """`ModelOptions.check`, and the model's sites and widths against those of the dictionaries.

        Raises:
            InputError: as there; a dictionary names no site or another width, or was trained on another model.
        """
        model = source.check(sites, [] if self.model_is_the_same else dictionaries)
        for dictionary in dictionaries:
            try:
                dictionary.place.in_model(model)
            except InputError as error:
                fix = "" if dictionary.place.named else f"; or --place '{dictionary.place.example()}'"
                raise InputError(f"{error}{fix}") from error
        return model

    def open_model(self, source: ModelOptions, dictionaries: Sequence[Dictionary]) -> HookedModel:
        """Load the model; it is the dictionaries' own from then on, where that is stated.

        Raises:
            InputError: the model cannot be loaded.
        """
        model = source.open_model()
        if self.model_is_the_same:
            for dictionary in dictionaries:
                dictionary.set_model(model)
        return model


def folder_for_results(dictionary: Path, folder: Path, results: Path | None) -> Path:
    """Where results on a dictionary are written: `results`, or the dictionary's own folder.

    Args:
        dictionary: the path or name that was given.
        folder: the folder that its files are in.

    Raises:
        InputError: the dictionary is on the hub, and `results` is not given.
    """
    if results is not None:
        return results
    if str(dictionary).startswith(("hf:", RELEASED)):
        raise InputError(f"{dictionary} is not in a folder of yours: name one for the results with --results")
    return folder.parent if folder.is_file() else folder
