"""dictionary_learning: a folder with `ae.pt` (a state dict) and `config.json`, whose `trainer.dict_class` decides.

The key sets of AutoEncoderTopK and BatchTopKSAE are the same, so a lone `ae.pt` of either is refused.
"""

from __future__ import annotations

import re
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...lab.errors import InputError, unknown
from ...lab.storage import atomic_path, write_json
from ..dictionary import Provenance
from .format import Format
from .losses import Losses
from .portable import IMPORTED, Portable, centre, file_place, recast
from .table import Key, Raw, dtypes, put, take
from .untrusted import known_site, read_config, read_pt

NAME, CONFIG, WEIGHTS = "dictionary-learning", "config.json", "ae.pt"


class Class(NamedTuple):
    """One class of the library."""

    architecture: str
    table: dict[str, Key]
    centred: bool = True
    counts: tuple[str, ...] = ()
    """Integer tensors of the state dict, which become config fields."""


LINEAR = {"encoder.weight": Key("W_enc", "nd"), "decoder.weight": Key("W_dec", "dn")}
BIASED = {**LINEAR, "encoder.bias": Key("b_enc", "n")}
PLAIN = {
    "W_enc": Key("W_enc", "dn"),
    "b_enc": Key("b_enc", "n"),
    "W_dec": Key("W_dec", "nd"),
    "b_dec": Key("b_dec", "d"),
}
CHOSEN = {**BIASED, "b_dec": Key("b_dec", "d"), "threshold": Key("threshold", "")}
GATED = {**LINEAR, "decoder_bias": Key("b_dec", "d"), "r_mag": Key("r_mag", "n"), "gate_bias": Key("b_enc", "n"),
         "mag_bias": Key("b_mag", "n")}  # fmt: skip

CLASSES = {
    "AutoEncoder": Class("relu", {**BIASED, "bias": Key("b_dec", "d")}),
    "AutoEncoderNew": Class("relu", {**BIASED, "decoder.bias": Key("b_dec", "d")}, centred=False),
    "GatedAutoEncoder": Class("gated", GATED),
    "JumpReluAutoEncoder": Class("jumprelu", {**PLAIN, "threshold": Key("threshold", "n")}, centred=False),
    "AutoEncoderTopK": Class("topk", CHOSEN, counts=("k",)),
    "BatchTopKSAE": Class("batchtopk", CHOSEN, counts=("k",)),
    "MatryoshkaBatchTopKSAE": Class(
        "matryoshka", {**PLAIN, "threshold": Key("threshold", "")}, counts=("k", "group_sizes")
    ),
}
"""Every class that holds weights, and what it is here."""

_SUBMODULE = re.compile(r"(resid_post|attn_out|mlp_out)_layer_(\d+)")


def load(path: Path) -> Raw:
    """Read the state dict, and the config where there is one."""
    weights = path / WEIGHTS if path.is_dir() else path
    folder = weights.parent if (weights.parent / CONFIG).is_file() else weights.parent.parent  # checkpoints/ae_N.pt
    config = read_config(folder / CONFIG, "dictionary_learning config") if (folder / CONFIG).is_file() else {}
    state = read_pt(weights)
    if "ae" in state and "step" in state:
        raise InputError(f"{weights} is a backup from the middle of a run, in scaled units: give the final {WEIGHTS}")
    if odd := sorted(name for name, value in state.items() if not isinstance(value, Tensor)):
        raise InputError(f"{weights} is not a state dict: {', '.join(map(str, odd))} hold no tensors")
    return Raw(weights, state, config)


def parse(raw: Raw, losses: Losses) -> Portable:
    """By class."""
    trainer = raw.config.get("trainer") or {}
    name = trainer.get("dict_class") or _class_by_keys(raw)
    if name not in CLASSES:
        raise unknown("dictionary_learning class", name, CLASSES)
    kind = CLASSES[name]
    config: dict[str, Any] = {} if kind.centred else {"centre_input": False}
    for count in kind.counts:
        if count not in raw.tensors or raw.tensors[count].is_floating_point():
            raise InputError(f"{raw.path} holds no whole-number {count}, which a {name} has")
        config[count] = raw.tensors[count].tolist()
    tensors = take(raw, kind.table, losses, ignored=kind.counts)
    kept: dict[str, Any] = {"format": NAME, "class": name, "config": raw.config, "dtypes": dtypes(raw)}
    if "group_sizes" in config:
        config["prefixes"] = tuple(accumulate(config.pop("group_sizes")))
    if kind.architecture == "topk":
        kept["threshold"] = float(tensors.pop("threshold"))  # in the file, unused by its forward
    model = {"name": trainer["lm_name"]} if trainer.get("lm_name") else {}
    return Portable(kind.architecture, tensors, config, Provenance(model, {IMPORTED: kept}),
                    file_place(_site(trainer)))  # fmt: skip


def _class_by_keys(raw: Raw) -> str:
    fits = [name for name, kind in CLASSES.items() if {*kind.table, *kind.counts} == raw.tensors.keys()]
    if len(fits) == 1:
        return fits[0]
    reason = f"it may be {' or '.join(fits)}" if fits else f"its tensors are {', '.join(raw.tensors) or 'none'}"
    raise InputError(f"{raw.path} does not tell its class ({reason}): put the {CONFIG} of its run beside it")


def _site(trainer: dict[str, Any]) -> str | None:
    match = _SUBMODULE.fullmatch(str(trainer.get("submodule_name")))
    return known_site(f"{match[1]}.{match[2]}") if match else None


def compose(portable: Portable, losses: Losses) -> Raw:
    """Every architecture but AbsTopK and GroupMax."""
    kept = portable.kept(NAME)
    same = recast(portable, {kind.architecture for kind in CLASSES.values()}, losses)
    if same.architecture == "matryoshka" and same.fields.get("base", "batchtopk") != "batchtopk":
        same = recast(same, ("topk",), losses)
    name = kept.get("class")
    if name is None or CLASSES[name].architecture != same.architecture:
        name, kept = _class_of(same), {}
    kind = CLASSES[name]
    same = centre(same, kind.centred, losses)
    tensors = dict(same.tensors)
    if same.architecture == "topk":
        tensors["threshold"] = torch.tensor(kept.get("threshold", -1.0))
    theirs = put(tensors, kind.table, kept.get("dtypes"))
    if "k" in kind.counts:
        theirs["k"] = torch.tensor(same.fields["k"], dtype=torch.int)
    if "group_sizes" in kind.counts:
        theirs["group_sizes"] = torch.tensor([high - low for low, high in pairwise((0, *same.fields["prefixes"]))])
    return Raw(Path(), theirs, kept.get("config") or _config(same, name))


def _class_of(portable: Portable) -> str:
    fits = [name for name, kind in CLASSES.items() if kind.architecture == portable.architecture]
    return next((name for name in fits if CLASSES[name].centred == portable.centred), fits[0])


def _config(portable: Portable, name: str) -> dict[str, Any]:
    read = portable.placed.sources[0].site
    site, _, layer = ("" if read is None else str(read)).rpartition(".")
    trainer = {
        "dict_class": name,
        "activation_dim": portable.d_in,
        "dict_size": portable.n_latents,
        "k": portable.fields.get("k"),
        "lm_name": portable.provenance.model.get("name"),
        "layer": int(layer) if layer.isdecimal() else None,
        "submodule_name": f"{site}_layer_{layer}" if layer.isdecimal() else None,
    }
    return {"trainer": trainer, "buffer": {"d_submodule": portable.d_in}}


def store(raw: Raw, folder: Path) -> None:
    """Write both files, the config last."""
    with atomic_path(folder / WEIGHTS) as temporary:
        torch.save(raw.tensors, temporary)
    write_json(folder / CONFIG, raw.config)


def _recognise(path: Path) -> bool:
    return (path / WEIGHTS).is_file() or (path.is_file() and path.suffix == ".pt" and path.stem.startswith("ae"))


FORMAT = Format(NAME, _recognise, load, parse, (CONFIG, WEIGHTS), compose, store)
