"""Reading, recognising and writing dictionaries of other libraries.

A new format is one module with a `FORMAT`, and one line here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...lab.errors import InputError, unknown
from ...lab.storage import atomic_path
from ..dictionary import DESCRIPTION, WEIGHTS, Dictionary
from . import (
    circuit_tracer,
    circuit_tracer_clt,
    dictionary_learning,
    gemma_scope,
    hub,
    llama_scope,
    openai,
    release_readers,
    sae_lens,
    sparsify,
)
from .format import Format
from .forward import check
from .layered import parts_of
from .losses import Losses
from .portable import IMPORTED
from .reading import converted
from .released import SCHEME as RELEASED

FORMATS: dict[str, Format] = {
    form.name: form
    for form in (
        sae_lens.FORMAT,
        sparsify.FORMAT,
        dictionary_learning.FORMAT,
        gemma_scope.FORMAT,
        gemma_scope.SECOND,
        llama_scope.FORMAT,
        circuit_tracer.FORMAT,
        circuit_tracer_clt.FORMAT,
        openai.FORMAT,
    )
}
"""Every format by name, in the order in which `recognise` asks them."""

FILES = tuple(sorted({DESCRIPTION, WEIGHTS}.union(*(form.files for form in FORMATS.values()))))
"""Names of the files that a folder of a dictionary may hold, ours and theirs."""


@dataclass(frozen=True)
class Conversion:
    """A finished conversion: the files written, and the parts that did not come along."""

    format: str
    path: Path
    lost: tuple[str, ...]
    """One clause for each loss; empty unless losses were asked for."""
    rounded: tuple[str, ...]
    """Steps that are exact but for rounding to fp32."""


def recognise(path: Path | str) -> Format | None:
    """The format whose files lie at `path` (a folder or a file), judged by their names; None if none does."""
    return next((form for form in FORMATS.values() if form.recognise(Path(path))), None)


def read(path: Path | str, format: str | None = None, lossy: bool = False) -> Dictionary:
    """Read a dictionary of another library.

    Args:
        path: a folder or a file, or a place on the hub or a released name (see the module).
        format: a name in `FORMATS`; by default it is recognised.
        lossy: go on where something would be lost; what was lost is then in `provenance.training["imported"]`.

    Raises:
        InputError: unknown format, damaged or wrong files, wrong shapes, or a loss that was not asked for.
    """
    if format is not None and format not in FORMATS:
        raise unknown("format", format, FORMATS)
    losses = Losses(str(path), lossy)
    if str(path).startswith(RELEASED):
        dictionary = release_readers.read(str(path), losses)
    else:
        dictionary = _read(located(path), format, losses)
    if losses.lost:
        dictionary.provenance.training.setdefault(IMPORTED, {})["lost"] = losses.lost
    return dictionary


def located(path: Path | str) -> Path:
    """The local path of a folder or a file, fetched where `path` is a place on the hub.

    Of a file that needs the others of its folder, the folder.

    Raises:
        InputError: as `hub.fetch`.
    """
    local = hub.fetch(hub.Reference.parse(str(path)), FILES) if str(path).startswith(hub.SCHEME) else Path(path)
    needs_others = local.name in FILES and local.suffix in (".json", ".safetensors")
    return local.parent if needs_others and local.is_file() else local


def _read(path: Path, name: str | None, losses: Losses) -> Dictionary:
    form = recognise(path) if name is None else FORMATS[name]
    if form is None:
        raise InputError(f"{path} holds no dictionary: neither dictionary.json nor the files of {', '.join(FORMATS)}")
    return converted(form.load(path), form.parse, losses)


def require_new(folder: Path) -> None:
    """Refuse a folder that holds something.

    Raises:
        InputError: names it.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise InputError(f"{folder} is not empty: give a new folder")


def write(dictionary: Dictionary, folder: Path | str, to: str, lossy: bool = False) -> Conversion:
    """Write a dictionary in another library's format.

    Args:
        folder: a new or empty folder; it appears whole or not at all.
        to: a name in `FORMATS`.
        lossy: go on where something is lost.

    Raises:
        InputError: unknown format, one that is only read or cannot hold the dictionary, a loss that was not asked for,
            or a folder that holds something.
    """
    if to not in FORMATS:
        raise unknown("format", to, FORMATS)
    form, folder = FORMATS[to], Path(folder)
    if form.compose is None or form.store is None:
        writable = ", ".join(name for name, other in FORMATS.items() if other.compose)
        raise InputError(f"{to} files are only read here; these are written: {writable}")
    require_new(folder)
    losses = Losses(f"writing as {to}", lossy)
    raw = form.compose(parts_of(dictionary), losses)
    if not losses.lost:
        check(form.parse(raw, Losses(f"writing as {to}", True)), dictionary, f"writing as {to}")
    with atomic_path(folder) as temporary:
        temporary.mkdir(parents=True)
        form.store(raw, temporary)
    return Conversion(to, folder, tuple(losses.lost), tuple(losses.rounded))
