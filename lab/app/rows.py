"""Rows to train on and held-out rows, for benchmarks that read the same rows many times.

No document has rows on both sides: text is split by document, and so are the rows of a store.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from ..errors import InputError
from ..models.sites import Site
from ..rng import generator
from ..runs.first_rows import FirstRows
from ..runs.read import read
from ..streams.activation_stream import ActivationStream, StreamConfig
from ..streams.store import ActivationStore
from .options import ModelText

log = logging.getLogger(__name__)

SLACK = 4096
"""Rows of a store that are read beyond those asked for, where it has them: whole documents rarely add up exactly."""


def split_rows(
    source: ModelText, store: Path | None, site: Site, wanted: int, held_out: int, batch: int
) -> tuple[Float32[Tensor, "wanted d"], Float32[Tensor, "held_out d"]]:
    """Shuffled activations of a site, and held-out ones from documents of which no row is among the first.

    Raises:
        InputError: the text or the store ends before there are enough, or the model, site or text cannot be had.
    """
    config = StreamConfig(batch=batch, buffer=4 * batch)
    if store is not None:
        return _from_store(ActivationStore.open(store), site, wanted, held_out, config)
    source.check([site])
    model = source.open_model()
    log.info("harvesting %d rows", wanted + held_out)
    stream = ActivationStream(model, source.open_corpus(model, split="train"), [site], config=config)
    rows = _collect(stream, site, wanted).acts.float()
    other = ActivationStream(
        model,
        source.open_corpus(model, split="heldout"),
        [site],
        norm_limit={site: stream.norm_limit[site]},
        config=config,
    )
    return rows, _collect(other, site, held_out).acts.float()


def _from_store(
    store: ActivationStore, site: Site, wanted: int, held_out: int, config: StreamConfig
) -> tuple[Float32[Tensor, "wanted d"], Float32[Tensor, "held_out d"]]:
    """Rows of a store, parted by document."""
    count = max(wanted + held_out, min(store.rows, wanted + held_out + SLACK))
    first = _collect(ActivationStream.from_store(store, sites=[site], config=config), site, count)
    held = held_documents(first.origin[:, 0], held_out, count - wanted)
    if int(held.sum()) < held_out:
        raise InputError(
            f"the documents of {store.folder} do not part into {wanted} rows to train on and {held_out} held-out "
            f"rows: ask for fewer, or harvest at least {wanted + held_out + SLACK}"
        )
    acts = first.acts.float()
    return acts[~held][:wanted], acts[held][:held_out]


def held_documents(documents: Int64[Tensor, " rows"], held_out: int, most: int) -> Bool[Tensor, " rows"]:
    """Mark all rows of some documents: at least `held_out` rows where documents allow it, at most `most`.

    Args:
        documents: the document of every row.
    """
    numbers, inverse, sizes = documents.unique(return_inverse=True, return_counts=True)
    chosen, total = torch.zeros(len(numbers), dtype=torch.bool), 0
    for number in torch.randperm(len(numbers), generator=generator(0, "held-out documents")).tolist():
        if total < held_out and total + int(sizes[number]) <= most:
            chosen[number], total = True, total + int(sizes[number])
    return chosen[inverse]


def _collect(stream: ActivationStream, site: Site, rows: int) -> FirstRows:
    """The first `rows` rows of a stream."""
    first = FirstRows(site, rows)
    read(stream, first, description="rows")
    if first.rows < rows:
        raise InputError(f"{rows} rows are needed and the source ends after {first.rows}: fewer --steps, or more text")
    return first
