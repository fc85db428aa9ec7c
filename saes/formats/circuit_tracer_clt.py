"""circuit-tracer's cross-layer transcoders: two safetensors files a layer, `W_enc_N` and `W_dec_N`.

W_enc_N holds tensors W_enc_N [n, d], b_enc_N, b_dec_N (of output N), threshold_N [n] for a JumpReLU (else a relu), and
W_skip_N [d, o]; W_dec_N holds W_dec_N [n, layers - N, o], the outputs from N on. Nothing is centred.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from ...lab.errors import InputError
from ...lab.storage import read_tensors, write_tensors
from ..dictionary import Provenance
from .format import Format
from .layered import Layered
from .losses import Losses
from .portable import IMPORTED, Portable, recast
from .table import Key, Raw, dtypes, put, take

NAME = "circuit-tracer-clt"
HELD = ("relu", "jumprelu")

_FILE = re.compile(r"W_(enc|dec)_(\d+)\.safetensors")


def load(path: Path) -> Raw:
    """Read the files of all layers.

    Raises:
        InputError: there are none, or one of a layer is missing.
    """
    names = {entry.name for entry in path.iterdir() if _FILE.fullmatch(entry.name)} if path.is_dir() else set()
    if not names:
        raise InputError(f"{path} is no folder with W_enc_0.safetensors, W_dec_0.safetensors and so on")
    layers = max(sum(name.startswith(f"W_{side}_") for name in names) for side in ("enc", "dec"))
    expected = [_file(side, layer) for layer in range(layers) for side in ("enc", "dec")]
    if missing := [name for name in expected if name not in names]:
        raise InputError(f"{path} holds a cross-layer transcoder of {layers} layers and lacks {', '.join(missing)}")
    tensors: dict[str, Tensor] = {}
    for name in expected:
        own = read_tensors(path / name, "safetensors file of weights")
        layer = name.removesuffix(".safetensors").rsplit("_", 1)[-1]
        if others := [key for key in own if not key.endswith(f"_{layer}")]:
            raise InputError(f"{path / name} holds {', '.join(others)}, which is not of layer {layer}")
        tensors |= own
    return Raw(path, tensors, {"layers": layers})


def _file(side: str, layer: int) -> str:
    return f"W_{side}_{layer}.safetensors"


def _table(layer: int, jump: bool, skip: bool) -> dict[str, Key]:
    """w is the width of all outputs that the layer reaches."""
    kinds = {"W_enc": "nd", "b_enc": "n", "b_dec": "o", "W_dec": "nw"}
    kinds |= ({"threshold": "n"} if jump else {}) | ({"W_skip": "do"} if skip else {})
    return {f"{name}_{layer}": Key(name, axes) for name, axes in kinds.items()}


def parse(raw: Raw, losses: Losses) -> Layered:
    """A transcoder for each layer; the biases of all outputs go to the first one."""
    layers, jump, skip = raw.config["layers"], "threshold_0" in raw.tensors, "W_skip_0" in raw.tensors
    parts = [_layer(raw, layer, layers, jump, skip, losses) for layer in range(layers)]
    bias = torch.cat([part.pop("b_dec") for part in parts])
    skips = {"W_skip": torch.stack([part.pop("W_skip") for part in parts])} if skip else {}
    for number, part in enumerate(parts):
        part["b_dec"] = torch.zeros(part["W_dec"].shape[1]) if number else bias
    architecture = "jumprelu" if jump else "relu"
    kept = {"format": NAME, "dtypes": dtypes(raw)}
    transcoders = tuple(Portable(architecture, part).as_transcoder() for part in parts)
    return Layered("clt", skips, {}, Provenance(training={IMPORTED: kept}), layers=transcoders)


def _layer(raw: Raw, layer: int, layers: int, jump: bool, skip: bool, losses: Losses) -> dict[str, Tensor]:
    """One layer's tensors under our names, decoder rows for all outputs side by side."""
    name, path = f"W_dec_{layer}", raw.path / _file("enc", layer)
    own = {key: tensor for key, tensor in raw.tensors.items() if key.rsplit("_", 1)[-1] == str(layer)}
    if name not in own:
        raise InputError(f"{raw.path / _file('dec', layer)} holds no {name}")
    shape = tuple(own[name].shape)
    if len(shape) != 3 or shape[1] != layers - layer:
        raise InputError(
            f"{raw.path / _file('dec', layer)}: {name} has shape {shape}, expected (n, {layers - layer}, d): one row"
            f" for each of layers {layer} to {layers - 1}"
        )
    own[name] = own[name].flatten(1)
    sizes = {"o": shape[2], "w": own[name].shape[1]}
    return take(Raw(path, own, {}), _table(layer, jump, skip), losses, sizes=sizes)


def compose(portable: Portable, losses: Losses) -> Raw:
    """Cross-layer transcoders whose layers are, or can be written as, relu or JumpReLU ones."""
    if not isinstance(portable, Layered):
        raise InputError(f"{losses.subject}: it holds cross-layer transcoders, and this is {portable.kind}")
    layers, skip = len(portable.layers), portable.tensors.get("W_skip")
    kept, tensors = portable.kept(NAME).get("dtypes"), {}
    biases = portable.layers[0].tensors["b_dec"].chunk(layers)
    for number, layer in enumerate(portable.layers):
        same = recast(layer, HELD, losses, across=True)
        ours = {**same.tensors, "b_dec": biases[number]} | ({} if skip is None else {"W_skip": skip[number]})
        theirs = put(ours, _table(number, same.architecture == "jumprelu", skip is not None), kept)
        theirs[f"W_dec_{number}"] = theirs[f"W_dec_{number}"].unflatten(1, (layers - number, -1))
        tensors |= theirs
    return Raw(Path(), tensors, {"layers": layers})


def store(raw: Raw, folder: Path) -> None:
    """Write two files a layer."""
    for layer in range(raw.config["layers"]):
        own = {name: tensor for name, tensor in raw.tensors.items() if name.rsplit("_", 1)[-1] == str(layer)}
        decoder = f"W_dec_{layer}"
        write_tensors(folder / _file("dec", layer), {decoder: own.pop(decoder)})
        write_tensors(folder / _file("enc", layer), own)


def _recognise(path: Path) -> bool:
    return path.is_dir() and any(_FILE.fullmatch(entry.name) for entry in path.iterdir())


FORMAT = Format(NAME, _recognise, load, parse, (), compose, store)
