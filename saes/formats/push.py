"""Dictionaries written to the Hugging Face hub."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ..dictionary import Dictionary
from .convert import write
from .hub import OURS, SCHEME, Reference, one_sentence


def push(
    dictionary: Dictionary,
    repo: str,
    *,
    folder: str = "",
    to: str = OURS,
    private: bool | None = None,
    lossy: bool = False,
) -> str:
    """Write a dictionary to the hub, in a repository that is made if there is none.

    Args:
        repo: "ORG/NAME".
        folder: in the repository; its root by default. One folder holds one dictionary.
        to: "monosem", or a name in `formats.FORMATS`; "sae-lens" is what SAELens and Neuronpedia load.
        private: whether a new repository is; the organisation's default by default.
        lossy: go on where the other format cannot hold everything.

    Returns:
        The address of the folder.

    Raises:
        InputError: as `formats.write`, or: no network, no login, no permission, no such organisation.
    """
    from huggingface_hub import HfApi

    place = Reference.parse(f"{SCHEME}{repo}" + (f"/{folder.strip('/')}" if folder else ""))
    with tempfile.TemporaryDirectory() as space:
        if to == OURS:
            dictionary.save(Path(space) / "it")
        else:
            write(dictionary, Path(space) / "it", to, lossy)
        with one_sentence(place, "cannot be written"):
            api = HfApi()
            api.create_repo(place.repo, private=private, exist_ok=True)
            message = f"{dictionary!r} in {to} format"
            api.upload_folder(repo_id=place.repo, folder_path=Path(space) / "it", path_in_repo=place.path or None,
                              commit_message=message)  # fmt: skip
    return f"{api.endpoint}/{place.repo}" + (f"/tree/main/{place.path}" if place.path else "")
