"""circuit-tracer: one safetensors file a layer, `layer_N.safetensors`.

W_enc [n, d], b_enc, W_dec [n, o], b_dec; a scalar k (TopK) or activation_function.threshold (JumpReLU), else a relu;
W_skip [o, d]. Nothing is centred. W_enc lies the other way round in SAELens files with the same keys: a square file
is therefore only read under its own name.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from ...lab.errors import InputError
from ...lab.storage import read_tensors, write_tensors
from ..dictionary import Provenance
from .format import Format
from .losses import Losses
from .portable import IMPORTED, Portable, recast
from .table import Key, Raw, dtypes, put, take

NAME = "circuit-tracer"
TABLE = {
    "W_enc": Key("W_enc", "nd"),
    "b_enc": Key("b_enc", "n"),
    "W_dec": Key("W_dec", "no"),
    "b_dec": Key("b_dec", "o"),
}
HELD = ("relu", "jumprelu", "topk")
THRESHOLD, SKIP = "activation_function.threshold", "W_skip"

_LAYER = re.compile(r"layer_(\d+)\.safetensors")


def load(path: Path) -> Raw:
    """Read the one layer's file."""
    if path.is_dir():
        files = sorted(entry for entry in path.iterdir() if _LAYER.fullmatch(entry.name))
        if len(files) != 1:
            names = ", ".join(file.name for file in files) or "none"
            raise InputError(f"{path} holds the transcoders of several layers ({names}): give one file")
        path = files[0]
    tensors = read_tensors(path, "safetensors file of weights")
    if not TABLE.keys() <= tensors.keys():
        held = ", ".join(sorted(tensors)) or "nothing"
        raise InputError(
            f"{path} is not circuit-tracer's, which holds {', '.join(TABLE)} (this has {held}): of a dictionary with a"
            " config beside its weights give the folder"
        )
    return Raw(path, tensors, {})


def parse(raw: Raw, losses: Losses) -> Portable:
    """A transcoder, with a skip matrix where there is one."""
    architecture, fields = "relu", {}
    table = dict(TABLE)
    if THRESHOLD in raw.tensors:
        architecture = "jumprelu"
        table[THRESHOLD] = Key("threshold", "n" if raw.tensors[THRESHOLD].numel() > 1 else "")
    elif "k" in raw.tensors:
        architecture, fields = "topk", {"k": int(raw.tensors["k"])}
    if SKIP in raw.tensors:
        table[SKIP] = Key("W_skip", "od")
    layer = _LAYER.fullmatch(raw.path.name)
    tensors = take(_flat(raw), table, losses, ignored=("k",))
    if layer is None and raw.path.name and tensors["W_enc"].shape[0] == tensors["W_enc"].shape[1]:
        raise InputError(
            f"{raw.path}: W_enc is square and the file is not named layer_N.safetensors, so its orientation is open:"
            " rename it if it is circuit-tracer's"
        )
    if "threshold" in tensors:
        tensors["threshold"] = tensors["threshold"].expand(len(tensors["b_enc"])).contiguous()
    kept = {"format": NAME, "layer": layer and int(layer[1]), "dtypes": dtypes(raw)}
    return Portable(architecture, tensors, fields, Provenance(training={IMPORTED: kept})).as_transcoder()


def _flat(raw: Raw) -> Raw:
    """Thresholds as a vector or a scalar, whatever axes of one they came with."""
    if THRESHOLD not in raw.tensors:
        return raw
    return raw._replace(tensors={**raw.tensors, THRESHOLD: raw.tensors[THRESHOLD].squeeze()})


def compose(portable: Portable, losses: Losses) -> Raw:
    """Transcoders."""
    if not portable.across:
        raise InputError(f"{losses.subject}: it holds transcoders, and this is {portable.architecture}")
    same = recast(portable, HELD, losses, across=True)
    table = TABLE | ({SKIP: Key("W_skip", "od")} if "W_skip" in same.tensors else {})
    if same.architecture == "jumprelu":
        table |= {THRESHOLD: Key("threshold", "n")}
    tensors = put(same.tensors, table, portable.kept(NAME).get("dtypes"))
    if same.architecture == "topk":
        tensors["k"] = torch.tensor(same.fields["k"])
    return Raw(Path(), tensors, {"layer": portable.kept(NAME).get("layer") or 0})


def store(raw: Raw, folder: Path) -> None:
    """Write the layer's file."""
    write_tensors(folder / f"layer_{raw.config['layer']}.safetensors", raw.tensors)


def _recognise(path: Path) -> bool:
    if path.is_dir():
        return any(_LAYER.fullmatch(entry.name) for entry in path.iterdir())
    return path.is_file() and path.suffix == ".safetensors"


FORMAT = Format(NAME, _recognise, load, parse, (), compose, store)
