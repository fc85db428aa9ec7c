"""`Place`: what a member of a sweep reads and what it predicts, and so which kind of dictionary it is.

    resid_post.12                                  an autoencoder
    resid_mid.12 -> mlp_out.12                     a transcoder
    resid_post.8 + resid_post.12                   a crosscoder
    resid_mid.8-11 -> mlp_out.8-11                 a cross-layer transcoder, over layers 8, 9, 10 and 11

`resid_mid.8-11` is short for `resid_mid.8 + resid_mid.9 + resid_mid.10 + resid_mid.11`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..lab.errors import InputError
from ..lab.models.sites import KINDS, PATH, Site

AUTOENCODER, TRANSCODER, CROSSCODER, CROSS_LAYER = "sae", "transcoder", "crosscoder", "clt"

_RANGE = re.compile(rf"({'|'.join(KINDS)})\.(\d+)-(\d+)")


@dataclass(frozen=True)
class Place:
    """The sites of one dictionary.

    Raises:
        InputError: no site to read, a site twice, or several sites to predict that are not one for each that is read.
    """

    sources: tuple[Site, ...]
    """What is read."""
    targets: tuple[Site, ...] = ()
    """What is predicted; empty where it is what is read."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise InputError("a dictionary reads at least one site, such as 'resid_post.12'")
        for sites in (self.sources, self.targets):
            if len(set(sites)) < len(sites):
                raise InputError(f"{_written(sites)} names a site twice: give every site once")
        if shared := set(self.sources) & set(self.targets):
            raise InputError(f"{shared.pop()} is both read and predicted: a transcoder predicts another site")
        if self.targets and len(self.targets) != len(self.sources):
            raise InputError(
                f"a cross-layer transcoder predicts one site for each that it reads, got {len(self.targets)} for"
                f" {len(self.sources)} in '{self}'"
            )

    @classmethod
    def parse(cls, text: str | Site) -> Place:
        """Read the text form; TransformerLens names are taken too.

        Raises:
            InputError: the text is none, or a site of it is unknown.
        """
        if isinstance(text, Site):
            return cls((text,))
        if not isinstance(text, str):
            raise InputError(f"a place is text such as 'resid_post.12' or 'resid_mid.12 -> mlp_out.12', not {text!r}")
        sides = [_sites(side) for side in text.split("->")]
        if len(sides) > 2 or not all(sides):
            raise InputError(f"{text!r} is no place: write what is read, '->' and what is predicted")
        return cls(*sides)

    @property
    def kind(self) -> str:
        """Which kind of dictionary it takes: sae, transcoder, crosscoder or clt."""
        if self.targets:
            return TRANSCODER if len(self.targets) == 1 else CROSS_LAYER
        return AUTOENCODER if len(self.sources) == 1 else CROSSCODER

    @property
    def sites(self) -> tuple[Site, ...]:
        """All of them."""
        return (*self.sources, *self.targets)

    @property
    def output(self) -> str:
        """The text form of what is reconstructed: members with the same one compare."""
        return _written(self.targets or self.sources)

    @property
    def slug(self) -> str:
        """The text form as a part of a file's name."""
        return str(self).replace(" -> ", "-to-").replace(" + ", "+")

    def require_order(self) -> None:
        """Refuse a site that is read after the one that is predicted from it: it cannot be spliced in.

        Raises:
            InputError: names both.
        """
        for source, target in zip(self.sources, self.targets, strict=False):
            if PATH not in (source.kind, target.kind) and source > target:
                raise InputError(f"a prediction that is to be measured in the model must read an earlier site than"
                                 f" {target}, not {source}: leave out the evaluation, or read before")  # fmt: skip

    def __str__(self) -> str:
        return " -> ".join(_written(sites) for sites in (self.sources, self.targets) if sites)


def _sites(text: str) -> tuple[Site, ...]:
    """The sites of one side, ranges of layers spelt out."""
    found: list[Site] = []
    for part in filter(None, map(str.strip, text.split("+"))):
        if layers := _RANGE.fullmatch(part):
            first, last = int(layers[2]), int(layers[3])
            if first >= last:
                raise InputError(f"a range of layers rises, as in {layers[1]}.8-11, got {part}")
            found += [Site(layers[1], layer) for layer in range(first, last + 1)]
        else:
            found.append(Site.parse(part))
    return tuple(found)


def _written(sites: Sequence[Site]) -> str:
    """The sites with ' + ' between them, or as a range where they are three or more layers in a row."""
    first = sites[0] if sites else None
    in_a_row = all((one.kind, one.layer, one.path, one.model) == (first.kind, first.layer + at, "", "")
                   for at, one in enumerate(sites) if first)  # fmt: skip
    if first and len(sites) > 2 and in_a_row:
        return f"{first.kind}.{first.layer}-{sites[-1].layer}"
    return " + ".join(map(str, sites))
