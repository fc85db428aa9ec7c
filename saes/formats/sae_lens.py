"""SAELens v6: a folder with `cfg.json` and `sae_weights.safetensors`, as on the hub and in Neuronpedia.

Older configs (before 6.0) are read too. `metadata.monosem`, which SAELens keeps and ignores, says what a dictionary
of ours was before it was written, so that a BatchTopK (a jumprelu there) comes back as one.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch

from ...lab.errors import InputError, unknown
from ...lab.models.sites import PATH, Site
from ...lab.storage import read_tensors, write_json, write_tensors
from ..dictionary import Provenance
from ..place import Place
from ..place_files import OF_SITES, place_json, read_origin
from . import sae_lens_pursuit
from .format import Format
from .losses import Losses
from .portable import IMPORTED, Portable, file_place, recast, unit_decoder
from .table import Key, Raw, dtypes, put, take
from .untrusted import known_site, number, read_config

log = logging.getLogger(__name__)

NAME, CONFIG, WEIGHTS = "sae-lens", "cfg.json", "sae_weights.safetensors"
VERSION = "6.54.12"
"""Written as `metadata.sae_lens_version`; without one SAELens drops the metadata. Tests run against it."""

DECODER = {"W_dec": Key("W_dec", "nd"), "b_dec": Key("b_dec", "d")}
PLAIN = {"W_enc": Key("W_enc", "dn"), "b_enc": Key("b_enc", "n"), **DECODER}
THRESHOLDS = {**PLAIN, "threshold": Key("threshold", "n")}
GATED = {"W_enc": Key("W_enc", "dn"), "b_gate": Key("b_enc", "n"), "b_mag": Key("b_mag", "n"),
         "r_mag": Key("r_mag", "n"), **DECODER}  # fmt: skip
CALIBRATED = {**PLAIN, "topk_threshold": Key("threshold", "")}
ACROSS = {**PLAIN, "W_dec": Key("W_dec", "no"), "b_dec": Key("b_dec", "o")}
ACROSS_THRESHOLDS = {**ACROSS, "threshold": Key("threshold", "n")}
SKIP = {"W_skip": Key("W_skip", "od")}

ARCHITECTURES: dict[str, tuple[str, Mapping[str, Key]]] = {
    "standard": ("relu", PLAIN),
    "topk": ("topk", PLAIN),
    "abstopk": ("abstopk", PLAIN),
    "jumprelu": ("jumprelu", THRESHOLDS),
    "gated": ("gated", GATED),
    "matching_pursuit": ("mp", DECODER),
    "batchtopk": ("batchtopk", CALIBRATED),
    "matryoshka_batchtopk": ("matryoshka", CALIBRATED),
    "transcoder": ("relu", ACROSS),
    "skip_transcoder": ("relu", ACROSS | SKIP),
    "jumprelu_transcoder": ("jumprelu", ACROSS_THRESHOLDS),
    "jumprelu_skip_transcoder": ("jumprelu", ACROSS_THRESHOLDS | SKIP),
}
"""Their architecture to ours, and its tensors. The batchtopk ones are training checkpoints."""

WRITTEN = {"relu": "standard", "topk": "topk", "abstopk": "abstopk", "jumprelu": "jumprelu", "gated": "gated",
           "mp": "matching_pursuit"}  # fmt: skip
WRITTEN_ACROSS = {"relu": "transcoder", "jumprelu": "jumprelu_transcoder"}
WITH_K = ("topk", "abstopk", "batchtopk", "matryoshka_batchtopk")

NORMALISED = {
    "expected_average_only_in": "it expects activations scaled to a mean norm of sqrt(d_in) by a factor that the file"
    " does not hold: the dictionary will too",
    "layer_norm": "it standardises every row before encoding: the dictionary will expect such rows",
    "constant_norm_rescale": "it rescales every row to norm sqrt(d_in): the dictionary will expect such rows",
    "covariance_whitening": "it expects whitened activations: the dictionary will too",
}
CENTRED_STREAM = (
    "it was trained with center_writing_weights, on a residual stream whose rows have mean zero: subtract each row's "
    "mean, or its FVU on the model as it is counts that mean as error"
)
UNIT = 1e-5
"""Decoder norms this near to one are one: rescaling by them then changes nothing but the last bit."""


def load(path: Path) -> Raw:
    """Read both files."""
    config = read_config(path / CONFIG, "SAELens config")
    return Raw(path / WEIGHTS, read_tensors(path / WEIGHTS, "SAELens weight file"), config)


def parse(raw: Raw, losses: Losses) -> Portable:
    """By `architecture`; normalisation that depends on the row or on an absent factor is a loss."""
    config = _modern(raw)
    name = config.get("architecture", "standard")
    if name not in ARCHITECTURES:
        raise unknown("SAELens architecture", name, ARCHITECTURES)
    architecture, table = ARCHITECTURES[name]
    if (norm := config.get("normalize_activations") or "none") != "none":
        losses.lose(NORMALISED.get(norm, f"normalize_activations is {norm!r}, which is unknown here"))
    if (config["metadata"].get("model_from_pretrained_kwargs") or {}).get("center_writing_weights"):
        log.warning("%s: %s", raw.path.parent, CENTRED_STREAM)
    tensors = take(_tidy(raw), table, losses, sizes=_sizes(raw, config))
    fields: dict[str, Any] = {}
    across = name.endswith("transcoder")
    if not config.get("apply_b_dec_to_input", not across):
        fields["centre_input"] = False
    if name == "matching_pursuit":
        fields |= sae_lens_pursuit.steps(raw.path.parent / CONFIG, config)
        sae_lens_pursuit.drop_unused_bias(tensors, fields, losses)
    if name in WITH_K:
        fields["k"] = _whole(raw.path, config, losses)
    if name == "matryoshka_batchtopk":
        fields["prefixes"] = config.get("matryoshka_widths") or (tensors["W_dec"].shape[0],)
    portable = Portable(architecture, tensors, fields, *_origin(raw, config))
    if name in WITH_K and config.get("rescale_acts_by_decoder_norm", name.endswith("batchtopk")):
        portable = _rescaled(portable, losses)
    return _as_it_was(portable.as_transcoder() if across else portable, config)


def _modern(raw: Raw) -> dict[str, Any]:
    """The config in the form of version 6: before it, TopK was a standard SAE with another activation."""
    config = dict(raw.config)
    activation = config.get("activation_fn", config.get("activation_fn_str", "relu"))
    if activation == "topk" and config.get("architecture", "standard") in ("standard", "topk"):
        config |= {"architecture": "topk", "k": (config.get("activation_fn_kwargs") or {}).get("k", config.get("k"))}
    elif activation != "relu":
        raise InputError(
            f"{raw.path.parent / CONFIG}: activation_fn is {activation!r}, this version reads relu and topk"
        )
    if config.get("finetuning_scaling_factor"):
        raise InputError(f"{raw.path.parent / CONFIG}: finetuning_scaling_factor is set, which no dictionary here has")
    if isinstance(config.get("normalize_activations"), bool):
        config["normalize_activations"] = "expected_average_only_in" if config["normalize_activations"] else "none"
    config.setdefault("metadata", {})
    return config


def _tidy(raw: Raw) -> Raw:
    """The tensors without additions of older versions (a scaling factor of ones, logarithms of thresholds).

    The training threshold, a running mean in fp64, is rounded to fp32 as SAELens does for inference."""
    tensors = dict(raw.tensors)
    if "topk_threshold" in tensors:
        tensors["topk_threshold"] = tensors["topk_threshold"].float()
    if "scaling_factor" in tensors and bool((tensors["scaling_factor"] == 1).all()):
        del tensors["scaling_factor"]
    if "log_threshold" in tensors and "threshold" not in tensors:
        tensors["threshold"] = tensors.pop("log_threshold").exp()
    return raw._replace(tensors=tensors)


def _sizes(raw: Raw, config: dict[str, Any]) -> dict[str, int]:
    named = {"d": "d_in", "n": "d_sae", "o": "d_out"}
    where = raw.path.parent / CONFIG
    return {axis: int(number(where, config, name)) for axis, name in named.items() if name in config}


def _whole(path: Path, config: dict[str, Any], losses: Losses) -> int:
    k = number(path.parent / CONFIG, config, "k")
    if k != int(k):
        losses.lose(f"k is {k}, and is rounded to {round(k)} (it matters in training only)")
    return round(k)


def _rescaled(portable: Portable, losses: Losses) -> Portable:
    norms = portable.tensors["W_dec"].norm(dim=-1)
    if float((norms - 1).abs().max()) <= UNIT:
        return portable
    losses.lose("codes are rescaled by decoder norms that are not one: the norms move into the encoder, rounded")
    return unit_decoder(portable)


def _origin(raw: Raw, config: dict[str, Any]) -> tuple[Provenance, Place | None]:
    metadata = config["metadata"]
    names = ("hook_name", "hook_point", "model_name", "hook_name_out")
    said = {key: metadata.get(key, config.get(key)) for key in names}
    model = {"name": said["model_name"]} if said["model_name"] else {}
    kept = {"format": NAME, "config": raw.config, "dtypes": dtypes(raw)}
    reads, writes = known_site(said["hook_name"] or said["hook_point"]), known_site(said["hook_name_out"])
    return Provenance(model, {IMPORTED: kept}), file_place(reads, writes)


def _as_it_was(portable: Portable, config: dict[str, Any]) -> Portable:
    """The dictionary of ours that the file was written from, where the tensors still are its."""
    ours = config["metadata"].get("monosem")
    if not isinstance(ours, dict) or _their_name(portable) != config.get("architecture"):
        return portable
    known = {f.name for f in fields(Provenance)} | set(OF_SITES)
    if not {"architecture", "config", "provenance"} <= ours.keys() or not set(ours["provenance"]) <= known:
        return portable
    try:
        place, provenance = read_origin(ours, portable.placed)
    except (InputError, KeyError, TypeError):
        return portable
    config_fields = dict(ours["config"]) | {"centre_input": portable.centred}
    if config_fields.get("d_out") != portable.fields.get("d_out"):
        return portable
    tensors = dict(portable.tensors)
    if portable.architecture == "jumprelu" and ours["architecture"] != "jumprelu":
        threshold = tensors.pop("threshold")
        if bool((threshold != threshold[0]).any()):
            return portable
        tensors["threshold"] = threshold[0].clone()
    elif portable.architecture == "topk" and ours["architecture"] == "matryoshka":
        tensors["threshold"] = torch.tensor(-1.0)
    elif portable.architecture != ours["architecture"]:
        return portable
    return Portable(ours["architecture"], tensors, config_fields, Provenance(**provenance), place)


def _their_name(portable: Portable) -> str | None:
    if not portable.across:
        return WRITTEN.get(portable.architecture)
    name = WRITTEN_ACROSS.get(portable.architecture)
    return name and name.replace("transcoder", "skip_transcoder" if "W_skip" in portable.tensors else "transcoder")


def compose(portable: Portable, losses: Losses) -> Raw:
    """Every architecture but GroupMax, and ReLU and JumpReLU transcoders.

    BatchTopK and its kin become jumprelu, as SAELens itself writes them.
    """
    kept = portable.kept(NAME)
    same = _without_k(portable, losses) if portable.across else portable
    same = recast(same, WRITTEN_ACROSS if portable.across else WRITTEN, losses, across=True)
    name = str(_their_name(same))
    config = kept.get("config", {})
    if _modern(Raw(Path(CONFIG), {}, config)).get("architecture") != name or losses.lost:
        kept, config = {}, _config(portable, name)
    _, table = ARCHITECTURES[name]
    if name in WITH_K:
        config = config | {"k": same.fields["k"]}
    if name == "matching_pursuit":
        config = config | sae_lens_pursuit.told(same, config, losses)
    tensors = put(same.tensors, table, kept.get("dtypes"))
    return Raw(Path(), tensors, config | {"apply_b_dec_to_input": same.centred})


def _without_k(portable: Portable, losses: Losses) -> Portable:
    if portable.architecture != "topk":
        return portable
    losses.lose("there is no TopK transcoder: every positive pre-activation will be a code")
    return replace(portable, architecture="relu")


def _hook(site: Site | None) -> str | None:
    return None if site is None else site.path if site.kind == PATH else site.to_transformer_lens()


def _config(portable: Portable, name: str) -> dict[str, Any]:
    place, origin = portable.placed, portable.provenance
    site, target = place.sources[0].site, place.targets[0].site if place.targets else None
    across = {"d_out": portable.fields["d_out"]} if portable.across else {}
    ours = {"architecture": portable.architecture, "config": portable.fields,
            "place": place_json(place), "provenance": asdict(origin)}  # fmt: skip
    config = {
        "architecture": name,
        "d_in": portable.d_in,
        "d_sae": portable.n_latents,
        "dtype": "float32",
        "device": "cpu",
        "normalize_activations": "none",
        "reshape_activations": "hook_z" if site is not None and site.kind == "z" else "none",
        "metadata": {
            "sae_lens_version": VERSION,
            "model_name": origin.model.get("name"),
            "hook_name": _hook(site),
            **({"hook_name_out": _hook(target)} if portable.across else {}),
            "monosem": ours,
        },
    }
    return config | across | ({"rescale_acts_by_decoder_norm": False} if name in WITH_K else {})


def store(raw: Raw, folder: Path) -> None:
    """Write both files, the config last."""
    write_tensors(folder / WEIGHTS, raw.tensors)
    write_json(folder / CONFIG, raw.config)


def _recognise(path: Path) -> bool:
    return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


FORMAT = Format(NAME, _recognise, load, parse, (CONFIG, WEIGHTS), compose, store)
