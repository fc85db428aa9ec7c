"""`grid`: the members of a sweep, every combination of its axes, each with a name that says what it is."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch

from ...lab.errors import InputError, unknown
from ...lab.models.sites import Site
from ..architectures.clt.cross_layer import BASES, CrossLayer, CrossLayerConfig
from ..architectures.sae import SparseAutoencoder
from ..place import AUTOENCODER, CROSS_LAYER, CROSSCODER, Place
from ..registry import build_trainable, trainable
from ..training.trainer import TrainConfig

ALL = "all"
AXES = ("architecture", "site", "n_latents", "k", "seed", "lr")
"""Fields of a grid that every architecture has; others are of its own config, or of training as `training.NAME`."""
ACROSS = ("skip", "joint")
"""Further fields: the first of transcoders of either kind, the second of cross-layer ones."""


@dataclass(frozen=True)
class Member:
    """One dictionary of a sweep.

    Raises:
        InputError: an unknown architecture, a field that it has not, or a value that its config refuses.
    """

    architecture: str
    """A name in `registry.trainable`; of a cross-layer transcoder its base, in `clt.cross_layer.BASES`."""
    site: str
    """Where it reads, and what it predicts: the text form of a `Place`, such as `resid_mid.12 -> mlp_out.12`."""
    n_latents: int = 9216
    """Number of latents; in each layer, for a cross-layer transcoder."""
    k: int = 32
    """Active latents a row, on average; in each layer, for a cross-layer transcoder."""
    own: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the architecture's config, `skip` included."""
    training: TrainConfig = field(default_factory=TrainConfig)
    """How it is trained; the seed is here."""
    varied: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `training`, beside the seed, in which members differ; they are part of the name."""

    def __post_init__(self) -> None:
        place = Place.parse(self.site)
        object.__setattr__(self, "site", str(place))
        with torch.device("meta"):
            self.build(dict.fromkeys(place.sites, 1))

    @property
    def place(self) -> Place:
        """Its sites."""
        return Place.parse(self.site)

    @property
    def label(self) -> str:
        """The architecture and, unless it is an autoencoder, the kind; sizes are left out."""
        kind, skip = self.place.kind, " with skip" if self.own.get("skip") else ""
        return self.architecture if kind == AUTOENCODER else f"{self.architecture} {kind}{skip}"

    def build(self, widths: Mapping[Site, int]) -> SparseAutoencoder | CrossLayer:
        """The dictionary with zero weights, for sites of these widths.

        Raises:
            InputError: a field that it has not, or a value that its config refuses.
        """
        place = self.place
        read, written = ([widths[site] for site in sites] for sites in (place.reads, place.predicts))
        if place.kind == CROSS_LAYER:
            sizes = {"n_latents": self.n_latents, "k": self.k, **self.own}
            return CrossLayer(
                CrossLayerConfig.over(len(read), read[0], d_out=written[0], base=self.architecture, **sizes)
            )
        shape: dict[str, Any] = {"sources": tuple(read)} if place.kind == CROSSCODER else {}
        shape |= {"d_out": written[0]} if written else {}
        return build_trainable(d_in=sum(read), **shape, **self.config)

    @property
    def config(self) -> dict[str, Any]:
        """The arguments of `build`, without the widths."""
        return {"architecture": self.architecture, "n_latents": self.n_latents, "k": self.k, **self.own}

    @property
    def recipe(self) -> str:
        """Its name without the seed: what members that differ by their seed alone have in common."""
        further = [f"{key.removeprefix('training.')}={value}" for key, value in {**self.own, **self.varied}.items()]
        parts = [self.architecture, self.place.slug, f"n{self.n_latents}", f"k{self.k}", *further]
        return re.sub(r"[^\w.,:+=-]+", "_", "-".join(parts))

    @property
    def name(self) -> str:
        """Its name in the run: the recipe and the seed."""
        return f"{self.recipe}-seed{self.training.seed}"

    def settings(self) -> dict[str, Any]:
        """The settings of the member, as one row of a table."""
        common = {
            "name": self.name,
            "site": self.site,
            "kind": self.place.kind,
            **self.config,
            "seed": self.training.seed,
        }
        return {**common, **{key.removeprefix("training."): value for key, value in self.varied.items()}}


def grid(training: TrainConfig | None = None, **axes: Any) -> list[Member]:
    """Every combination of the axes, each a value or a list of values.

    Args:
        training: what the axes do not say.
        **axes: architecture (`"all"` for every one that a site takes), site (see `Place`), n_latents, k, seed, lr;
            fields of the architecture's own config; `skip`, which goes by for members that predict nothing else
            than they read; and fields of training as `**{"training.aux_k": [0, 256]}`.

    Raises:
        InputError: no site, an axis without values, a name or value that is not allowed, or the same member twice.
    """
    training = training or TrainConfig()
    axes = {"architecture": "topk", **axes}
    every = axes["architecture"] in (ALL, [ALL])
    if every:
        axes["architecture"] = list(trainable())
    if "site" not in axes:
        raise InputError("a grid needs a site, such as 'resid_post.12'")
    values = {name: _values(name, value) for name, value in axes.items()}
    points = [dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())]
    if every:
        points = [point for point in points if _takes(point["architecture"], point["site"])]
    members = [_member(point, training) for point in _skipping(points, values.get("skip", [None])[0])]
    require_distinct(members)
    return members


def _takes(architecture: str, site: str) -> bool:
    """True if the architecture has a dictionary of the kind that the place asks for."""
    kind = Place.parse(site).kind
    return architecture in BASES if kind == CROSS_LAYER else kind == AUTOENCODER or trainable()[architecture].crosses


def _skipping(points: Sequence[Mapping[str, Any]], first: Any) -> Iterator[dict[str, Any]]:
    """The points, with `skip` only where another site is predicted; other points come once, with its first value."""
    for point in points:
        plain = {name: value for name, value in point.items() if name != "skip"}
        if Place.parse(point["site"]).targets:
            yield dict(point) if point.get("skip") else plain
        elif point.get("skip") == first:
            yield plain


def require_distinct(members: Iterable[Member]) -> None:
    """Refuse a sweep without members, or with two of one name.

    Raises:
        InputError: names the one that is there twice.
    """
    names = [member.name for member in members]
    if not names:
        raise InputError("a sweep needs at least one member")
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{name} is in the sweep twice: give every combination once")


def _values(name: str, value: Any) -> list[Any]:
    """The values of one axis. A field that is a tuple takes one list as its value, and a list of lists as an axis."""
    of_tuples = name in {entry.name for kind in trainable().values() for entry in fields(kind.config_type)
                         if str(entry.type).startswith("tuple")}  # fmt: skip
    listed = isinstance(value, list | tuple)
    if of_tuples:
        listed = listed and all(isinstance(entry, list | tuple) for entry in value)
    values = list(value) if listed else [value]
    if not values:
        raise InputError(f"the axis {name} has no values: leave it out or give some")
    return [tuple(entry) if isinstance(entry, list) else entry for entry in values]


def _member(point: dict[str, Any], training: TrainConfig) -> Member:
    own = {name: value for name, value in point.items() if name not in AXES and not name.startswith("training.")}
    varied = {name: value for name, value in point.items() if name.startswith("training.")}
    if point.get("lr") is not None:
        varied["training.lr"] = point["lr"]
    changes = {name.removeprefix("training."): value for name, value in varied.items()}
    known = TrainConfig.__dataclass_fields__
    for name in changes:
        if name not in known:
            raise unknown("training option", name, known)
    if "seed" in point:
        changes["seed"] = point["seed"]
    common = {name: point[name] for name in ("architecture", "site", "n_latents", "k") if name in point}
    return Member(**common, own=own, training=replace(training, **changes), varied=varied)
