"""`load`: a probe of any form from the directory that `Probe.save` wrote."""

from __future__ import annotations

from pathlib import Path

import torch

from ..lab.errors import InputError, unknown
from ..lab.models.hooked_model import HookedModel
from ..lab.models.sites import Site
from ..lab.storage import file_sha256, read_json, read_tensors
from .fitting.nonlinear import AttentionProbe, MLPProbe
from .fitting.scaling import Scaling
from .labels import Source
from .probe import DESCRIPTION, SCALE, SCHEMA, WEIGHTS, Probe

FORMS: dict[str, type[Probe]] = {form.form: form for form in (Probe, MLPProbe, AttentionProbe)}
"""Every form of read-out by name."""


def load(folder: Path | str, model: HookedModel | None = None, site: Site | str | None = None) -> Probe:
    """Read a probe.

    Args:
        model: refuse the probe unless it was fitted on this model.
        site: refuse the probe unless it reads this site.

    Raises:
        InputError: no probe, another schema, weights that are not the ones described, another model or site; the
            sentence names the file or both sides.
    """
    folder = Path(folder)
    if not (folder / DESCRIPTION).is_file():
        raise InputError(f"{folder} holds no probe (no {DESCRIPTION}): give the folder of one, such as RUN/probes/NAME")
    description = read_json(folder / DESCRIPTION, "probe description")
    if not isinstance(description, dict) or description.get("schema") != SCHEMA:
        schema = description.get("schema") if isinstance(description, dict) else None
        raise InputError(f"{folder / DESCRIPTION} has schema {schema!r}, this version reads {SCHEMA}")
    if description.get("form") not in FORMS:
        raise unknown(f"form of probe in {folder / DESCRIPTION}", description.get("form"), FORMS)
    tensors = read_tensors(folder / WEIGHTS, "probe weight file")
    if file_sha256(folder / WEIGHTS) != description.get("sha256"):
        raise InputError(
            f"{folder / WEIGHTS} is not the file its description was written for: restore both from one save"
        )
    try:
        mean, spread = (tensors.pop(name) for name in SCALE)
        probe = FORMS[description["form"]](
            kind=description["kind"], classes=tuple(description["classes"]), source=Source(**description["source"]),
            scaling=Scaling(description["scaling"], mean, spread), training=description["training"], **tensors,
        )  # fmt: skip
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder / DESCRIPTION}: an entry is missing or of the wrong type ({error})") from error
    if not all(bool(torch.isfinite(tensor).all()) for tensor in probe.tensors().values()):
        raise InputError(f"{folder / WEIGHTS} holds values that are not finite")
    if model is not None:
        probe.matching_site(model)
    if site is not None and str(Site.parse(site)) != probe.source.site:
        raise InputError(f"the probe in {folder} reads {probe.source} and not {site}: give the probe of that site")
    return probe
