"""Dictionaries released under a name in SAELens' registry: `sae-lens:RELEASE/ID`.

    monosem.saes.load("sae-lens:gemma-scope-2b-pt-res-canonical/layer_12/width_16k/canonical")

The registry is a file of the installed sae_lens, which itself is not imported. It tells the repository and the path of
a dictionary and how to read it; what only the registry knows (factors of activations, the model) is added here.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from ...lab.errors import InputError, unknown

SCHEME = "sae-lens:"


class Released(NamedTuple):
    """One entry of the registry."""

    name: str
    """RELEASE/ID."""
    repo: str
    path: str
    """In the repository: a folder, or a file."""
    model: str
    reader: str
    """SAELens' name for the way to read it."""
    factor: float | None
    """The factor by which activations were multiplied in training, where the registry says."""
    overrides: dict[str, Any]
    """Config values that are other than in the file."""

    def __str__(self) -> str:
        return SCHEME + self.name


@cache
def registry() -> dict[str, Any]:
    """Releases by name, as in SAELens' file.

    Raises:
        InputError: sae_lens is not installed.
    """
    spec = find_spec("sae_lens")
    if spec is None or spec.origin is None:
        raise InputError("names of releases are SAELens': pip install 'monosem[lens]', or give hf:ORG/REPO/FOLDER")
    import yaml

    with open(Path(spec.origin).with_name("pretrained_saes.yaml")) as file:
        return yaml.load(file, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def resolve(name: str) -> Released:
    """The registry's entry for `sae-lens:RELEASE/ID`.

    Raises:
        InputError: no such release or id (the nearest are named), or sae_lens is not installed.
    """
    release, _, name_in_release = name.removeprefix(SCHEME).partition("/")
    if release not in registry():
        raise unknown("SAELens release", release, registry())
    said = registry()[release]
    entries = {str(entry["id"]): entry for entry in said["saes"]}
    if name_in_release not in entries:
        raise unknown(f"dictionary of {release}", name_in_release, entries)
    entry = entries[name_in_release]
    return Released(
        f"{release}/{name_in_release}",
        said["repo_id"],
        str(entry["path"]),
        said["model"],
        said.get("conversion_func") or "sae_lens",
        entry.get("norm_scaling_factor"),
        said.get("config_overrides") or {},
    )
