"""A dictionary in neutral terms: what every foreign format is read into and written from."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from ...lab.errors import InputError, unknown
from ...lab.models.sites import Site
from ..dictionary import Dictionary, Provenance
from ..place import CROSSCODER, TRANSCODER, Place, Port
from ..registry import architectures, build
from .losses import Losses

IMPORTED = "imported"
"""Where the provenance of a dictionary keeps what its file said and we have no field for."""


@dataclass(frozen=True)
class Portable:
    """Architecture, config fields and tensors under our names; a JumpReLU's thresholds are called `threshold`."""

    architecture: str
    tensors: dict[str, Tensor]
    """Our names and orientation, fp32: W_enc [n, d], W_dec [n, o], and so on."""
    fields: dict[str, Any] = field(default_factory=dict)
    """Config fields other than d_in and n_latents: k, centre_input, of a transcoder d_out and skip, ..."""
    provenance: Provenance = field(default_factory=Provenance)
    """The model, where the file names it, and entries kept of the file."""
    place: Place | None = None
    """The sites that the file names; None where it names none that is known here."""

    @property
    def d_in(self) -> int:
        """Width of the activations that are read."""
        return self.tensors.get("W_enc", self.tensors["W_dec"]).shape[1]

    @property
    def n_latents(self) -> int:
        """Number of latents."""
        return self.tensors["W_dec"].shape[0]

    @property
    def placed(self) -> Place:
        """The place of the tensors' widths, at the sites that the file names."""
        own = Place.of_widths(self.d_in, self.fields.get("d_out"))
        if self.place is None:
            return own
        targets = (self.place.targets or own.targets) if own.targets else ()
        return own.named_as(Place(self.place.sources, targets))

    @property
    def centred(self) -> bool:
        """True if the encoder subtracts `b_dec`."""
        return self.fields.get("centre_input", True)

    @property
    def across(self) -> bool:
        """True for a transcoder."""
        return self.placed.kind == TRANSCODER

    @property
    def kind(self) -> str:
        """The architecture and kind, for messages."""
        return f"{self.architecture}{' transcoder' if self.across else ''}"

    def as_transcoder(self) -> Portable:
        """The same tensors, read as a transcoder's."""
        shape = {"d_out": self.tensors["W_dec"].shape[1], "skip": "W_skip" in self.tensors, "centre_input": False}
        return replace(self, fields=self.fields | shape)

    def kept(self, format_name: str) -> dict[str, Any]:
        """Entries of the source file that have no field here, if the file was of that format."""
        kept = self.provenance.training.get(IMPORTED, {})
        return kept if kept.get("format") == format_name else {}

    @classmethod
    def of(cls, dictionary: Dictionary) -> Portable:
        """The parts of a dictionary.

        Raises:
            InputError: it has no encoder weights and is no matching pursuit, or it is a crosscoder.
        """
        if dictionary.place.kind == CROSSCODER:
            raise InputError("no other format holds a crosscoder: save it in monosem's own")
        tensors = {name: tensor.cpu() for name, tensor in dictionary.tensors().items()}
        if "W_enc" not in tensors and dictionary.architecture != "mp":
            raise InputError(f"a {dictionary.architecture} dictionary has no encoder weights: no other format holds it")
        kept = dictionary.provenance.training.get(IMPORTED, {})
        unset = {"d_in", "n_latents", *kept.get("unset", ())}
        config = {f.name: getattr(dictionary.config, f.name) for f in fields(dictionary.config) if f.name not in unset}
        if "theta" in tensors:
            tensors["threshold"] = _lowered(tensors.pop("theta"), kept.get("below_zero"))
        return cls(dictionary.architecture, tensors, config, dictionary.provenance, dictionary.place)

    def build(self) -> Dictionary:
        """The dictionary.

        Raises:
            InputError: this version has no such architecture, or its config refuses a value.
        """
        if self.architecture not in (known_names := architectures()):
            raise unknown("architecture", self.architecture, known_names)
        known = {f.name for f in fields(known_names[self.architecture].config_type)}
        config = {name: value for name, value in self.fields.items() if name in known}
        kept: dict[str, Any] = dict(self.provenance.training.get(IMPORTED, {}))
        if "k" in known and "k" not in config:  # a target for training, which the file does not tell
            config["k"], kept["unset"] = min(32, self.n_latents), ["k"]
        dictionary = build(self.architecture, d_in=self.d_in, n_latents=self.n_latents, **config)
        tensors = dict(self.tensors)
        if "theta" in dictionary.tensors():
            tensors["theta"] = tensors["threshold"].clamp_min(0)
            if below := _below_zero(tensors["threshold"]):
                kept["below_zero"] = below
        dictionary.load_state_dict({name: tensors[name] for name in dictionary.tensors()})
        training = self.provenance.training | ({IMPORTED: kept} if kept else {})
        dictionary.place, dictionary.provenance = self.placed, replace(self.provenance, training=training)
        return dictionary


def file_place(reads: str | None, predicts: str | None = None) -> Place | None:
    """The place that a file names, from the text of its sites; None where it names none."""
    if reads is None and predicts is None:
        return None
    source, target = (Port(None if site is None else Site.parse(site)) for site in (reads, predicts))
    return Place((source,), () if predicts is None else (target,))


def _below_zero(threshold: Tensor) -> dict[str, list[Any]]:
    # under a relu a negative threshold acts as zero, which is what our thresholds are then; the file's are kept beside
    where = (threshold < 0).nonzero().squeeze(-1)
    return {"latents": where.tolist(), "thresholds": threshold[where].tolist()} if len(where) else {}


def _lowered(theta: Tensor, below: dict[str, list[Any]] | None) -> Tensor:
    if not below:
        return theta
    where, values = torch.tensor(below["latents"]), torch.tensor(below["thresholds"], dtype=theta.dtype)
    lowered = theta.clone()
    lowered[where] = torch.where(lowered[where] == 0, values, lowered[where])
    return lowered


def centre(portable: Portable, centred: bool, losses: Losses) -> Portable:
    """The same function with the encoder reading `x - b_dec` (or `x`): the constant moves into the encoder's biases.

    The product is fp64; the new biases are rounded to fp32.
    """
    if portable.centred == centred:
        return portable
    tensors = dict(portable.tensors)
    constant = tensors["W_enc"].double() @ tensors["b_dec"].double() * (1 if centred else -1)
    moved: dict[str, float | Tensor] = {"b_enc": 1.0}
    if "r_mag" in tensors:
        moved["b_mag"] = tensors["r_mag"].double().exp()
    for name, scale in moved.items():
        tensors[name] = (tensors[name].double() + constant * scale).float()
    losses.round(f"W_enc b_dec was {'added to' if centred else 'taken from'} the encoder's biases and rounded to fp32")
    return replace(portable, tensors=tensors, fields={**portable.fields, "centre_input": centred})


def unit_decoder(portable: Portable) -> Portable:
    """Decoder rows of norm one, with pre-activations (and so the codes) multiplied by the old norms."""
    norms = portable.tensors["W_dec"].double().norm(dim=-1).clamp_min(1e-8)
    scales = {"W_enc": norms[:, None], "W_dec": 1 / norms[:, None], "b_enc": norms, "b_mag": norms}
    tensors = {k: (t.double() * scales[k]).float() if k in scales else t for k, t in portable.tensors.items()}
    if tensors.get("threshold", norms.new_zeros(())).dim():
        tensors["threshold"] = (tensors["threshold"].double() * norms).float()
    return replace(portable, tensors=tensors)


def _with_thresholds(portable: Portable) -> Portable:
    threshold = portable.tensors.get("threshold", torch.zeros(()))
    tensors = portable.tensors | {"threshold": threshold.expand(portable.n_latents).contiguous()}
    return replace(portable, architecture="jumprelu", tensors=tensors)


def _without_prefixes(portable: Portable) -> Portable:
    return replace(portable, architecture=portable.fields.get("base", "batchtopk"))


SAME_CODES = {"matryoshka": _without_prefixes, "batchtopk": _with_thresholds, "relu": _with_thresholds}
"""Steps to another architecture that gives the same codes at inference."""

TO_TOPK = {
    "jumprelu": "its thresholds: every row will keep exactly k codes",
    "batchtopk": "its threshold: every row will keep exactly k codes",
    "matryoshka": "its threshold and prefixes: every row will keep exactly k codes",
    "groupmax": "its groups: the k largest codes of a row are kept wherever they are",
}
"""What is lost when an architecture is written as TopK."""


def recast(portable: Portable, held: Collection[str], losses: Losses, across: bool = False) -> Portable:
    """`portable` as one of the architectures that a format holds.

    Args:
        across: whether it holds transcoders.

    Raises:
        InputError: there is no way, or only one that loses something and that was not asked for.
    """
    if portable.across and not across:
        raise InputError(f"{losses.subject}: the format holds no transcoders, and this is one")
    same = portable
    while same.architecture not in held and same.architecture in SAME_CODES:
        same = SAME_CODES[same.architecture](same)
    if same.architecture in held:
        return same
    if "topk" in held and portable.architecture in TO_TOPK and portable.fields.get("k"):
        losses.lose(f"{portable.architecture} becomes topk and loses {TO_TOPK[portable.architecture]}")
        return replace(portable, architecture="topk")
    names = ", ".join(sorted(held))
    things = "transcoders" if portable.across else "dictionaries"
    raise InputError(f"{losses.subject}: the format holds {names} {things}, and this is {portable.architecture}")
