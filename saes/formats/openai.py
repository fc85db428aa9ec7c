"""OpenAI's sparse_autoencoder: one torch file, a state dict with `activation` and `activation_state_dict` in it.

Its loader standardises every row if, and only if, the activation is TopK: z = (x - mean) / (std + 1e-5), and the
output is times std plus mean again. Codes alone cannot undo that, so such a dictionary is only read on request, and
then expects (and returns) standardised rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...lab.errors import InputError, unknown
from ...lab.storage import atomic_path
from ..dictionary import Provenance
from .format import Format
from .losses import Losses
from .portable import IMPORTED, Portable, centre, recast
from .table import Key, Raw, dtypes, put, take
from .untrusted import read_pt

NAME, WEIGHTS = "openai", "autoencoder.pt"

TABLE = {"encoder.weight": Key("W_enc", "nd"), "decoder.weight": Key("W_dec", "dn"), "pre_bias": Key("b_dec", "d"),
         "latent_bias": Key("b_enc", "n")}  # fmt: skip
STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")
ACTIVATIONS = {"ReLU": "relu", "TopK": "topk"}
STANDARDISED = "TopK dictionaries there standardise every row, and the dictionary works on rows (x - mean) / std"


def load(path: Path) -> Raw:
    """Read the file; whatever is no tensor counts as config."""
    path = path / WEIGHTS if path.is_dir() else path
    state = read_pt(path)
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    return Raw(path, tensors, {name: value for name, value in state.items() if name not in tensors})


def parse(raw: Raw, losses: Losses) -> Portable:
    """ReLU, or TopK in standardised units."""
    name = raw.config.get("activation", "ReLU")
    if name not in ACTIVATIONS:
        raise unknown("activation", name, ACTIVATIONS)
    tensors = take(raw, TABLE, losses, ignored=STATISTICS)
    fields: dict[str, Any] = {}
    config: dict[str, Any] = {"activation": name}
    if name == "TopK":
        state = raw.config.get("activation_state_dict") or {}
        if not isinstance(state.get("k"), int) or state.get("postact_fn", "ReLU") != "ReLU":
            raise InputError(f"{raw.path}: activation_state_dict is {state!r}, expected a whole k and postact_fn ReLU")
        losses.lose(STANDARDISED)
        fields["k"] = state["k"]
        config["activation_state_dict"] = dict(state)
    kept = {"format": NAME, "config": config, "dtypes": dtypes(raw)}
    return Portable(ACTIVATIONS[name], tensors, fields, Provenance(training={IMPORTED: kept}))


def compose(portable: Portable, losses: Losses) -> Raw:
    """ReLU; TopK only if it was read from this format, or as one that will standardise its input."""
    kept = portable.kept(NAME)
    same = centre(recast(portable, ACTIVATIONS.values(), losses), True, losses)
    config: dict[str, Any] = {"activation": "ReLU"}
    if same.architecture == "topk":
        if not kept:
            losses.lose("TopK dictionaries there standardise every row, and this one was not trained so")
        config = {"activation": "TopK", "activation_state_dict": {"k": same.fields["k"], "postact_fn": "ReLU"}}
    n = same.n_latents
    counts = (torch.zeros(n, dtype=torch.long), torch.ones(n), torch.zeros(n))
    tensors = put(same.tensors, TABLE, kept.get("dtypes")) | dict(zip(STATISTICS, counts, strict=True))
    return Raw(Path(), tensors, config)


def store(raw: Raw, folder: Path) -> None:
    """Write the file."""
    with atomic_path(folder / WEIGHTS) as temporary:
        torch.save({**raw.tensors, **raw.config}, temporary)


def _recognise(path: Path) -> bool:
    return (path / WEIGHTS).is_file() or (path.is_file() and path.suffix == ".pt")


FORMAT = Format(NAME, _recognise, load, parse, (WEIGHTS,), compose, store)
