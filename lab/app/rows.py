"""Rows to train on and held-out rows, for benchmarks that read the same rows many times."""

from __future__ import annotations

import logging
from pathlib import Path

from jaxtyping import Float32
from torch import Tensor

from ..errors import InputError
from ..models.sites import Site
from ..runs.first_rows import FirstRows
from ..runs.read import read
from ..streams.activation_stream import ActivationStream, StreamConfig
from ..streams.store import ActivationStore
from .options import ModelText

log = logging.getLogger(__name__)


def split_rows(
    source: ModelText, store: Path | None, site: Site, wanted: int, held_out: int, batch: int
) -> tuple[Float32[Tensor, "wanted d"], Float32[Tensor, "held_out d"]]:
    """Shuffled activations of a site; held-out ones come from held-out documents, or are the last of a store's.

    Raises:
        InputError: the text or the store ends before there are enough.
    """
    config = StreamConfig(batch=batch, buffer=4 * batch)
    if store is not None:
        stream = ActivationStream.from_store(ActivationStore.open(store), sites=[site], config=config)
        rows = _collect(stream, site, wanted + held_out)
        return rows[:-held_out], rows[-held_out:]
    model = source.open_model()
    log.info("harvesting %d rows", wanted + held_out)
    parts = []
    for split, rows in (("train", wanted), ("heldout", held_out)):
        stream = ActivationStream(model, source.open_corpus(model, split=split), [site], config=config)
        parts.append(_collect(stream, site, rows))
    return parts[0], parts[1]


def _collect(stream: ActivationStream, site: Site, rows: int) -> Float32[Tensor, "rows d"]:
    """The first `rows` rows of a stream."""
    first = FirstRows(site, rows)
    read(stream, first, description="rows", progress=False)
    if first.rows < rows:
        raise InputError(f"{rows} rows are needed and the source ends after {first.rows}: fewer --steps, or more text")
    return first.acts.float()
