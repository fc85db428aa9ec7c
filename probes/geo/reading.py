"""Activations of place names: one row of neurons or latents a text, pooled over its tokens.

Rows are read in parts, each a file that is whole or absent, so that an interrupted reading goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from scipy import sparse
from torch import Tensor
from tqdm import tqdm

from ...lab.errors import InputError, unknown
from ...lab.models.hooked_model import HookedModel
from ...lab.models.sites import Site
from ...lab.rng import generator
from ...lab.runs.prompts import Prompt, mark, read_prompts
from ...lab.sequences import texts_of
from ...lab.storage import read_tensors, write_tensors
from ...lab.text.tokenization import TextTokenizer
from ...saes.architectures.sae import SAEConfig
from ...saes.architectures.topk import TopK
from ...saes.dictionary import Dictionary
from ...saes.evaluation.nulls import untrained
from ..prompts import read_texts

PART = 256
"""Texts a file."""
TOKENS = 64
"""Tokens of a text that are read; the rest is cut off."""
FIT_TEXTS = 512
"""Texts that the untrained dictionary takes mean and scale from."""
Pooling = Literal["mean", "max", "last"]
Values = Float32[np.ndarray, "texts units"] | sparse.csc_array
"""One row a text: dense for neurons, sparse for latents."""


class Reader(NamedTuple):
    """Units that are read: the coordinates of a site, or the latents of a dictionary on it."""

    name: str
    site: Site
    dictionary: Dictionary | None = None


def readers_of(
    model: HookedModel, sites: Sequence[str], dictionary: Dictionary | None, texts: Sequence[str], seed: int = 0
) -> list[Reader]:
    """Neurons of every site; latents of the dictionary, and of an untrained one that fires as often on these texts.

    Raises:
        InputError: neither a site nor a dictionary, a site the model has not, or another model's dictionary.
    """
    texts = texts_of(texts)
    found = [Reader(str(site), site) for site in dict.fromkeys(model.site(site) for site in sites)]
    if dictionary is not None:
        place = dictionary.check(model)
        site, limit = place.site, place.source.norm_limit
        x, _ = read_texts(model, site, texts[:FIT_TEXTS], tokens=TOKENS, norm_limit=limit)
        x = x.to(dictionary.W_dec.device)
        k = max(1, round(float(dictionary.encode(x).l0.float().mean())))
        shape = TopK(SAEConfig(dictionary.d_in, dictionary.n_latents, min(k, dictionary.n_latents)))
        null = untrained(shape, x, k, generator(seed, "untrained latents of places"))
        null.place, null.provenance = dictionary.place, dictionary.provenance
        found += [Reader(f"latents of {site}", site, dictionary), Reader(f"untrained latents of {site}", site, null)]
    if not found:
        raise InputError("nothing to read: name sites, or give a dictionary")
    return found


def read_values(
    model: HookedModel,
    readers: Sequence[Reader],
    texts: Sequence[str],
    folder: Path | None = None,
    *,
    pooling: Pooling = "mean",
    batch: int = 32,
    name: str = "texts",
    progress: bool = False,
) -> dict[str, Values]:
    """One row for every text, in order, by reader; one pass of the model serves all readers, equal texts are read once.

    The BOS takes no part. Rows above a dictionary's norm limit are left out of its codes, but in a text that has no
    others.

    Args:
        folder: where parts are kept, and taken from where they are there.
        name: begins the names of their files.

    Raises:
        InputError: an unknown pooling, a text without a token, or activations that are not finite.
    """
    if pooling not in get_args(Pooling):
        raise unknown("pooling", pooling, get_args(Pooling))
    texts = texts_of(texts)
    unique = list(dict.fromkeys(texts))
    tokenizer = TextTokenizer(model.tokenizer)
    cut = TOKENS + (tokenizer.bos is not None)
    prompts = [prompt._replace(ids=prompt.ids[:cut]) for prompt in mark(tokenizer, [(text, "") for text in unique])]
    parts = []
    with tqdm(total=len(prompts), desc=f"read {name}", unit="text", disable=not progress) as bar:
        for begin in range(0, len(prompts), PART):
            path = None if folder is None else folder / f"{name}-{begin // PART:04d}.safetensors"
            if path is not None and path.exists():
                part = read_tensors(path)
            else:
                part = _read_part(model, readers, prompts[begin : begin + PART], pooling, batch)
                if path is not None:
                    write_tensors(path, part)
            parts.append(part)
            bar.update(min(PART, len(prompts) - begin))
    place = {text: i for i, text in enumerate(unique)}
    order = np.array([place[text] for text in texts])
    return {reader.name: _joined(reader, parts, order) for reader in readers}


def n_units(values: Values) -> int:
    """How many units there are."""
    return values.shape[1]  # pyright: ignore[reportOptionalSubscript]


def live_units(values: Values) -> Int64[np.ndarray, " live"]:
    """The numbers of the units that are not constant."""
    low, high = (edge.toarray() if sparse.issparse(edge) else edge for edge in (values.min(axis=0), values.max(axis=0)))
    return np.flatnonzero(np.asarray(low).reshape(-1) != np.asarray(high).reshape(-1))


def columns_of(values: Values, chosen: slice | np.ndarray) -> np.ndarray:
    """Some columns, dense and in fp64."""
    part = values[:, chosen]
    return (part.toarray() if isinstance(part, sparse.csc_array) else np.asarray(part)).astype(np.float64)


@torch.no_grad()
def _read_part(
    model: HookedModel, readers: Sequence[Reader], prompts: Sequence[Prompt], pooling: Pooling, batch: int
) -> dict[str, Tensor]:
    """The rows of some prompts: `name` dense, or `name/indptr`, `name/indices`, `name/values`."""
    start = 0 if TextTokenizer(model.tokenizer).bos is None else 1
    rows: dict[str, list[Tensor]] = {reader.name: [torch.empty(0)] * len(prompts) for reader in readers}
    sites = list(dict.fromkeys(reader.site for reader in readers))
    for part in read_prompts(model, sites, prompts, batch=batch):
        own = part.batch.own(start)
        for reader in readers:
            acts = part.acts[reader.site].float()
            if not bool(acts[own.to(acts.device)].isfinite().all()):
                raise InputError(
                    f"the model gives nan or inf at {reader.site} on place names: load it with --dtype fp32"
                )
            for i, row in zip(part.chosen, _pooled(reader, acts, own.to(acts.device), pooling), strict=True):
                rows[reader.name][i] = row
    found = {}
    for reader in readers:
        dense = torch.stack(rows[reader.name])
        if reader.dictionary is None:
            found[reader.name] = dense
        else:
            code = sparse.csr_array(dense.numpy())
            for key, value in {"indptr": code.indptr, "indices": code.indices, "values": code.data}.items():
                found[f"{reader.name}/{key}"] = torch.from_numpy(value)
    return found


def _pooled(
    reader: Reader,
    acts: Float32[Tensor, "batch tokens d"],
    own: Bool[Tensor, "batch tokens"],
    pooling: Pooling,
) -> Float32[Tensor, "batch units"]:
    limit = None if reader.dictionary is None else reader.dictionary.place.source.norm_limit
    if limit is not None:
        short = own & (acts.norm(dim=2) <= limit)
        own = torch.where(short.any(1, keepdim=True), short, own)
    if pooling == "last":
        places = torch.arange(own.shape[1], device=own.device)
        own = own & (places == torch.where(own, places, -1).amax(1, keepdim=True))
    units, text = acts[own], own.nonzero()[:, 0]
    if reader.dictionary is not None:
        units = reader.dictionary.encode(units).to_dense()
    shape = (len(acts), units.shape[1])
    if pooling == "max":
        return units.new_full(shape, -torch.inf).scatter_reduce_(0, text[:, None].expand_as(units), units, "amax").cpu()
    return (units.new_zeros(shape).index_add_(0, text, units) / own.sum(1, keepdim=True)).cpu()


def _joined(reader: Reader, parts: Sequence[dict[str, Tensor]], order: np.ndarray) -> Values:
    if reader.dictionary is None:
        return torch.cat([part[reader.name] for part in parts]).numpy()[order]
    n = reader.dictionary.n_latents
    pieces = []
    for part in parts:
        indptr, indices, values = (part[f"{reader.name}/{key}"].numpy() for key in ("indptr", "indices", "values"))
        pieces.append(sparse.csr_array((values, indices, indptr), shape=(len(indptr) - 1, n)))
    return sparse.csc_array(sparse.csr_array(sparse.vstack(pieces))[order])
