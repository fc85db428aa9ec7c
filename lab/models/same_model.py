"""`require_same_model`: refuses a model that a dictionary or a probe was not trained on.

Parameters tell one model from another where both sides know their hash (`HookedModel.fingerprint`). Files of other
libraries hold a name alone: then names tell, under any of their forms (`names`), and for a folder that tells no name
its family, layers and width.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .names import family, same

if TYPE_CHECKING:
    from .hooked_model import HookedModel
    from .pairs import ModelPair

log = logging.getLogger(__name__)
SHAPE = ("family", "n_layers", "d_model")
"""Entries of a fingerprint that hold for a model without its weights too."""
LENS = "transformer_lens"
"""The family of a TransformerLens model, whatever it is built like."""


def require_same_model(
    trained_on: Mapping[str, Any], model: HookedModel | ModelPair, kind: str, override: str = ""
) -> None:
    """Refuse a model that is not the one of a fingerprint; where names decide and differ in form, one line says so.

    Args:
        trained_on: fingerprint of the model that something was trained on; a name alone, or nothing, where it comes
            from another library.
        kind: names that thing in errors: dictionary, probe.
        override: closes the sentence of the error, for a caller who knows better.

    Raises:
        InputError: names both models.
    """
    refuse_differing(trained_on, model.fingerprint(), kind, override)


def refuse_differing(
    trained_on: Mapping[str, Any], fingerprint: Mapping[str, Any], kind: str, override: str = ""
) -> None:
    """`require_same_model` for the fingerprint of a model, which may lack its parameters.

    Raises:
        InputError: names both models.
    """
    if key := differing(trained_on, fingerprint):
        theirs = trained_on.get(key, family(str(trained_on.get("name"))))
        raise InputError(
            f"the {kind} was trained on {trained_on.get('name')!r} ({key} {theirs}) and the model is"
            f" {fingerprint.get('name')!r} ({key} {fingerprint[key]}): load the model it was trained on{override}"
        )
    one, other = trained_on.get("name"), fingerprint.get("name")
    if one and other and one != other and not _both(trained_on, fingerprint, "parameters"):
        taken = f"the {kind} was trained on {one!r}, and {other!r} is taken for it"
        if same(one, other):
            _say(logging.INFO, f"{taken}: both are names of one model")
        else:
            _say(logging.WARNING, f"{taken}: a path tells no other model, and no family, layers or widths differ")


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """The key in which fingerprints of two models differ; empty where they tell no difference.

    `parameters` where both have them; else `name`, or an entry of `SHAPE` where a name is a path that tells no model.
    """
    if _both(one, other, "parameters"):
        return "parameters" if one["parameters"] != other["parameters"] else ""
    if not _both(one, other, "name"):
        return ""
    known = same(str(one["name"]), str(other["name"]))
    if known is not None:
        return "" if known else "name"
    expected = [{"family": family(str(side["name"])), **side} for side in (one, other)]
    return next((key for key in SHAPE if _apart(*(side.get(key) for side in expected))), "")


def _both(one: Mapping[str, Any], other: Mapping[str, Any], key: str) -> bool:
    return key in one and key in other


def _apart(one: Any, other: Any) -> bool:
    return None not in (one, other) and LENS not in (one, other) and one != other


@functools.cache
def _say(level: int, sentence: str) -> None:
    """Log a sentence, once in a process: a command checks its dictionary several times."""
    log.log(level, "%s", sentence)
