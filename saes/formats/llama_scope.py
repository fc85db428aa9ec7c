"""Llama Scope and later OpenMOSS dictionaries, read only: JumpReLU on inputs scaled to a mean norm of sqrt(d).

1    `hyperparams.json`, `checkpoints/final.safetensors`: encoder.weight [n, d], decoder.weight [d, n], one threshold
R1   `config.json`, `sae_weights.safetensors`: the same with log_jumprelu_threshold [n]
2    the same two files with W_E [d, n], b_E, W_D [n, d], b_D, activation_function.log_jumprelu_threshold [n]

With s = sqrt(d) / (mean norm of the input), biases are divided by s, which gives the same outputs for activations as
they are; W_enc and W_dec stay. The one threshold of version 1 is in activation units already.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from ...lab.errors import InputError
from ...lab.storage import read_tensors
from ..dictionary import Provenance
from .format import Format
from .losses import Losses
from .portable import IMPORTED, Portable, file_place
from .table import Key, Raw, dtypes, take
from .untrusted import known_site, number, read_config

NAME = "llama-scope"
HYPERPARAMS, CHECKPOINT = "hyperparams.json", "checkpoints/final.safetensors"
CONFIG, WEIGHTS = "config.json", "sae_weights.safetensors"
NORM = "dataset_average_activation_norm"

LINEAR = {"encoder.weight": Key("W_enc", "nd"), "encoder.bias": Key("b_enc", "n"),
          "decoder.weight": Key("W_dec", "dn"), "decoder.bias": Key("b_dec", "d")}  # fmt: skip
TABLES = (
    {**LINEAR, "log_jumprelu_threshold": Key("threshold", "n")},
    {"W_E": Key("W_enc", "dn"), "b_E": Key("b_enc", "n"), "W_D": Key("W_dec", "nd"), "b_D": Key("b_dec", "d"),
     "activation_function.log_jumprelu_threshold": Key("threshold", "n")},
)  # fmt: skip


def load(path: Path) -> Raw:
    """Read the config and the weights."""
    config, weights = (HYPERPARAMS, CHECKPOINT) if (path / HYPERPARAMS).is_file() else (CONFIG, WEIGHTS)
    settings = read_config(path / config, "Llama Scope config")
    return Raw(path / weights, read_tensors(path / weights, "Llama Scope weight file"), settings)


def parse(raw: Raw, losses: Losses) -> Portable:
    """A JumpReLU dictionary for activations as they are."""
    config = raw.config
    if (activation := str(config.get("act_fn", "jumprelu")).lower()) != "jumprelu":
        raise InputError(f"{raw.path}: act_fn is {activation!r}, expected 'jumprelu'")
    fields = {"centre_input": bool(config.get("apply_decoder_bias_to_pre_encoder", False))}
    scale = _scale(raw, losses)
    table = next((table for table in TABLES if table.keys() & raw.tensors.keys() - LINEAR.keys()), None)
    if table:
        tensors = take(raw, table, losses, ignored=[name for name in raw.tensors if name.startswith(NORM)])
        tensors["threshold"] = (tensors["threshold"].double().exp() / scale).float()
    else:
        threshold = number(raw.path, config, "jump_relu_threshold")
        tensors = take(raw, LINEAR, losses)
        tensors["threshold"] = torch.full((len(tensors["b_enc"]),), float(threshold))
    if config.get("sparsity_include_decoder_norm"):
        tensors["threshold"] = (tensors["threshold"].double() / tensors["W_dec"].double().norm(dim=-1)).float()
    tensors |= {name: (tensors[name].double() / scale).float() for name in ("b_enc", "b_dec")}
    kept = {"format": NAME, "config": config, "dtypes": dtypes(raw)}
    place = file_place(known_site(config.get("hook_point_in")))
    return Portable("jumprelu", tensors, fields, Provenance(training={IMPORTED: kept}), place)


def _scale(raw: Raw, losses: Losses) -> float:
    """sqrt(d) over the mean norm of the input; 1 where norms are folded in."""
    if raw.config.get("norm_activation", "dataset-wise") in ("inference", "none"):
        return 1.0
    norms: dict[str, Any] = dict(raw.config.get(NORM) or {})
    for name, tensor in raw.tensors.items():
        if name.startswith(f"{NORM}."):
            norms[name.removeprefix(f"{NORM}.")] = float(tensor)
    if not norms:
        losses.lose("the mean norm of the activations is not in it: the dictionary expects rows scaled to norm sqrt(d)")
        return 1.0
    if len(set(norms.values())) > 1:
        raise InputError(f"{raw.path}: input and output norms differ ({norms}): a transcoder, which is not read here")
    mean = next(iter(norms.values()))
    if not mean > 0:
        raise InputError(f"{raw.path}: {NORM} is {mean!r}, expected a number above 0")
    return math.sqrt(int(number(raw.path, raw.config, "d_model"))) / mean


def _recognise(path: Path) -> bool:
    return (path / HYPERPARAMS).is_file() or ((path / CONFIG).is_file() and (path / WEIGHTS).is_file())


FORMAT = Format(NAME, _recognise, load, parse, (HYPERPARAMS, CHECKPOINT, CONFIG, WEIGHTS))
