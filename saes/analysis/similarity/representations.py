"""Activations of a text at several sites, in the order of the text, for one model or for two on shared rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from tqdm import tqdm

from ....lab.errors import InputError
from ....lab.models.hooked_model import HookedModel
from ....lab.streams.harvest import Harvest
from ....lab.text.corpus import Corpus
from .rows import checked_rows
from .spans import Spans, shared_places


@dataclass(frozen=True)
class Representations:
    """Rows of one model at several sites; row i is the same token at all of them."""

    name: str
    """Of the model."""
    acts: dict[str, Float[Tensor, "rows d"]]
    """By site, in the order of the layers."""
    places: Int64[Tensor, "rows 2"]
    """(document, position) of every row: a token's offset, or where it ends in characters."""
    text: str
    """Hash of the text, of its tokens too where positions are tokens."""

    def __len__(self) -> int:
        return len(self.places)

    @property
    def documents(self) -> Int64[Tensor, " rows"]:
        """The document of every row."""
        return self.places[:, 0]

    def take(self, rows: Int64[Tensor, " taken"] | slice) -> Representations:
        """Some of the rows."""
        return replace(self, acts={site: x[rows] for site, x in self.acts.items()}, places=self.places[rows])


def harvest(
    model: HookedModel,
    corpus: Corpus,
    sites: Sequence[str],
    *,
    rows: int | None = None,
    through: int | None = None,
    by_character: bool = False,
    progress: bool = False,
) -> Representations:
    """Read a text once, in order, and keep the usable rows; what is dropped is what an `ActivationStream` drops.

    Args:
        rows: end when there are so many.
        through: leave out documents after this one.
        by_character: name tokens by where they end in the document, to compare models with different tokenizers.

    Raises:
        InputError: no sites, a site the model has not, or rows that are constant, not finite or fewer than 4.
    """
    distinct = tuple(dict.fromkeys(model.site(site) for site in sites))
    if not distinct:
        raise InputError("nothing to compare: give at least one site, such as resid_post.12")
    source = Harvest(model, corpus, distinct, torch.float32, torch.device("cpu"), 10.0, 1)
    acts: dict[str, list[Tensor]] = {str(site): [] for site in distinct}
    origin: list[Tensor] = []
    count = 0
    with tqdm(total=rows, desc=model.name, unit="row", unit_scale=True, disable=not progress) as bar:
        for chunk in source.chunks(None, {}):
            for site in distinct:
                acts[str(site)].append(chunk.acts[site])
            origin.append(chunk.origin)
            count += len(chunk.origin)
            bar.update(len(chunk.origin))
            past = through is not None and len(chunk.origin) and int(chunk.origin[-1, 0]) > through
            if past or (rows is not None and count >= rows):
                break
    if not origin:
        raise InputError(f"{corpus.source.name} gives no row: give a text with more than special tokens")
    places, text = torch.cat(origin).long(), corpus.content_hash[:16]
    kept = torch.arange(len(places)) if through is None else (places[:, 0] <= through).nonzero()[:, 0]
    places, joined = places[kept][:rows], {site: torch.cat(parts)[kept][:rows] for site, parts in acts.items()}
    for site, x in joined.items():
        checked_rows(x, f"{site} of {model.name}")
    if by_character:
        places = Spans(corpus, model.tokenizer).places(places)
    else:
        text = f"{text}/{corpus.tokenizer.fingerprint()['hash'][:16]}"
    return Representations(model.name, joined, places, text)


def align(first: Representations, second: Representations) -> tuple[Representations, Representations]:
    """Both on the rows they share, in the order of the first.

    Raises:
        InputError: they read different text (names both hashes), or share fewer than 4 rows.
    """
    if first.text != second.text:
        raise InputError(
            f"{first.name} and {second.name} read different text (hashes {first.text} and {second.text}): "
            "give both the same text, and by_character=True where their tokenizers differ"
        )
    if torch.equal(first.places, second.places):
        return first, second
    ours, theirs = shared_places(first.places, second.places)
    if len(ours) < 4:
        raise InputError(f"{first.name} and {second.name} share {len(ours)} rows: read more of the same text")
    return first.take(ours), second.take(theirs)
