"""`PooledTexts`: a consumer that gathers one row a text (or every token of it) from a stream, at any number of sites.

Rows of a text come in any order, mixed with those of others; document and offset say where each belongs. What is
gathered does not depend on that order: `last` keeps the row of the largest offset, `max` the largest value of each
column, `mean` sums in fp64 and rounds once, `bag` sorts in the end. So a probe fitted on what the live stream gave is
the one fitted on what a store of the same rows replays.

    texts = PooledTexts(labels, ["resid_post.6", "resid_post.12"], model)
    train(ActivationStream(model, corpus, texts.sites, epochs=1), texts, run)
    texts.rows()["resid_post.12"]        # PooledRows
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from ..lab.errors import InputError, unknown
from ..lab.models.fingerprint import parameter_hash
from ..lab.models.hooked_model import HookedModel
from ..lab.models.sites import Site
from ..lab.sequences import integers_of
from ..lab.storage import State, read_json, read_tensors, write_json, write_tensors
from ..lab.streams.activation_stream import Batch
from ..saes.dictionary import Dictionary
from .labels import POOLINGS, Bags, Labels, PooledRows, Source, keep_largest

SCHEMA = 1
TENSORS, DESCRIPTION = "pooled.safetensors", "pooled.json"
CODES = " latents"
"""After a site's name, in the names of what is gathered: codes of a dictionary there."""


class PooledTexts:
    """Gathers activations, and codes where there is a dictionary, of labelled documents.

    Args:
        labels: one for each document, with its group and so on.
        sites: where to read.
        model: whose fingerprint the rows carry, and which splits `z` into heads.
        pooling: one of `POOLINGS`.
        dictionaries: their codes are gathered too, each at its own site.
        documents: the id of every label's document in the corpus; None numbers them from 0. Other documents are passed
            over.
        heads: give every head of `z` rows of its own.
        name: of the consumer.

    Raises:
        InputError: no site, one that the model lacks, an unknown pooling, a dictionary of another model, or ids that
            repeat.
    """

    kind = "pooled"

    def __init__(
        self,
        labels: Labels,
        sites: Sequence[Site | str],
        model: HookedModel,
        *,
        pooling: str = "last",
        dictionaries: Sequence[Dictionary] = (),
        documents: Sequence[int] | Int[Tensor, " units"] | None = None,
        heads: bool = False,
        name: str = "texts",
    ) -> None:
        if pooling not in POOLINGS:
            raise unknown("pooling", pooling, POOLINGS)
        self.labels, self.pooling, self.name = labels, pooling, name
        self.heads = model.n_heads if heads else 0
        named = list(map(model.site, sites))
        self._codes = {dictionary.check(model).site: dictionary for dictionary in dictionaries}
        self.sites = tuple(dict.fromkeys([*named, *self._codes]))
        if not self.sites:
            raise InputError("probes need at least one site, such as 'resid_post.12'")
        self._fingerprint = model.fingerprint()
        self._columns: dict[str, tuple[Site, Dictionary | None]] = {
            **{str(site): (site, None) for site in named},
            **{f"{site}{CODES}": (site, one) for site, one in self._codes.items()},
        }
        ids = torch.arange(len(labels)) if documents is None else integers_of(documents, "documents")
        if len(ids) != len(labels) or len(ids.unique()) != len(ids):
            raise InputError(
                f"{len(ids.unique())} different documents for {len(labels)} labels: give one document each"
            )
        self._ids, self._order = ids.sort()
        self.counts = torch.zeros(len(labels), dtype=torch.int64)
        """Tokens gathered of every text."""
        self._last = torch.full((len(labels),), -1)
        self._tables: dict[str, Tensor] = {}
        self._bags: dict[str, list[Tensor]] = {name: [] for name in self._columns}
        self._origins: list[Tensor] = []

    @property
    def done(self) -> bool:
        """Never: it reads to the end of the stream."""
        return False

    @torch.no_grad()
    def step(self, batch: Batch) -> None:
        """Gather the rows of labelled documents."""
        document, offset = batch.origin.T.contiguous()
        place = torch.searchsorted(self._ids, document).clamp_max(len(self._ids) - 1)
        mine, unit = self._ids[place] == document, self._order[place]
        rows = mine.nonzero()[:, 0]
        self.counts.index_add_(0, unit[rows], torch.ones_like(rows))
        if self.pooling == "last":
            rows = self._newest(rows, unit, offset)
        if not len(rows):
            return
        for name in self._columns:
            self._add(name, unit[rows], self._read(name, batch, rows))
        if self.pooling == "bag":
            self._origins.append(torch.stack([unit[rows], offset[rows]], 1))

    def _newest(self, rows: Tensor, unit: Tensor, offset: Tensor) -> Tensor:
        """Of these rows, the last of every unit if it comes after what is kept; it is kept from now on."""
        by_offset = rows[offset[rows].argsort(stable=True)]
        ordered = by_offset[unit[by_offset].argsort(stable=True)]
        ends = torch.ones(len(ordered), dtype=torch.bool)
        ends[:-1] = unit[ordered[1:]] != unit[ordered[:-1]]
        found = ordered[ends]
        found = found[offset[found] > self._last[unit[found]]]
        self._last[unit[found]] = offset[found]
        return found

    def _read(self, name: str, batch: Batch, rows: Tensor) -> Tensor:
        site, dictionary = self._columns[name]
        x = batch.acts[site].index_select(0, rows.to(batch.acts[site].device))
        if dictionary is None:
            return x.cpu()
        return dictionary.encode(x.to(dictionary.W_dec.device)).to_dense().cpu()

    def _add(self, name: str, unit: Tensor, x: Tensor) -> None:
        if self.pooling == "bag":
            self._bags[name].append(x.clone())
            return
        if name not in self._tables:
            empty = {"last": 0.0, "mean": 0.0, "max": -torch.inf}[self.pooling]
            dtype = torch.float64 if self.pooling == "mean" else torch.float32
            self._tables[name] = torch.full((len(self.labels), x.shape[1]), empty, dtype=dtype)
        table = self._tables[name]
        if self.pooling == "last":
            table[unit] = x.float()
        elif self.pooling == "mean":
            table.index_add_(0, unit, x.double())
        else:
            keep_largest(table, unit, x.float())

    @property
    def progress(self) -> tuple[int, int | None]:
        """Texts of which a token was gathered, and all texts; a stream in text order is about as far."""
        return int((self.counts > 0).sum()), len(self.labels)

    def merge(self, other: PooledTexts) -> None:
        """Take in what an equal measure gathered of other rows, of the same texts or of others.

        `last`, `max` and `bag` merge exactly, `mean` up to the order of summation.

        Raises:
            InputError: the other gathers other texts or columns, or pools in another way.
        """
        if (self.pooling, list(self._columns)) != (other.pooling, list(other._columns)) or not torch.equal(
            self._ids, other._ids
        ):
            raise InputError(
                f"{other.name} gathers {', '.join(other._columns)} of {len(other.labels)} texts by {other.pooling} and "
                f"{self.name} {', '.join(self._columns)} of {len(self.labels)} by {self.pooling}: merge equal measures"
            )
        later = other._last > self._last
        for name, theirs in other._tables.items():
            mine = self._tables.get(name)
            if mine is None:
                self._tables[name] = theirs.clone()
            elif self.pooling == "last":
                self._tables[name] = torch.where(later[:, None], theirs, mine)
            elif self.pooling == "mean":
                self._tables[name] = mine + theirs
            else:
                self._tables[name] = torch.maximum(mine, theirs)
        for name, parts in other._bags.items():
            self._bags[name] = self._bags[name] + parts
        self._origins = self._origins + other._origins
        self.counts = self.counts + other.counts
        self._last = torch.maximum(self._last, other._last)

    def metrics(self) -> dict[str, int | float]:
        """Texts seen so far, and tokens of them."""
        return {"texts": int((self.counts > 0).sum()), "tokens": int(self.counts.sum())}

    def gathered(self) -> dict[str, PooledRows | Bags]:
        """The pooled rows, by site (`resid_post.12`), head (`z.3 head 2`) or dictionary (`resid_post.12 latents`).

        Raises:
            InputError: a text gave no row.
        """
        if len(empty := (self.counts == 0).nonzero()):
            raise InputError(
                f"{len(empty)} of {len(self.labels)} texts gave no token to read, the first of them text "
                f"{int(empty[0])}: leave texts out that are empty or all special tokens"
            )
        labels = replace(self.labels, tokens=self.counts.clone())
        found: dict[str, PooledRows | Bags] = {}
        for name, (site, dictionary) in self._columns.items():
            codes = "" if dictionary is None else parameter_hash(dictionary)
            source = Source(str(site), None, codes, self.pooling, self._fingerprint)
            for one, columns in self._parts(source, self._whole(name)):
                found[str(one)] = self._units(columns, labels, one)
        return found

    def rows(self) -> dict[str, PooledRows]:
        """`gathered`, of a pooling that gives one row a text.

        Raises:
            InputError: as `gathered`, or the pooling is `bag`.
        """
        found = {name: one for name, one in self.gathered().items() if isinstance(one, PooledRows)}
        if not found:
            raise InputError("pooling='bag' keeps every token: take `gathered`, which gives Bags")
        return found

    def _whole(self, name: str) -> Tensor:
        if self.pooling == "bag":
            return torch.cat(self._bags[name])[self._bag_order()].float()
        table = self._tables[name]
        return (table / self.counts[:, None]).float() if self.pooling == "mean" else table.clone()

    def _bag_order(self) -> Tensor:
        origin = torch.cat(self._origins)
        by_offset = origin[:, 1].argsort(stable=True)
        return by_offset[origin[by_offset, 0].argsort(stable=True)]

    def _parts(self, source: Source, x: Tensor) -> list[tuple[Source, Tensor]]:
        """The columns whole, or head by head."""
        if not (self.heads and source.site.startswith("z.") and not source.dictionary):
            return [(source, x)]
        return [(replace(source, head=h), part) for h, part in enumerate(x.chunk(self.heads, 1))]

    def _units(self, x: Tensor, labels: Labels, source: Source) -> PooledRows | Bags:
        if self.pooling != "bag":
            return PooledRows(x, labels, source)
        return Bags(x, torch.cat(self._origins)[self._bag_order(), 0], labels, source)

    def state_dict(self) -> State:
        """Every table, and what was gathered of which text."""
        if self._origins:  # one tensor each, so that a checkpoint holds no more than what was read
            self._origins = [torch.cat(self._origins)]
            self._bags = {name: [torch.cat(parts)] for name, parts in self._bags.items()}
        bags = {name: parts[0] for name, parts in self._bags.items() if parts}
        origins = {"all": self._origins[0]} if self._origins else {}
        return {
            "counts": self.counts,
            "last": self._last,
            "tables": dict(self._tables),
            "bags": bags,
            "origins": origins,
        }

    def load_state_dict(self, state: State) -> None:
        """Continue where `state_dict` was taken."""
        self.counts, self._last = state["counts"].clone(), state["last"].clone()
        self._tables = {name: table.clone() for name, table in state.get("tables", {}).items()}
        bags = state.get("bags", {})
        self._bags = {name: [bags[name]] if name in bags else [] for name in self._columns}
        self._origins = list(state.get("origins", {}).values())

    def save(self, folder: Path) -> None:
        """Write what was gathered (see `load_pooled`)."""
        save_pooled(self.gathered(), folder)


def save_pooled(gathered: Mapping[str, PooledRows | Bags], folder: Path) -> None:
    """Write gathered rows that share their labels; the description is written last.

    Raises:
        InputError: nothing is given.
    """
    if not gathered:
        raise InputError(f"there is nothing to write into {folder}: gather some rows first")
    names = list(gathered)
    any_of = gathered[names[0]]
    tensors = {f"x/{number}": gathered[name].x for number, name in enumerate(names)}
    if isinstance(any_of, Bags):
        tensors["bag"] = any_of.bag
    labels = any_of.labels
    tensors |= {"y": labels.y, "groups": labels.groups}
    if labels.tokens is not None:
        tensors["tokens"] = labels.tokens
    write_tensors(folder / TENSORS, tensors)
    sources = [asdict(gathered[name].source) for name in names]
    write_json(folder / DESCRIPTION, {"schema": SCHEMA, "classes": list(labels.classes), "sources": sources})


def load_pooled(folder: Path | str) -> dict[str, PooledRows | Bags]:
    """Read what `save_pooled` wrote.

    Raises:
        InputError: there is nothing, or it was written by another schema.
    """
    folder = Path(folder)
    told = read_json(folder / DESCRIPTION, "description of pooled rows")
    if told.get("schema") != SCHEMA:
        raise InputError(f"{folder / DESCRIPTION} has schema {told.get('schema')!r}, this version reads {SCHEMA}")
    tensors = read_tensors(folder / TENSORS, "file of pooled rows")
    labels = Labels(tensors["y"], tuple(told["classes"]), tensors["groups"], tensors.get("tokens"))
    found: dict[str, PooledRows | Bags] = {}
    for number, fields in enumerate(told["sources"]):
        source, x = Source(**fields), tensors[f"x/{number}"]
        bag = tensors.get("bag")
        found[str(source)] = PooledRows(x, labels, source) if bag is None else Bags(x, bag, labels, source)
    return found
