"""Checks of a `Trainer` before it starts or goes on: each raises one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from ...kernels.dispatch import choose
from ...lab.errors import InputError
from ...lab.models.sites import Site
from ..architectures.sae import PenaltyConfig, SparseAutoencoder
from ..place import CROSSCODER, Place
from .config import TrainConfig


def placed(dictionary: SparseAutoencoder, site: Place | Site | Sequence[Site], target: Site | None) -> Place:
    """The place of a dictionary at the sites given; norm limits stay where the sites do.

    Raises:
        InputError: a target for a dictionary without d_out, none for one with it, or not one site for each source.
    """
    if isinstance(site, Place):
        return dictionary.place.named_as(site)
    own, sources = dictionary.place, (site,) if isinstance(site, Site) else tuple(site)
    if len(sources) != len(own.sources):
        raise InputError(
            f"{dictionary!r} reads {len(own.sources)} site(s), got {len(sources)}: give one for each source"
        )
    if target is None and own.targets:
        raise InputError(f"{dictionary!r} is a transcoder: give target=, the site it predicts")
    if target is not None and not own.targets:
        raise InputError(f"target {target} needs a dictionary with d_out, the width of that site: {dictionary!r}")
    place = Place.at(sources, () if target is None else (target,))
    return own if own.named and own.sites == place.sites else own.named_as(place)


def check_config(dictionary: SparseAutoencoder, config: TrainConfig, trained: bool) -> None:
    """Refuse what this dictionary cannot be trained with.

    Raises:
        InputError: k_start for an architecture whose k is a target or part of its shape, or out of range; an encoder
            of its own for one that has none; or a trained dictionary whose decoder rows are not of unit norm, or whose
            encoder does not subtract b_dec.
    """
    if config.k_start is not None and (isinstance(dictionary.config, PenaltyConfig) or not dictionary.k_is_free):
        raise InputError(f"k_start is for architectures that select by a k of their choice, not {dictionary!r}")
    if config.k_start is not None:
        replace(dictionary.config, k=config.k_start)
    if config.start != "tied" and dictionary.architecture == "mp":
        raise InputError(f"start={config.start!r} gives encoders weights of their own, and matching pursuit has none:"
                         " leave it out")  # fmt: skip
    if not trained:
        return
    if not dictionary.config.centre_input and not dictionary.place.targets:
        raise InputError(f"{dictionary!r} does not subtract b_dec from what it reads, as training does: start it anew")
    norms = dictionary.W_dec.square().sum(tuple(range(1, dictionary.W_dec.ndim))).sqrt()
    if dictionary.place.kind != CROSSCODER and not torch.allclose(norms, torch.ones_like(norms), atol=1e-3):
        low, high = float(norms.min()), float(norms.max())
        raise InputError(f"{dictionary!r} has decoder rows of norm {low:.3g} to {high:.3g}, and"
                         " training keeps them at 1: rescale each latent's code and decoder row first")  # fmt: skip


def check_graph(dictionary: SparseAutoencoder, config: TrainConfig) -> None:
    """Refuse a recorded step where it would differ from replay to replay.

    Raises:
        InputError: no Triton, or an option that reads the host in the step.
    """
    choice = choose(dictionary.W_dec.device, config.precision)
    varies = (
        dictionary.ragged or config.clip_norm or config.k_start or config.resample_every
        or config.optimizer not in ("adam", "active_row")
    )  # fmt: skip
    if config.cuda_graph and (choice.step != "triton" or varies):
        raise InputError(
            "cuda_graph=True needs Triton on a GPU, an architecture with k codes in every row, Adam or active_row, and"
            " none of clip_norm, k_start and resample_every; this is"
            f" {dictionary.architecture} on {dictionary.W_dec.device} ({choice.why})"
        )


RENAMED = {"optimiser": "optimizer", "mean": "average"}
"""Entries of checkpoints written before, and their names now."""


def current_names(state: dict[str, Any]) -> dict[str, Any]:
    """The state of a checkpoint with the entries' names of today."""
    return {RENAMED.get(name, name): value for name, value in state.items()}


def check_state(state: dict[str, Any], expected: dict[str, Any]) -> None:
    """Refuse a checkpoint of another run.

    Args:
        state: read from the checkpoint.
        expected: state of the trainer that is to continue.

    Raises:
        InputError: the dictionary has another shape, or an entry is missing.
    """
    saved, asked = (tuple(either["dictionary"]["W_dec"].shape) for either in (state, expected))
    if saved != asked:
        raise InputError(
            f"the checkpoint holds a dictionary of shape {saved}, this run asks for {asked}: use the run's own config"
        )
    if missing := sorted(expected.keys() - state.keys()):
        raise InputError(f"the checkpoint lacks {', '.join(missing)}: it is of an earlier version, "
                         "which cannot be continued; start the run anew")  # fmt: skip
