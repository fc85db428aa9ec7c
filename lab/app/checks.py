"""Checks of what is cheap to know, made before a model is loaded or converted: folders, texts, runs, dictionaries."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from ...saes.place import OVERRIDE
from ..errors import InputError
from ..models.hooked_model import HookedModel
from ..models.same_model import SHAPE, refuse_differing
from ..storage import read_json
from ..text.conversations import DocsChats, GeneratedChats
from ..text.docs import DocsSource
from ..text.hub import HubSource
from ..text.sources import open_source

COSTLY = (DocsSource, DocsChats, GeneratedChats, HubSource)
"""Sources whose first document is not at hand at once."""
FIRST = 64
"""Documents that are looked at."""


def check_folder(folder: Path) -> None:
    """Refuse a folder into which nothing can be written; nothing is left there.

    Raises:
        InputError: names the folder and the reason.
    """
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise InputError(f"cannot write into {folder}: {there} is a file; choose another folder")
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise InputError(f"cannot write into {folder}: {error.strerror}; choose another folder") from None


def check_run(folder: Path, resume: bool) -> None:
    """Refuse a folder for a run that cannot be written, or that holds a run which is not to be resumed.

    Raises:
        InputError: names the folder.
    """
    check_folder(folder)
    if not resume and (folder / "config.json").exists():
        raise InputError(f"{folder} already holds a run: resume it (resume=True, --resume), or choose another folder")


def check_text(corpus: str) -> None:
    """Refuse a text source that is unknown, whose file or field is missing, or that holds no text.

    Raises:
        InputError: names the source, or the line of a file.
    """
    source = open_source(corpus)
    if isinstance(source, COSTLY):
        return
    documents = list(islice(source.read(), FIRST))
    if len(documents) < FIRST and not any(str(document.content).strip() for document in documents):
        raise InputError(f"{corpus} has no document with a token: give a source with text")


def check_trained_on(trained_on: Mapping[str, Any], model: HookedModel) -> None:
    """Refuse a dictionary of another model, as far as the shape of the model and, without parameters, its name tell.

    Args:
        trained_on: fingerprint of the model that the dictionary was trained on.

    Raises:
        InputError: names both models.
    """
    shape = {key: getattr(model, key) for key in SHAPE}
    for key, value in shape.items():
        if trained_on.get(key) is not None and trained_on[key] != value:
            raise InputError(
                f"the dictionary was trained on {trained_on.get('name')!r} ({key} {trained_on[key]}) and the model is"
                f" {model.name!r} ({key} {value}): load the model it was trained on{OVERRIDE}"
            )
    if "parameters" not in trained_on:
        refuse_differing(trained_on, {"name": model.name, **shape}, "dictionary", OVERRIDE)


def buffer_of(folder: Path) -> int | None:
    """Rows in the shuffle buffer of the run in a folder; None where there is none."""
    if not (folder / "config.json").is_file():
        return None
    saved = read_json(folder / "config.json", "run").get("fingerprints", {}).get("stream", {})
    return saved.get("buffer") if isinstance(saved, Mapping) else None
