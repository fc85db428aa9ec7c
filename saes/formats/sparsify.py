"""EleutherAI's sparsify: a folder a hookpoint (`layers.10`, `layers.10.mlp`) with `cfg.json` and `sae.safetensors`.

TopK and GroupMax. A plain SAE subtracts b_dec before encoding, a transcoder does not. An SAE reads the output of the
module that the hookpoint names; a transcoder predicts that output from the module's input.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ...lab.errors import InputError, unknown
from ...lab.storage import read_tensors, write_json, write_tensors
from ..dictionary import Provenance
from .format import Format
from .losses import Losses
from .portable import IMPORTED, Portable, centre, file_place, recast
from .table import Key, Raw, dtypes, put, take
from .untrusted import number, read_config

NAME, CONFIG, WEIGHTS = "sparsify", "cfg.json", "sae.safetensors"

TABLE = {"encoder.weight": Key("W_enc", "nd"), "encoder.bias": Key("b_enc", "n"), "W_dec": Key("W_dec", "nd"),
         "b_dec": Key("b_dec", "d")}  # fmt: skip
SKIP = {"W_skip": Key("W_skip", "dd")}
ACTIVATIONS = ("topk", "groupmax")
OLDER = {"activation": "topk", "transcode": False}
"""What is meant where a config of an older version leaves it out."""

_HOOKPOINT = re.compile(r"(?:layers|h)\.(\d+)(\.mlp|\.attn|\.self_attn)?")
_SITES = {None: "resid_post", ".mlp": "mlp_out", ".attn": "attn_out", ".self_attn": "attn_out"}
_INPUTS = {"resid_post": "resid_pre", "mlp_out": "mlp_in"}
"""Input of the module whose output a site is; the input of attention is no site."""


def load(path: Path) -> Raw:
    """Read both files."""
    config = read_config(path / CONFIG, "sparsify config")
    return Raw(path / WEIGHTS, read_tensors(path / WEIGHTS, "sparsify weight file"), config)


def parse(raw: Raw, losses: Losses) -> Portable:
    """An SAE, or a transcoder where the config says `transcode` or there is a skip matrix."""
    config, where = raw.config, raw.path.parent / CONFIG
    activation = config.get("activation", OLDER["activation"])
    if activation not in ACTIVATIONS:
        raise unknown("sparsify activation", activation, ACTIVATIONS)
    if config.get("signed"):
        raise InputError(f"{where}: signed is set, and no dictionary here keeps the k largest codes without a relu")
    d = int(number(where, config, "d_in"))
    n = config.get("num_latents") or d * int(number(where, config, "expansion_factor"))
    skip = SKIP if config.get("skip_connection") else {}
    tensors = take(raw, TABLE | skip, losses, sizes={"d": d, "n": n})
    kept = {"format": NAME, "config": config, "dtypes": dtypes(raw)}
    fields, provenance = {"k": int(number(where, config, "k"))}, Provenance(training={IMPORTED: kept})
    across = bool(config.get("transcode") or skip)
    portable = Portable(activation, tensors, fields, provenance, file_place(*_sites(raw.path.parent, across)))
    if config.get("transcode"):
        return portable.as_transcoder()
    return centre(portable, False, losses).as_transcoder() if skip else portable


def _sites(folder: Path, across: bool) -> tuple[str | None, str | None]:
    """The sites that a dictionary in this folder reads and, as a transcoder, predicts; None where they are unknown."""
    hookpoints = [match for part in folder.parts if (match := _HOOKPOINT.fullmatch(part))]
    if not hookpoints:
        return None, None
    layer, module = hookpoints[-1].groups()
    output = _SITES[module]
    if not across:
        return f"{output}.{layer}", None
    read = _INPUTS.get(output)
    return None if read is None else f"{read}.{layer}", f"{output}.{layer}"


def compose(portable: Portable, losses: Losses) -> Raw:
    """TopK and GroupMax, and transcoders of equal widths."""
    kept = portable.kept(NAME)
    same = recast(portable, ACTIVATIONS, losses, across=True)
    if same.across and same.fields["d_out"] != same.d_in:
        widths = f"from width {same.d_in} to {same.fields['d_out']}"
        raise InputError(f"{losses.subject}: transcoders there have one width, and this leads {widths}")
    if not same.across:
        same = centre(same, True, losses)
    config = {
        "activation": same.architecture,
        "expansion_factor": max(1, same.n_latents // same.d_in),
        "normalize_decoder": True,
        "num_latents": same.n_latents,
        "k": same.fields["k"],
        "multi_topk": False,
        "skip_connection": "W_skip" in same.tensors,
        "transcode": same.across,
        "d_in": same.d_in,
    }
    table = TABLE | (SKIP if "W_skip" in same.tensors else {})
    theirs = kept.get("config", config)
    changed = {name: config[name] for name in ("activation", "k", "transcode") if _differ(name, theirs, config)}
    return Raw(Path(), put(same.tensors, table, kept.get("dtypes")), theirs | changed)


def _differ(name: str, theirs: dict[str, Any], ours: dict[str, Any]) -> bool:
    return theirs.get(name, OLDER.get(name)) != ours[name]


def store(raw: Raw, folder: Path) -> None:
    """Write both files, the config last."""
    write_tensors(folder / WEIGHTS, raw.tensors)
    write_json(folder / CONFIG, raw.config)


def _recognise(path: Path) -> bool:
    return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


FORMAT = Format(NAME, _recognise, load, parse, (CONFIG, WEIGHTS), compose, store)
