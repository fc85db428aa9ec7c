"""Features on disk: parquet tables that pandas and DuckDB read as they are, and `features.json`, written last.

latents.parquet    latent, count, maximum, bins                          a row for every latent
examples.parquet   latent, drawn, octave, copies, value, doc, offset, tokens, acts     sorted by latent
logits.parquet     latent, top_tokens, top_values, bottom_tokens, bottom_values        if there are any
texts.parquet      token, text
features.json      {schema, measured, l0, latents, source}
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...lab.errors import InputError
from ...lab.storage import atomic_path, read_json, write_json
from .blocks import Windows
from .examples import ExampleTable, Logits

if TYPE_CHECKING:
    import pyarrow as pa

    from .feature_set import Features

SCHEMA = 1
DESCRIPTION = "features.json"
STRONGEST, RANDOM = "strongest", "random"
ROW_GROUP = 2048
"""Rows decoded to read one latent."""


def save(features: Features, folder: Path | str) -> Path:
    """Write `features` into `folder`, which is created. The description is written last."""
    folder = Path(folder)
    (folder / DESCRIPTION).unlink(missing_ok=True)
    everyone = np.arange(features.n_latents)
    columns = {
        "latent": everyone,
        "count": features.count,
        "maximum": features.maximum,
        "bins": features.bins,
    }
    _write(folder / "latents.parquet", columns)
    _write(folder / "examples.parquet", _example_columns(features))
    if features.logits is not None:
        _write(folder / "logits.parquet", {"latent": features.latents, **features.logits._asdict()})
    else:
        (folder / "logits.parquet").unlink(missing_ok=True)
    _write(
        folder / "texts.parquet",
        {"token": np.array(list(features.texts)), "text": list(features.texts.values())},
    )
    description = {
        "schema": SCHEMA,
        "measured": features.measured,
        "l0": features.l0.tolist(),
        "latents": features.latents.tolist(),
        "source": features.source,
    }
    write_json(folder / DESCRIPTION, description)
    return folder


def load(folder: Path | str) -> dict[str, Any]:
    """Read a folder of features: the fields of `Features`, by name.

    Raises:
        InputError: not such a folder, another schema, or a damaged table; names the file.
    """
    folder = Path(folder)
    description = read_json(folder / DESCRIPTION, "description of features")
    if not isinstance(description, dict) or description.get("schema") != SCHEMA:
        schema = description.get("schema") if isinstance(description, dict) else None
        raise InputError(f"{folder / DESCRIPTION} has schema {schema!r}, this version reads {SCHEMA}")
    latents, examples, texts = (_read(folder / f"{name}.parquet") for name in ("latents", "examples", "texts"))
    logits = None
    if (folder / "logits.parquet").exists():
        read = _read(folder / "logits.parquet")
        logits = Logits(*(_array(read, name) for name in Logits._fields))
    return dict(
        source=description["source"],
        measured=description["measured"],
        count=_array(latents, "count"),
        maximum=_array(latents, "maximum"),
        bins=_array(latents, "bins"),
        l0=np.array(description["l0"], np.int64),
        latents=np.array(description["latents"], np.int64),
        strongest=_examples(examples, STRONGEST),
        random=_examples(examples, RANDOM),
        logits=logits,
        texts=dict(zip(texts["token"].to_pylist(), texts["text"].to_pylist(), strict=True)),
    )


def _example_columns(features: Features) -> dict[str, Any]:
    tables = (features.strongest, features.random)
    latent = np.concatenate([table.latent for table in tables])
    order = np.argsort(latent, kind="stable")
    drawn = np.repeat([STRONGEST, RANDOM], [len(table.latent) for table in tables])
    columns = {"latent": latent, "drawn": drawn}
    for name in ("octave", "copies"):
        columns[name] = np.concatenate([getattr(table, name) for table in tables])
    for name, parts in zip(Windows._fields, zip(*(table.windows for table in tables), strict=True), strict=True):
        columns[name] = np.concatenate(parts)
    return {name: column[order] for name, column in columns.items()}


def _examples(table: pa.Table, drawn: str) -> ExampleTable:
    chosen = np.flatnonzero(np.array(table["drawn"].to_pylist()) == drawn)
    windows = Windows(*(_array(table, name)[chosen] for name in Windows._fields))
    latent, octave, copies = (_array(table, name)[chosen] for name in ("latent", "octave", "copies"))
    return ExampleTable(latent, octave, copies, windows)


def _write(path: Path, columns: dict[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def arrow(column: Any) -> pa.Array:
        if getattr(column, "ndim", 1) == 1:
            return pa.array(column)
        return pa.FixedSizeListArray.from_arrays(pa.array(column.reshape(-1)), column.shape[1])

    table = pa.table({name: arrow(column) for name, column in columns.items()})
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", row_group_size=ROW_GROUP)


def _read(path: Path) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path)
    except FileNotFoundError:
        raise InputError(f"{path} is missing: restore the whole folder, or collect the features again") from None
    except pa.ArrowInvalid as error:
        raise InputError(f"{path} is damaged ({error}): restore it, or collect the features again") from None


def _array(table: pa.Table, name: str) -> np.ndarray:
    """A column as an array; fixed-size lists become rows."""
    import pyarrow as pa

    column = table[name].combine_chunks()
    if not pa.types.is_fixed_size_list(column.type):
        return column.to_numpy(zero_copy_only=False)
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), column.type.list_size)
