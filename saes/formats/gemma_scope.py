"""Gemma Scope: JumpReLU dictionaries that do not subtract b_dec.

1   `params.npz`: W_enc [d, n], W_dec [n, d], b_enc, b_dec, threshold
2   `params.safetensors` and `config.json`: the same in small letters, and for transcoders with an affine connection
    `affine_skip_connection` [d, o] (y = ... + x @ affine)

Not in the files: embedding dictionaries read activations times sqrt(d), transcoders read the normalised MLP input.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ...lab.errors import InputError
from ...lab.storage import atomic_path, read_tensors, write_json, write_tensors
from ..dictionary import Provenance
from .format import Format
from .losses import Losses
from .portable import IMPORTED, Portable, centre, file_place, recast
from .table import Key, Raw, dtypes, put, take
from .untrusted import known_site, read_config, read_npz

FIRST_NAME, SECOND_NAME = "gemma-scope", "gemma-scope-2"
ARCHIVE, CONFIG, WEIGHTS = "params.npz", "config.json", "params.safetensors"

TABLE = {"W_enc": Key("W_enc", "dn"), "W_dec": Key("W_dec", "nd"), "b_enc": Key("b_enc", "n"),
         "b_dec": Key("b_dec", "d"), "threshold": Key("threshold", "n")}  # fmt: skip
SECOND_TABLE = {"w_enc": Key("W_enc", "dn"), "w_dec": Key("W_dec", "nd"), "b_enc": Key("b_enc", "n"),
                "b_dec": Key("b_dec", "d"), "threshold": Key("threshold", "n")}  # fmt: skip
ACROSS = SECOND_TABLE | {"w_dec": Key("W_dec", "no"), "b_dec": Key("b_dec", "o")}
AFFINE = {"affine_skip_connection": Key("W_skip", "do")}

_LAYER = re.compile(r"(?:model\.)?(?:language_model\.)?layers\.(\d+)(\.self_attn\.o_proj\.input|\.output)")
_SITES = {".output": "resid_post", ".self_attn.o_proj.input": "z"}


def load(path: Path) -> Raw:
    """Read the archive."""
    path = path / ARCHIVE if path.is_dir() else path
    return Raw(path, read_npz(path), {})


def parse(raw: Raw, losses: Losses) -> Portable:
    """A JumpReLU dictionary; a transcoder of equal widths looks the same in the file."""
    return _portable(raw, TABLE, losses, FIRST_NAME)


def _portable(raw: Raw, table: Mapping[str, Key], losses: Losses, name: str) -> Portable:
    kept = {"format": name, "config": raw.config, "dtypes": dtypes(raw)}
    model = {"name": raw.config["model_name"]} if raw.config.get("model_name") else {}
    reads, writes = (_site(raw.config.get(f"hf_hook_point_{end}")) for end in ("in", "out"))
    provenance = Provenance(model, {IMPORTED: kept})
    tensors = take(raw, table, losses)
    return Portable("jumprelu", tensors, {"centre_input": False}, provenance, file_place(reads, writes))


def _site(hook: object) -> str | None:
    """The site of a Hugging Face hook point: the output of a layer, or the input or output of a module."""
    if not isinstance(hook, str):
        return None
    if layer := _LAYER.fullmatch(hook):
        return f"{_SITES[layer[2]]}.{layer[1]}"
    return known_site(f"path:{hook.removesuffix('.output')}") if hook.endswith(".output") else known_site(hook)


def compose(portable: Portable, losses: Losses) -> Raw:
    """The files of a dictionary that JumpReLU can hold; a centred encoder is folded."""
    same = centre(recast(portable, ("jumprelu",), losses), False, losses)
    return Raw(Path(), put(same.tensors, TABLE, portable.kept(FIRST_NAME).get("dtypes")), {})


def store(raw: Raw, folder: Path) -> None:
    """Write the archive."""
    with atomic_path(folder / ARCHIVE) as temporary, open(temporary, "wb") as file:
        np.savez(file, allow_pickle=False, **{name: tensor.numpy() for name, tensor in raw.tensors.items()})


def load_second(path: Path) -> Raw:
    """Read both files."""
    config = read_config(path / CONFIG, "Gemma Scope 2 config")
    return Raw(path / WEIGHTS, read_tensors(path / WEIGHTS, "Gemma Scope 2 weight file"), config)


def parse_second(raw: Raw, losses: Losses) -> Portable:
    """A JumpReLU dictionary or transcoder."""
    if raw.config.get("architecture") != "jump_relu":
        raise InputError(
            f"{raw.path.parent / CONFIG}: architecture is {raw.config.get('architecture')!r}, expected 'jump_relu'"
        )
    if "w_dec" in raw.tensors and raw.tensors["w_dec"].dim() == 3:
        raise InputError(f"{raw.path} holds a cross-layer transcoder, which this version does not read")
    reads, writes = raw.config.get("hf_hook_point_in"), raw.config.get("hf_hook_point_out")
    affine = AFFINE if "affine_skip_connection" in raw.tensors else {}
    across = bool(affine) or (writes is not None and writes != reads)
    portable = _portable(raw, (ACROSS if across else SECOND_TABLE) | affine, losses, SECOND_NAME)
    return portable.as_transcoder() if across else portable


def compose_second(portable: Portable, losses: Losses) -> Raw:
    """The files of Gemma Scope 2: SAEs and transcoders; the config names architecture, model, width and sites."""
    kept = portable.kept(SECOND_NAME)
    same = centre(recast(portable, ("jumprelu",), losses, across=True), False, losses)
    place, affine = same.placed, "W_skip" in same.tensors
    config = {"architecture": "jump_relu", "model_name": same.provenance.model.get("name"), "width": same.n_latents,
              "affine_connection": affine}  # fmt: skip
    if same.across:
        names = [port.site and str(port.site) for port in place.ports]
        config |= {"hf_hook_point_in": names[0] or "input", "hf_hook_point_out": names[1] or "output"}
    table = (ACROSS if same.across else SECOND_TABLE) | (AFFINE if affine else {})
    return Raw(Path(), put(same.tensors, table, kept.get("dtypes")), kept.get("config", config))


def store_second(raw: Raw, folder: Path) -> None:
    """Write both files, the config last."""
    write_tensors(folder / WEIGHTS, raw.tensors)
    write_json(folder / CONFIG, raw.config)


def _recognise(path: Path) -> bool:
    return (path / ARCHIVE).is_file() or (path.is_file() and path.suffix == ".npz")


def _recognise_second(path: Path) -> bool:
    return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


FORMAT = Format(FIRST_NAME, _recognise, load, parse, (ARCHIVE,), compose, store)
SECOND = Format(
    SECOND_NAME, _recognise_second, load_second, parse_second, (CONFIG, WEIGHTS), compose_second, store_second
)
