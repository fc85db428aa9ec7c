"""The sites of a model that a dictionary is for: checked before anything is measured or edited there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..lab.errors import InputError
from ..lab.models.hooked_model import HookedModel
from ..lab.models.pairs import ModelPair
from ..lab.models.sites import Site
from .dictionary import Dictionary


def matching_site(model: HookedModel | ModelPair, dictionary: Dictionary) -> Site:
    """The one site the dictionary reads, once model and width are known to be its own.

    Raises:
        InputError: as `matching_sites`, or it is a crosscoder, which reads several.
    """
    sources, _ = matching_sites(model, dictionary)
    if len(sources) > 1:
        raise InputError(f"a crosscoder reads {' and '.join(map(str, sources))}: use a dictionary of one site here")
    return sources[0]


def matching_sites(model: HookedModel | ModelPair, dictionary: Dictionary) -> tuple[list[Site], Site | None]:
    """The sites the dictionary reads, and the one a transcoder predicts, once they are known to be its own.

    Raises:
        InputError: as `matching_places`, or it is a cross-layer transcoder, which predicts several.
    """
    sources, targets = matching_places(model, dictionary)
    if dictionary.architecture == "clt":
        raise InputError(f"{dictionary!r} predicts several sites: use a dictionary of one site here")
    return sources, targets[0] if targets else None


def matching_places(model: HookedModel | ModelPair, dictionary: Dictionary) -> tuple[list[Site], list[Site]]:
    """All sites the dictionary reads, and those that a transcoder predicts, once they are known to be its own.

    Raises:
        InputError: the dictionary names no site, was trained on another model or has another width than its site.
    """
    origin = dictionary.provenance
    named = origin.sources or ([origin.site] if origin.site else [])
    if not named:
        raise InputError("the dictionary names no site: set its provenance.site, such as 'resid_post.12'")
    predicted = origin.targets or ([origin.target] if origin.target else [])
    if dictionary.config.d_out is not None and not predicted:
        raise InputError("the transcoder names no site that it predicts: set its provenance.target ('mlp_out.12')")
    require_model(origin.model, model, "dictionary")
    widths = dictionary.config.sources or [dictionary.d_in // len(named)] * len(named)
    sources = [_of_width(model, site, width, "d_in") for site, width in zip(named, widths, strict=True)]
    return sources, [_of_width(model, site, dictionary.d_out // len(predicted), "d_out") for site in predicted]


def require_model(trained_on: Mapping[str, Any], model: HookedModel | ModelPair, what: str) -> None:
    """Refuse what was trained on another model, as far as its fingerprint tells.

    Raises:
        InputError: naming both models.
    """
    found = model.fingerprint()
    # a model's name may be a path; its parameters identify it
    key = "parameters" if "parameters" in trained_on else "name"
    if key in trained_on and trained_on[key] != found[key]:
        raise InputError(
            f"the {what} was trained on {trained_on.get('name')!r} ({key} {trained_on[key]}) "
            f"and the model is {model.name!r} ({key} {found[key]}): load the model it was trained on"
        )


def _of_width(model: HookedModel | ModelPair, text: str, width: int, name: str) -> Site:
    site = model.site(text)
    if model.width(site) != width:
        raise InputError(
            f"{site} of {model.name!r} has width {model.width(site)}, the dictionary {name}={width}: "
            "use it on the model and site it was trained on"
        )
    return site


def norm_limits(dictionary: Dictionary, sites: Sequence[Site]) -> dict[Site, float | None]:
    """The largest norm of a row at every site."""
    origin = dictionary.provenance
    return {site: origin.norm_limits.get(str(site), origin.norm_limit if i == 0 else None)
            for i, site in enumerate(sites)}  # fmt: skip
