"""`hf:NAME[:config][:split][#field]`: rows of a Hugging Face data set, streamed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

from ..errors import InputError
from .documents import Document, content_of


class HubSource:
    """One document per row of a data set on the Hugging Face hub or in a local folder.

    Args:
        name: `owner/name`, or the path of a folder with parquet, json or csv files.
        config: the data set's configuration; empty for its default.
        split: the split; empty for `train`. An empty config is written `hf:NAME::test`.
        field: the column; None takes `messages` or `text`.
    """

    def __init__(self, name: str, config: str = "", split: str = "", field: str | None = None) -> None:
        if not name:
            raise InputError("hf: names no data set: write hf:NAME, for example hf:NeelNanda/pile-10k")
        parts = f"hf:{name}:{config}:{split}".rstrip(":")
        self.name = parts + (f"#{field}" if field else "")
        self._dataset, self._config, self._split, self._field = name, config, split or "train", field

    @cached_property
    def _builder(self) -> Any:
        from datasets import load_dataset_builder

        try:
            return load_dataset_builder(self._dataset, self._config or None)
        except (OSError, ValueError) as error:
            raise self._unusable(error) from error

    @cached_property
    def _rows(self) -> Any:
        try:
            return self._builder.as_streaming_dataset(split=self._split)
        except (OSError, ValueError) as error:
            raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> InputError:
        reason = (str(error) or type(error).__name__).strip().splitlines()[0].rstrip(".")
        return InputError(
            f"cannot read {self.name}: {reason}; the form is hf:NAME[:config][:split][#field], and "
            "NAME must be reachable on the hub, in the local cache, or a folder"
        )

    def read(self, start: int = 0) -> Iterator[Document]:
        """The rows from the `start`-th on; those before are skipped by the `datasets` library."""
        rows = self._rows.skip(start) if start else self._rows
        for number, row in enumerate(rows, start):
            where = f"row {number} of {self.name}"
            yield Document(number, content_of(row, self._field, where), where)

    def fingerprint(self) -> dict[str, Any]:
        """Version of the data set in `datasets`: the hub's revision, or size and time of local files."""
        builder = self._builder
        key = f"{builder.hash}/{builder.config_id}/{self._split}/{self._field or ''}"
        return {
            "hash": key,
            "config": builder.config.name,
            "split": self._split,
            "version": str(builder.info.version),
        }
