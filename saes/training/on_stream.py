"""`trainer_on`, known as `Trainer.on`: a new dictionary for a place of a stream, with the trainer of its architecture.

    Trainer.on(stream, "resid_post.12", "topk", n_latents=4096, k=32, rows=100_000)
    Trainer.on(stream, "resid_mid.12 -> mlp_out.12", "jumprelu", n_latents=4096, skip=True)     a skip transcoder
    Trainer.on(stream, "resid_mid.8-11 -> mlp_out.8-11", "topk", n_latents=4096)                a cross-layer transcoder
    Trainer.on(stream, "resid_post.12", "itda", max_atoms=4096)                                 an ITDA

Widths, norm limits, the model's fingerprint and the device come from the stream. The class of the dictionary names its
trainer (`Dictionary.trainer`), and that class's `for_place` makes it; nothing here knows an architecture.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import fields, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ...lab.errors import InputError, unknown
from ...lab.models.same_model import differing
from ...lab.streams.activation_stream import ActivationStream
from ...lab.streams.token_stream import TokenStream
from ..dictionary import Dictionary, Provenance
from ..hints import KINDS, OPTIONS
from ..place import CROSS_LAYER, Place
from ..registry import architectures

if TYPE_CHECKING:
    from ...lab.models.sites import Site
    from .clt.trainer import CrossLayerTrainer
    from .itda.trainer import ITDATrainer
    from .trainer import Trainer

log = logging.getLogger(__name__)

FROM_STREAM = ("d_in", "d_out", "sources", "layers")
"""Fields of configs that the place and the stream decide."""


class Asked(NamedTuple):
    """One dictionary that is asked for on a stream.

    A trainer's classmethod `for_place` takes it and makes dictionary and trainer; `config_type` of the trainer is the
    class of its config, and `dictionary_fields(kind)` names the fields of the dictionary's config that are options.
    """

    stream: ActivationStream
    place: Place
    """Sites that are streamed; their norm limits are not read yet."""
    kind: type[Dictionary]
    fields: dict[str, Any]
    """Fields of the dictionary's config, without widths."""
    training: Any
    """Config of the trainer's `config_type`."""
    name: str | None
    device: torch.device

    def width(self, site: Site) -> int:
        """Width of a site on the stream."""
        return self.stream.widths[site]

    def provenance(self) -> Provenance:
        """The provenance of a dictionary that is trained on the stream."""
        return Provenance(model=self.stream.fingerprint().get("model", {}))

    def require_latents(self) -> None:
        """Refuse a dictionary of an unknown size.

        Raises:
            InputError: n_latents is missing.
        """
        if "n_latents" not in self.fields:
            width = self.width(self.place.sites[0])
            raise InputError(f"{self.kind.architecture} needs n_latents, the number of latents: for the {width} columns"
                             f" of {self.place.sites[0]} give n_latents={8 * width}, say")  # fmt: skip


def trainer_on(
    stream: ActivationStream,
    place: Place | Site | str,
    architecture: str = "topk",
    *,
    dictionary: Mapping[str, Any] | None = None,
    training: Any = None,
    name: str | None = None,
    device: torch.device | str | None = None,
    **options: Any,
) -> Trainer | CrossLayerTrainer | ITDATrainer:
    """Make a new dictionary for a place of a stream, with its trainer. Nothing is allocated before all is checked.

    Args:
        place: text such as "resid_mid.12 -> mlp_out.12"; all of its sites are on the stream.
        architecture: name in `registry.architectures`; of a cross-layer transcoder the rule that selects codes.
        dictionary: fields of the dictionary's config that `options` cannot name, as training has one of that name.
        training: config of training that `options` change; `TrainConfig()` by default, or `GrowthConfig()` for an ITDA.
        name: name in the run; by default the architecture and the sites.
        device: where the dictionary is; by default where the stream's batches are.
        options: fields of the dictionary's config and of that of training.

    Returns:
        A `Trainer`, `CrossLayerTrainer` or `ITDATrainer`.

    Raises:
        InputError: a site that is not streamed, an unknown or untrainable architecture, one that does not take the
            place, an unknown option, or a value that a config refuses.
    """
    place = Place.parse(place)
    require_streamed(place, stream)
    kind, given = _kind_on(architecture, place)
    trainer = _trainer_of(kind)
    own, changes = _divided(kind, trainer, options)
    training = trainer.config_type() if training is None else training
    if not isinstance(training, trainer.config_type):
        raise InputError(f"{kind.architecture} is trained by a {trainer.config_type.__name__}, and training= is a"
                         f" {type(training).__name__}: give the former, or options by name")  # fmt: skip
    device = torch.device(stream.device if device is None else device)
    own = {**given, **(dictionary or {}), **own}
    return trainer.for_place(Asked(stream, place, kind, own, replace(training, **changes), name, device))


def require_streamed(place: Place, stream: ActivationStream | TokenStream) -> None:
    """Refuse a place with a site that the stream has not.

    Raises:
        InputError: names the sites to add.
    """
    missing = [str(site) for site in place.sites if site not in stream.widths]
    if missing:
        streamed = ", ".join(map(str, stream.sites))
        raise InputError(f"{' and '.join(missing)} is not streamed: add it to the stream's sites (now {streamed})")


def widths_of(place: Place, stream: ActivationStream) -> dict[str, Any]:
    """Fields d_in, d_out and sources of a dictionary of one layer, as the stream's sites are wide."""
    read, predicted = ([stream.widths[site] for site in sites] for sites in (place.reads, place.predicts))
    shape: dict[str, Any] = {"d_in": sum(read)}
    return shape | ({"sources": tuple(read)} if len(read) > 1 else {}) | ({"d_out": predicted[0]} if predicted else {})


def own_fields(kind: type[Dictionary]) -> tuple[str, ...]:
    """Fields of a dictionary's config that the stream does not decide."""
    return tuple(option.name for option in fields(kind.config_type) if option.name not in FROM_STREAM)


def known_from(
    stream: ActivationStream | TokenStream, place: Place, provenance: Provenance, name: str
) -> tuple[Place, Provenance]:
    """Fill in the norm limits and the model that a trainer made by hand does not know, from the stream it is fed by.

    Args:
        name: of the trainer.

    Raises:
        InputError: the trainer knows its model, and the stream reads another one.
    """
    model = stream.fingerprint().get("model") or {}
    if key := differing(provenance.model, model):
        own, read = (f"{side.get('name')!r} ({key} {side.get(key)})" for side in (provenance.model, model))
        raise InputError(
            f"{name} is a dictionary of {own} and the stream reads {read}: give it a stream of its own model, or make"
            " the trainer with Trainer.on(stream, ...)"
        )
    if not provenance.model:
        provenance = replace(provenance, model=model)
    if all(port.norm_limit is None for port in place.ports) and all(site in stream.widths for site in place.sites):
        place = place.on(stream)  # type: ignore[arg-type]
    return place, provenance


def warn_unknown(name: str, place: Place, provenance: Provenance) -> None:
    """Warn of a dictionary that is saved without its model and norm limits."""
    if not provenance.model and all(port.norm_limit is None for port in place.ports):
        log.warning("%s knows neither its model nor its norm limits, and neither is checked when it is used: train it"
                    " with train(stream, ...), or make it with Trainer.on(stream, ...)", name)  # fmt: skip


def _kind_on(architecture: str, place: Place) -> tuple[type[Dictionary], dict[str, Any]]:
    """The class of the dictionary, and fields that the architecture's name decides."""
    known = architectures()
    if place.kind == CROSS_LAYER:
        return known[CROSS_LAYER], {} if architecture == CROSS_LAYER else {"base": architecture}
    trained = [name for name, kind in known.items() if kind.trainer]
    if architecture not in known:
        if kind := KINDS.get(str(architecture)):
            raise InputError(f"unknown architecture {architecture!r}: it is {kind!r} here")
        raise unknown("architecture", architecture, trained)
    if architecture not in trained:
        raise InputError(f"architecture {architecture!r} cannot be trained: give {' or '.join(trained)}")
    return known[architecture], {}


def _trainer_of(kind: type[Dictionary]) -> Any:
    """The class that `kind.trainer` names."""
    module, _, name = str(kind.trainer).partition(":")
    return getattr(import_module(module, __package__), name)


def _divided(kind: type[Dictionary], trainer: Any, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options that are the dictionary's, and those of training."""
    own, training = trainer.dictionary_fields(kind), tuple(option.name for option in fields(trainer.config_type))
    for name in options:
        if name in FROM_STREAM:
            raise InputError(f"{name} follows from the place and the stream: leave it out")
        if name in own and name in training:
            raise InputError(f"{name} is an option of the dictionary and of training: give dictionary={{{name!r}: ...}}"
                             f" or training={trainer.config_type.__name__}({name}=...)")  # fmt: skip
        if name not in own and name not in training:
            if name in OPTIONS:
                raise InputError(f"unknown option of {kind.architecture} {name!r}: {OPTIONS[name]}")
            raise unknown(f"option of {kind.architecture}", name, dict.fromkeys((*own, *training)))
    return tuple({name: value for name, value in options.items() if name in side} for side in (own, training))  # type: ignore[return-value]
