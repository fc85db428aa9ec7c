"""Key tables: which tensor of theirs is which of ours, and how its axes lie.

A table maps a key of the other format to `Key(ours, axes)`. Axes are letters: n latents, d input width, o output
width. Sizes are read off the vectors (biases), so that a transposed matrix is refused; where d = n the shapes cannot
tell, and the format's own rule for the key decides alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...lab.errors import InputError
from .losses import Losses

OURS = {"W_enc": "nd", "W_dec": "no", "W_skip": "od"}
"""Axes of our matrices; all else is a vector or a scalar."""

MISALIGNED, ALIGNED = 0.1, 0.5
"""A square W_enc is taken for transposed if encoder and decoder rows agree less than the first (mean cosine), and
more than the second once it is turned round. Random weights give about 0 both times and pass."""


class Key(NamedTuple):
    """One tensor of a foreign file."""

    ours: str
    """Our name for it."""
    axes: str
    """Its axes as stored there."""


class Raw(NamedTuple):
    """A foreign file's content, untouched."""

    path: Path
    tensors: dict[str, Tensor]
    config: dict[str, Any]


def take(
    raw: Raw,
    table: Mapping[str, Key],
    losses: Losses,
    ignored: Collection[str] = (),
    sizes: Mapping[str, int] | None = None,
) -> dict[str, Tensor]:
    """Our tensors, in our orientation and fp32.

    Args:
        ignored: tensors that may be there and are not read.
        sizes: sizes of axes that the config tells; others are read off the vectors.

    Raises:
        InputError: a tensor is missing, unexpected, of another shape, not finite or (unless lossy) of more than fp32.
    """
    tensors = {name: tensor for name, tensor in raw.tensors.items() if name not in ignored}
    for name in table:
        if name not in tensors:
            raise InputError(f"{raw.path} holds no {name}: its tensors are {', '.join(sorted(tensors)) or 'none'}")
    if extra := sorted(set(tensors) - set(table)):
        raise InputError(f"{raw.path} holds {', '.join(extra)}, which no {'/'.join(table)} dictionary has")
    known = _sizes(raw, table, sizes or {})
    ours = {}
    for name, key in table.items():
        shape, expected = tuple(tensors[name].shape), tuple(known[axis] for axis in key.axes)
        if shape != expected:
            turned = " (it looks transposed)" if len(shape) == 2 and shape == expected[::-1] else ""
            raise InputError(f"{raw.path}: {name} has shape {shape}, expected {expected}{turned}")
        tensor = _single(tensors[name], name, losses)
        ours[key.ours] = tensor.T.contiguous() if _turned(key) else tensor
        if not torch.isfinite(ours[key.ours]).all():
            raise InputError(f"{raw.path}: {name} holds values that are not finite")
    _refuse_turned(raw.path, ours)
    return ours


def _turned(key: Key) -> bool:
    """True if the format stores the matrix with its axes swapped; the output width of an SAE is d too."""
    ours = OURS.get(key.ours, "")
    return len(set(key.axes)) == 2 and key.axes != ours and key.axes[::-1] in (ours, ours.replace("o", "d"))


def _sizes(raw: Raw, table: Mapping[str, Key], known: Mapping[str, int]) -> dict[str, int]:
    sizes = dict(known)
    for name, key in sorted(table.items(), key=lambda item: len(item[1].axes)):
        shape = raw.tensors[name].shape
        if len(shape) != len(key.axes):
            raise InputError(f"{raw.path}: {name} has {len(shape)} dimensions, expected {len(key.axes)}")
        for axis, size in zip(key.axes, shape, strict=True):
            sizes.setdefault(axis, size)
    return sizes


def _single(tensor: Tensor, name: str, losses: Losses) -> Tensor:
    if not tensor.is_floating_point():
        raise InputError(f"{losses.subject}: {name} holds {tensor.dtype} values, expected floating point")
    single = tensor.detach().float()
    if tensor.dtype == torch.float64 and not torch.equal(single.double(), tensor):
        losses.lose(f"{name} is fp64 and is kept as fp32")
    return single


def _refuse_turned(path: Path, ours: Mapping[str, Tensor]) -> None:
    if not {"W_enc", "W_dec"} <= ours.keys() or ours["W_enc"].shape != ours["W_dec"].shape:
        return
    W_enc, W_dec = ours["W_enc"], ours["W_dec"]
    if W_enc.shape[0] != W_enc.shape[1]:
        return
    if _agreement(W_enc, W_dec) < MISALIGNED and _agreement(W_enc.T, W_dec) > ALIGNED:
        raise InputError(f"{path}: W_enc is square and looks transposed: encoder and decoder rows only agree turned")


def _agreement(a: Tensor, b: Tensor) -> float:
    return float(torch.cosine_similarity(a, b, dim=-1).mean())


def put(
    tensors: Mapping[str, Tensor], table: Mapping[str, Key], dtypes: Mapping[str, str] | None = None
) -> dict[str, Tensor]:
    """Their tensors from ours: axes turned where the table says so, in the dtypes given where that is exact."""
    theirs = {}
    for name, key in table.items():
        tensor = tensors[key.ours]
        theirs[name] = _in_dtype((tensor.T if _turned(key) else tensor).contiguous(), (dtypes or {}).get(name))
    return theirs


def _in_dtype(tensor: Tensor, name: str | None) -> Tensor:
    if name is None:
        return tensor
    cast = tensor.to(getattr(torch, name))
    return cast if torch.equal(cast.to(tensor.dtype), tensor) else tensor


def dtypes(raw: Raw) -> dict[str, str]:
    """Names of the dtypes that are not fp32, by key."""
    kinds = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in raw.tensors.items()}
    return {name: kind for name, kind in kinds.items() if kind != "float32" and raw.tensors[name].is_floating_point()}
