"""`grid`: the members of a sweep, every combination of its axes, each with a name that says what it is."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch

from ...lab.errors import InputError, unknown
from ...lab.sites import Site
from ..files import TRAINABLE, build_trainable
from ..training import TrainConfig

ALL = "all"
AXES = ("architecture", "site", "n_latents", "k", "seed", "lr")
"""Fields of a grid that every architecture has; others are of its own config, or of training as `training.NAME`."""


@dataclass(frozen=True)
class Member:
    """One dictionary of a sweep.

    Raises:
        InputError: an unknown architecture, a field that it has not, or a value that its config refuses.
    """

    architecture: str
    """A name in `files.TRAINABLE`."""
    site: str
    """Where it reads; TransformerLens names are taken too."""
    n_latents: int = 9216
    """Number of latents."""
    k: int = 32
    """Active latents a row, on average."""
    own: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the architecture's config."""
    training: TrainConfig = field(default_factory=TrainConfig)
    """How it is trained; the seed is here."""
    varied: Mapping[str, Any] = field(default_factory=dict)
    """What of `training`, beside the seed, tells it apart from other members: a part of its name."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "site", str(Site.parse(self.site)))
        with torch.device("meta"):
            build_trainable(d_in=1, **self.config)

    @property
    def config(self) -> dict[str, Any]:
        """What builds it, but for its width."""
        return {"architecture": self.architecture, "n_latents": self.n_latents, "k": self.k, **self.own}

    @property
    def recipe(self) -> str:
        """Its name without the seed: what members that differ by their seed alone have in common."""
        further = [f"{key.removeprefix('training.')}={value}" for key, value in {**self.own, **self.varied}.items()]
        parts = [self.architecture, self.site, f"n{self.n_latents}", f"k{self.k}", *further]
        return re.sub(r"[^\w.,:+=-]+", "_", "-".join(parts))

    @property
    def name(self) -> str:
        """Its name in the run: the recipe and the seed."""
        return f"{self.recipe}-seed{self.training.seed}"

    def settings(self) -> dict[str, Any]:
        """What tells it apart, as one row of a table."""
        common = {"name": self.name, "site": self.site, **self.config, "seed": self.training.seed}
        return {**common, **{key.removeprefix("training."): value for key, value in self.varied.items()}}


def grid(training: TrainConfig | None = None, **axes: Any) -> list[Member]:
    """Every combination of the axes, each a value or a list of values.

    Args:
        training: what the axes do not say.
        **axes: architecture (`"all"` for every one), site, n_latents, k, seed, lr; fields of the architecture's own
            config; and fields of training as `**{"training.aux_k": [0, 256]}`.

    Raises:
        InputError: no site, an axis without values, a name or value that is not allowed, or the same member twice.
    """
    training = training or TrainConfig()
    axes = {"architecture": "topk", **axes}
    if axes["architecture"] == ALL or axes["architecture"] == [ALL]:
        axes["architecture"] = list(TRAINABLE)
    if "site" not in axes:
        raise InputError("a grid needs a site, such as 'resid_post.12'")
    values = {name: _values(name, value) for name, value in axes.items()}
    members = [
        _member(dict(zip(values, point, strict=True)), training) for point in itertools.product(*values.values())
    ]
    require_distinct(members)
    return members


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
    of_tuples = name in {one.name for _, config in TRAINABLE.values() for one in fields(config)
                         if str(one.type).startswith("tuple")}  # fmt: skip
    listed = isinstance(value, list | tuple)
    if of_tuples:
        listed = listed and all(isinstance(one, list | tuple) for one in value)
    found = list(value) if listed else [value]
    if not found:
        raise InputError(f"the axis {name} has no values: leave it out or give some")
    return [tuple(one) if isinstance(one, list) else one for one in found]


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
