"""Matching pursuit in SAELens: steps, stopping rules, and a `b_dec` used on both sides or on neither."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...lab.errors import InputError
from .losses import Losses
from .portable import Portable
from .untrusted import number

DEFAULTS = {"residual_threshold": 1e-2, "max_iterations": None, "stop_on_duplicate_support": True}
"""Of its config; without max_iterations there are d_in steps."""


def steps(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Our config fields.

    Args:
        path: of the config, for messages.
    """
    theirs = DEFAULTS | config
    most = "d_in" if theirs["max_iterations"] is None else "max_iterations"
    return {
        "k": int(number(path, theirs, most)),
        "residual_threshold": max(0.0, float(number(path, theirs, "residual_threshold"))),
        "once": bool(theirs["stop_on_duplicate_support"]),
    }


def drop_unused_bias(tensors: dict[str, Tensor], fields: dict[str, Any], losses: Losses) -> None:
    """Set b_dec to zero, in place, where their forward leaves it out; ours always adds it."""
    if fields.get("centre_input", True) or not tensors["b_dec"].any():
        return
    losses.lose("its b_dec is neither subtracted nor added there, and becomes zero")
    tensors["b_dec"] = torch.zeros_like(tensors["b_dec"])


def told(portable: Portable, config: dict[str, Any], losses: Losses) -> dict[str, Any]:
    """The fields of their config; none where `config` says the same already.

    Raises:
        InputError: b_dec is only added, which theirs cannot do, or a loss that was not asked for.
    """
    fields = portable.fields
    if fields.get("tolerance"):
        losses.lose(f"tolerance is {fields['tolerance']}: rows will spend all steps")
    if not portable.centred and portable.tensors["b_dec"].any():
        raise InputError(f"{losses.subject}: a matching pursuit there adds b_dec only if it subtracts it")
    ours = {name: fields[name] for name in ("k", "residual_threshold", "once")}
    if "residual_threshold" in config and steps(Path("cfg.json"), config) == ours:
        return {}
    return {
        "residual_threshold": ours["residual_threshold"],
        "max_iterations": ours["k"],
        "stop_on_duplicate_support": ours["once"],
    }
