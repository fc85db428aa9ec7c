"""`hf:NAME[:config][:split][#field]`: rows of a Hugging Face data set, streamed."""

from __future__ import annotations

import itertools
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
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
        self._dataset = str(Path(name).expanduser()) if name.startswith("~") else name
        self._config, self._split, self._field = config, split or "train", field

    @cached_property
    def _builder(self) -> Any:
        from datasets import load_dataset_builder

        with self._readable():
            return load_dataset_builder(self._dataset, self._config or None)

    @cached_property
    def _rows(self) -> Any:
        builder = self._builder
        with self._readable():
            return builder.as_streaming_dataset(split=self._split)

    @contextmanager
    def _readable(self, after: int | None = None) -> Iterator[None]:
        """Turn what `datasets` and the readers below it raise into one sentence.

        Those are errors of the network, of files (pyarrow's are ValueErrors), of the hub's data sets with a loading
        script (RuntimeError), of packages for formats that are not installed, and of values beyond a type.
        """
        from datasets.exceptions import DatasetsError

        damaged = (EOFError, lzma.LZMAError, zlib.error)
        failures = (OSError, ValueError, RuntimeError, ImportError, ArithmeticError, LookupError, TypeError, *damaged)
        try:
            yield
        except (DatasetsError, *failures) as error:
            raise self._unusable(error, after) from error

    def _unusable(self, error: BaseException, after: int | None) -> InputError:
        cause = error
        while type(cause).__name__.startswith("Dataset") and (cause.__cause__ or cause.__context__) is not None:
            cause = cause.__cause__ or cause.__context__ or cause  # "an error occurred while generating the dataset"
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0].rstrip(".")
        if "scripts are no longer supported" in reason:
            return InputError(
                f"{self.name} has a loading script, which the datasets library no longer runs ({reason}): name a "
                "copy of its files (hf:FOLDER with parquet, json or csv), or write them as jsonl:PATH"
            )
        if after is not None:
            return InputError(
                f"{self.name} breaks after {after} rows ({reason}): correct its file there, or set a limit of documents"
            )
        return InputError(
            f"cannot read {self.name}: {reason}; the form is hf:NAME[:config][:split][#field], and "
            "NAME must be reachable on the hub, in the local cache, or a folder"
        )

    def read(self, start: int = 0) -> Iterator[Document]:
        """The rows from the `start`-th on; those before are skipped by the `datasets` library.

        Raises:
            InputError: the data set cannot be opened, has a loading script, or breaks at a row; names it.
        """
        opened = self._rows
        with self._readable():
            rows = iter(opened.skip(start) if start else opened)
        for number in itertools.count(start):
            with self._readable(after=number):
                row = next(rows, None)
            if row is None:
                return
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
