"""`Place`: the sites that a dictionary reads and predicts, and so which kind of dictionary it is.

    resid_post.12                                  an autoencoder
    resid_mid.12 -> mlp_out.12                     a transcoder
    resid_post.8 + resid_post.12                   a crosscoder
    resid_mid.8-11 -> mlp_out.8-11                 a cross-layer transcoder, over layers 8, 9, 10 and 11

`resid_mid.8-11` is short for `resid_mid.8 + resid_mid.9 + resid_mid.10 + resid_mid.11`. `dictionary.place` is the one
answer to what a dictionary reads and predicts: a `Port` for each site, with its width, norm limit and scale.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..lab.errors import InputError
from ..lab.models.same_model import require_same_model
from ..lab.models.sites import KINDS, PATH, Site

if TYPE_CHECKING:
    from ..lab.models.hooked_model import HookedModel
    from ..lab.models.pairs import ModelPair
    from ..lab.streams.activation_stream import ActivationStream

AUTOENCODER, TRANSCODER, CROSSCODER, CROSS_LAYER = "sae", "transcoder", "crosscoder", "clt"
UNNAMED = "an unnamed site"

OVERRIDE = " (or say that both are one: --model-is-the-same, dictionary.set_model(model))"
"""Closes the error for another model than the dictionary's."""
RESIDUAL = ("resid_pre", "resid_mid", "resid_post", "attn_out", "attn_add", "mlp_in", "mlp_out", "mlp_add")
"""Kinds of sites that have the width of the residual."""
_RANGE = re.compile(rf"({'|'.join(KINDS)})\.(\d+)-(\d+)")


@dataclass(frozen=True)
class Port:
    """A block of columns that a dictionary reads or predicts: the activations of one site."""

    site: Site | None = None
    """Where the activations are in the model; None for a dictionary that was built by hand and not placed."""
    width: int = 0
    """Columns of the site; 0 in a place that is read from text, where no dictionary says it."""
    norm_limit: float | None = None
    """Rows of a larger norm were dropped in training and pass through unedited; None drops no row."""
    scale: float | None = None
    """Factor on the activations in training, to unit mean square; None where no trainer chose one. Decoder norms of
    different sources of a crosscoder compare after division by their scales."""

    def __str__(self) -> str:
        return UNNAMED if self.site is None else str(self.site)


@dataclass(frozen=True)
class Place:
    """The ports of one dictionary.

    Raises:
        InputError: no site to read, a site twice, or several sites to predict that are not one for each that is read.
    """

    sources: tuple[Port, ...]
    """Read, in the order of the columns of the input."""
    targets: tuple[Port, ...] = ()
    """Predicted, in the order of the columns of the output; empty where the sources are reconstructed."""
    kind: str = ""
    """sae, transcoder, crosscoder or clt; by default told by the numbers of sources and targets."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise InputError("a dictionary reads at least one site, such as 'resid_post.12'")
        for ports in (self.sources, self.targets):
            sites = [port.site for port in ports if port.site]
            if len(set(sites)) < len(sites):
                raise InputError(f"{_written(ports)} names a site twice: give every site once")
        if self.targets and len(self.targets) != len(self.sources):
            raise InputError(
                f"a cross-layer transcoder predicts one site for each that it reads, got {len(self.targets)} for"
                f" {len(self.sources)} in '{self}'"
            )
        if not self.kind:
            single = len(self.sources) == 1
            across, within = (TRANSCODER, AUTOENCODER) if single else (CROSS_LAYER, CROSSCODER)
            object.__setattr__(self, "kind", across if self.targets else within)

    @classmethod
    def parse(cls, text: str | Site | Place) -> Place:
        """Read the text form; TransformerLens names are taken too.

        Raises:
            InputError: the text is none, or a site of it is unknown.
        """
        if isinstance(text, Place):
            return text
        if isinstance(text, Site):
            return cls.at((text,))
        if not isinstance(text, str):
            raise InputError(f"a place is text such as 'resid_post.12' or 'resid_mid.12 -> mlp_out.12', not {text!r}")
        sides = [_sites(side) for side in text.split("->")]
        if len(sides) > 2 or not all(sides):
            raise InputError(f"{text!r} is no place: write what is read, '->' and what is predicted")
        if len(sides) > 1 and (shared := set(sides[0]) & set(sides[1])):
            raise InputError(f"{shared.pop()} is both read and predicted: a transcoder predicts another site")
        return cls.at(*sides)

    @classmethod
    def at(cls, reads: Sequence[Site | str], predicts: Sequence[Site | str] = ()) -> Place:
        """The place that reads some sites and predicts others, or reconstructs those it reads.

        Raises:
            InputError: as the class, or a site is unknown.
        """
        sources, targets = (tuple(Port(Site.parse(site)) for site in sites) for sites in (reads, predicts))
        return cls(sources, targets)

    @classmethod
    def of_widths(cls, d_in: int, d_out: int | None = None, sources: Sequence[int] = ()) -> Place:
        """The unnamed place of a dictionary of one layer.

        Args:
            d_in: width of everything that is read.
            d_out: width of the one site that a transcoder predicts; None reconstructs the input.
            sources: widths of a crosscoder's sources, which add up to `d_in`.

        Raises:
            InputError: widths that fit no dictionary.
        """
        if d_out is not None and d_out < 1:
            raise InputError(f"d_out must be at least 1 (or None, to reconstruct the input), got {d_out}")
        if sources and (min(sources) < 1 or sum(sources) != d_in):
            raise InputError(f"sources are widths that add up to d_in={d_in}, got {tuple(sources)}")
        if sources and d_out is not None:
            raise InputError("a crosscoder reconstructs its own sources: give either sources or d_out")
        if sources:
            return cls(tuple(Port(width=width) for width in sources), kind=CROSSCODER)
        return cls((Port(width=d_in),), () if d_out is None else (Port(width=d_out),))

    @classmethod
    def of_layers(cls, layers: int, d_in: int, d_out: int) -> Place:
        """The unnamed place of a cross-layer transcoder whose layers share `d_in` and `d_out` equally.

        Raises:
            InputError: fewer layers or columns than one.
        """
        for name, value in (("layers", layers), ("d_out", d_out)):
            if value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        sources, targets = ((Port(width=width // layers),) * layers for width in (d_in, d_out))
        return cls(sources, targets, CROSS_LAYER)

    @property
    def ports(self) -> tuple[Port, ...]:
        """Sources, then targets."""
        return (*self.sources, *self.targets)

    @property
    def outputs(self) -> tuple[Port, ...]:
        """The ports that are reconstructed: the targets, or the sources where there are none."""
        return self.targets or self.sources

    @property
    def named(self) -> bool:
        """True if every port has a site."""
        return all(port.site for port in self.ports)

    @property
    def reads(self) -> tuple[Site, ...]:
        """The sites that are read.

        Raises:
            InputError: a source has no site.
        """
        if sites := _named(self.sources):
            return sites
        raise InputError("the dictionary names no site: say which, as in dictionary.place = "
                         f"'{self.example()}'")  # fmt: skip

    @property
    def predicts(self) -> tuple[Site, ...]:
        """The sites that are predicted; empty where the dictionary reconstructs the sites that it reads.

        Raises:
            InputError: a target has no site.
        """
        sites = _named(self.targets)
        if len(sites) == len(self.targets):
            return sites
        raise InputError("the transcoder names no site that it predicts: say which, as in dictionary.place = "
                         f"'{self.example()}'")  # fmt: skip

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites that are read, then those that are predicted.

        Raises:
            InputError: one has no site.
        """
        return (*self.reads, *self.predicts)

    @property
    def source(self) -> Port:
        """The one port that is read.

        Raises:
            InputError: several sites are read or predicted.
        """
        if self.kind == CROSS_LAYER:
            raise InputError(f"a cross-layer transcoder ({self}) predicts several sites: use a dictionary of one site"
                             " here")  # fmt: skip
        if len(self.sources) > 1:
            named = " and ".join(map(str, self.sources))
            raise InputError(f"a crosscoder reads {named}: use a dictionary of one site here")
        return next(iter(self.sources))

    @property
    def site(self) -> Site:
        """The one site that is read.

        Raises:
            InputError: several sites are read or predicted, or the one has no name.
        """
        self.source  # noqa: B018 (refuses several)
        return self.reads[0]

    @property
    def target(self) -> Site | None:
        """The one site that a transcoder predicts; None where nothing but the sources is reconstructed.

        Raises:
            InputError: it is a cross-layer transcoder, which predicts several, or the target has no name.
        """
        if not self.targets:
            return None
        self.source  # noqa: B018 (refuses several)
        return self.predicts[0]

    @property
    def norm_limits(self) -> dict[Site, float | None]:
        """The largest norm of a row at every site."""
        return {site: port.norm_limit for site, port in zip(self.sites, self.ports, strict=True)}

    @property
    def scales(self) -> list[float]:
        """The scale of every source; 1 where none was chosen."""
        return [1.0 if port.scale is None else port.scale for port in self.sources]

    @property
    def output(self) -> str:
        """The text form of what is reconstructed: members of a sweep with the same one compare."""
        return _written(self.outputs)

    @property
    def slug(self) -> str:
        """The text form as a part of a file's name."""
        return str(self).replace(" -> ", "-to-").replace(" + ", "+")

    def named_as(self, place: Place | Site | str) -> Place:
        """The widths and kind of this place with the sites, norm limits and scales of another.

        Raises:
            InputError: the other has another number of sites to read or to predict, or other widths.
        """
        given = Place.parse(place)
        if (len(given.sources), len(given.targets)) != (len(self.sources), len(self.targets)):
            raise InputError(
                f"'{given}' reads {len(given.sources)} and predicts {len(given.targets)} sites, and this {self.kind}"
                f" reads {len(self.sources)} and predicts {len(self.targets)}: name a site for each, as in"
                f" '{self.example()}'"
            )
        for own, other in zip(self.ports, given.ports, strict=True):
            if other.width and other.width != own.width:
                raise InputError(f"{other} has width {other.width}, and the dictionary has {own.width} columns for it:"
                                 " build the dictionary with the width of the site")  # fmt: skip
        widths = [port.width for port in self.ports]
        return self._with(replace(port, width=width) for port, width in zip(given.ports, widths, strict=True))

    def on(self, stream: ActivationStream) -> Place:
        """The place with the widths and norm limits that a stream has at its sites.

        Raises:
            InputError: a site is not streamed.
        """
        for site in self.sites:
            if site not in stream.widths:
                streamed = ", ".join(map(str, stream.sites))
                raise InputError(f"{site} is not on the stream: it reads {streamed}; name one of those, or stream it")
        limits = stream.norm_limit
        return self._with(
            replace(port, width=stream.widths[site], norm_limit=limits[site])
            for site, port in zip(self.sites, self.ports, strict=True)
        )

    def scaled(self, scales: Sequence[float | None]) -> Place:
        """The place with the factors that training multiplied each source and each target by, in order."""
        return self._with(replace(port, scale=scale) for port, scale in zip(self.ports, scales, strict=True))

    def limited(self, limits: Sequence[float | None]) -> Place:
        """The place with the largest norm of a row at each source and each target, in order."""
        return self._with(replace(port, norm_limit=limit) for port, limit in zip(self.ports, limits, strict=True))

    def check(self, model: HookedModel | ModelPair, trained_on: Mapping[str, Any] | None = None) -> Place:
        """The place with sites as the model writes them, once model and widths are known to be the dictionary's own.

        Args:
            trained_on: fingerprint of the model that the dictionary was trained on; None does not compare models.

        Raises:
            InputError: a port has no site, the model is another one, lacks a site or has another width there.
        """
        self.sites  # noqa: B018 (refuses a place without them before models are compared)
        require_same_model(trained_on or {}, model, "dictionary", OVERRIDE)
        return self.in_model(model)

    def in_model(self, model: HookedModel | ModelPair) -> Place:
        """The place with sites as the model writes them, once the widths there are known to be the dictionary's.

        An outline of a model tells the width of its residual alone.

        Raises:
            InputError: a port has no site, or the model lacks a site or has another width there.
        """
        sites = self.sites
        names = ["d_in"] * len(self.sources) + ["d_out"] * len(self.targets)
        return self._with(
            replace(port, site=_of_width(model, site, port.width, name))
            for site, port, name in zip(sites, self.ports, names, strict=True)
        )

    def require_order(self) -> None:
        """Refuse a site that is read after the one that is predicted from it: it cannot be spliced in.

        Raises:
            InputError: names both.
        """
        for source, target in zip(self.reads, self.predicts, strict=False):
            if PATH not in (source.kind, target.kind) and source > target:  # when a path runs, only the module knows
                raise InputError(f"a prediction that is to be measured in the model must read an earlier site than"
                                 f" {target}, not {source}: leave out the evaluation, or read before")  # fmt: skip

    def example(self) -> str:
        """The text form of a place of this kind, for messages; sites that are named stay."""
        read = _example(self.sources, "resid_mid" if self.targets else "resid_post")
        return f"{read} -> {_example(self.targets, 'mlp_out')}" if self.targets else read

    def _with(self, ports: Iterable[Port]) -> Place:
        ports = tuple(ports)
        return replace(self, sources=ports[: len(self.sources)], targets=ports[len(self.sources) :])

    def __str__(self) -> str:
        return " -> ".join(_written(ports) for ports in (self.sources, self.targets) if ports)


def output_width(d_in: int, d_out: int | None) -> int:
    """Width of what is reconstructed: `d_in`, unless `d_out` is given."""
    return d_in if d_out is None else d_out


def _of_width(model: HookedModel | ModelPair, text: Site, width: int, name: str) -> Site:
    site = model.site(text)
    own = _width(model, site)
    if width and own not in (None, width):
        raise InputError(
            f"{site} of {model.name!r} has width {own}, the dictionary {name}={width}: "
            "use it on the model and site it was trained on"
        )
    return site


def _width(model: HookedModel | ModelPair, site: Site) -> int | None:
    """Width of a site; of an outline, which cannot be run, that of the residual alone."""
    if getattr(getattr(model, "device", None), "type", "") != "meta":
        return model.width(site)
    return getattr(model, "d_model", None) if site.kind in RESIDUAL else None


def _sites(text: str) -> tuple[Site, ...]:
    """The sites of one side, ranges of layers spelt out."""
    sites: list[Site] = []
    for part in filter(None, map(str.strip, text.split("+"))):
        if layers := _RANGE.fullmatch(part):
            first, last = int(layers[2]), int(layers[3])
            if first >= last:
                raise InputError(f"a range of layers rises, as in {layers[1]}.8-11, got {part}")
            sites += [Site(layers[1], layer) for layer in range(first, last + 1)]
        else:
            sites.append(Site.parse(part))
    return tuple(sites)


def _named(ports: Sequence[Port]) -> tuple[Site, ...]:
    """The sites of all ports; empty where one has none."""
    sites = tuple(port.site for port in ports if port.site)
    return sites if len(sites) == len(ports) else ()


def _example(ports: Sequence[Port], kind: str) -> str:
    return " + ".join(f"{kind}.{at}" if port.site is None else str(port.site) for at, port in enumerate(ports, 12))


def _written(ports: Sequence[Port]) -> str:
    """The sites with ' + ' between them, or as a range where they are three or more layers in a row."""
    sites = _named(ports)
    if not any(port.site for port in ports):
        return UNNAMED if len(ports) == 1 else "unnamed sites"
    if len(sites) > 2 and sites[0].kind != PATH:
        first, last = sites[0], sites[-1]
        if sites == tuple(Site(first.kind, first.layer + at) for at in range(len(sites))):
            return f"{first.kind}.{first.layer}-{last.layer}"
    return " + ".join(map(str, ports))
