"""How the place and the provenance of a dictionary stand in its description, and how earlier descriptions are read.

Schema 2 has two entries: `place` ({kind, sources, targets}, each port with its site, width, norm limit and scale) and
`provenance` ({model, training}). Schema 1 had no place: `provenance` named the sites (`site`, `target`, `sources`,
`targets`), norm limits (`norm_limit` of the first site, `norm_limits` by site) and the `scales` of the sources.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from ..lab.errors import InputError
from ..lab.models.sites import Site
from .place import Place, Port

SCHEMA = 2
"""Of descriptions that are written now; those of schema 1 are read too."""
OF_SITES = ("site", "target", "sources", "targets", "norm_limit", "norm_limits", "scales")
"""Entries of a provenance of schema 1 that are in the place since."""


def place_json(place: Place) -> dict[str, Any]:
    """A place as JSON values."""
    sides = {"sources": place.sources, "targets": place.targets}
    return {"kind": place.kind, **{name: [_port_json(port) for port in ports] for name, ports in sides.items()}}


def place_from_json(values: Mapping[str, Any]) -> Place:
    """The place that `place_json` wrote.

    Raises:
        InputError: an unknown site, or ports that fit no place.
        KeyError, TypeError: an entry is missing or unknown.
    """
    sources, targets = (tuple(map(_port, values[name])) for name in ("sources", "targets"))
    return Place(sources, targets, values["kind"])


def read_origin(description: Mapping[str, Any], unnamed: Place) -> tuple[Place, dict[str, Any]]:
    """The place and the entries of the provenance in a description, of this schema or of one before.

    Args:
        unnamed: the place that the dictionary's config tells, with widths alone.

    Raises:
        InputError: an unknown site, or another number of sites than the config tells.
        KeyError, TypeError: an entry is missing or unknown.
    """
    provenance = dict(description["provenance"])
    if "place" in description:
        return place_from_json(description["place"]), provenance
    origin = {name: provenance.pop(name, None) for name in OF_SITES}
    reads = origin["sources"] or ([origin["site"]] if origin["site"] else [])
    predicts = origin["targets"] or ([origin["target"]] if origin["target"] else [])
    limits, scales = origin["norm_limits"] or {}, origin["scales"] or [None] * len(unnamed.sources)
    sources = _ports(unnamed.sources, reads, limits)
    if sources[0].norm_limit is None:
        sources = (replace(sources[0], norm_limit=origin["norm_limit"]), *sources[1:])
    sources = tuple(replace(port, scale=scale) for port, scale in zip(sources, scales, strict=True))
    # an autoencoder that names a target has the site it reads there
    targets = _ports(unnamed.targets, predicts, limits) if unnamed.targets else ()
    return replace(unnamed, sources=sources, targets=targets), provenance


def _ports(unnamed: Sequence[Port], names: Sequence[str], limits: Mapping[str, float]) -> tuple[Port, ...]:
    if names and len(names) != len(unnamed):
        raise InputError(f"the provenance names the sites {' and '.join(names)}, the config tells {len(unnamed)}")
    named = [replace(port, site=Site.parse(name)) for name, port in zip(names, unnamed, strict=bool(names))]
    return tuple(replace(port, norm_limit=limits.get(str(port.site))) for port in named or unnamed)


def _port_json(port: Port) -> dict[str, Any]:
    return {**asdict(port), "site": None if port.site is None else str(port.site)}


def _port(values: Mapping[str, Any]) -> Port:
    return Port(**{**values, "site": None if values["site"] is None else Site.parse(values["site"])})
