"""The grid file of a sweep: axes that no option is for, as JSON or TOML."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ....saes.sweeps.grid import ACROSS, AXES
from ....saes.training.trainer import TrainConfig
from ...errors import InputError, unknown
from ...storage import read_json
from ..dictionary_options import own_fields


def read_grid(path: Path) -> list[dict[str, Any]]:
    """The tables of a file: the whole file is one, or its `grid` is a list of them.

        [[grid]]
        architecture = "jumprelu"
        penalty = ["quadratic", "tanh"]

        [[grid]]
        architecture = ["topk", "batchtopk"]
        site = ["resid_mid.12 -> mlp_out.12", "resid_mid.10-13 -> mlp_out.10-13"]
        skip = [false, true]
        training.aux_k = [0, 256]

    Raises:
        InputError: no such file, neither .json nor .toml, not valid, not tables, or a field that no architecture has.
    """
    if path.suffix not in (".json", ".toml"):
        raise InputError(f"a grid file ends in .json or .toml, got {path}")
    content = read_json(path, "grid file") if path.suffix == ".json" else _toml(path)
    tables = content.get("grid", [content]) if isinstance(content, Mapping) else content
    if not isinstance(tables, list) or not tables or not all(isinstance(table, Mapping) and table for table in tables):
        raise InputError(f"{path} holds no grid: write one table of axes, or a list of them under 'grid'")
    flat_tables = [_flat(table) for table in tables]
    allowed = [*AXES, *ACROSS, *own_fields(), *(f"training.{name}" for name in TrainConfig.__dataclass_fields__)]
    for name in (name for table in flat_tables for name in table):
        if name not in allowed:
            raise unknown(f"axis in {path}", name, allowed)
    return flat_tables


def _toml(path: Path) -> Any:
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"no such grid file: {path}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a grid file: not valid TOML ({error})") from None


def _flat(table: Mapping[str, Any]) -> dict[str, Any]:
    """`training` as names with a dot, as they may also be written."""
    inner = table.get("training")
    training = {f"training.{name}": value for name, value in inner.items()} if isinstance(inner, Mapping) else {}
    return {**{name: value for name, value in table.items() if name != "training" or not training}, **training}
