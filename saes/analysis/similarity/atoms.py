"""Atoms of two ITDAs as sets of places in a text: their Jaccard index beside what chance and the warm-up give.

An ITDA takes its first atoms from the first rows that it reads, whatever they are, so two of them share atoms because
they begin at the same places: of toy streams with nothing in common the raw index was 0.21, where random subsets of
that size give 0.012. So the index is taken over atoms past the warm-up, and beside it stand the index of random subsets
(`chance`) and that of an ITDA whose rows came in a shuffled order under the same places (`shuffled`), which has nothing
in common with the other but how many atoms enter when; the raw one comes with both as well. It is 1 for a rotated model
and falls fast with little noise: no graded similarity.

The index is that of ITDA (Leask et al. 2025); leaving out the warm-up, and the second null, are ours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int64
from torch import Tensor

from ....lab.errors import InputError
from ....lab.evidence import Evidence, bootstrap
from ...architectures.itda.dictionary import ITDA
from .spans import Spans

WARM_UP = 8
"""Rows of the warm-up for each dimension of the activations."""


@dataclass(frozen=True)
class AtomSet:
    """The atoms of one ITDA as places in the text it read.

    Raises:
        InputError: identities that are no pairs, or as many `read_at` as there are not atoms.
    """

    identities: Int64[Tensor, "n 2"]
    """(document, position) of every atom."""
    text: str
    """Hash of the text and its tokens; of the text alone where positions are characters."""
    rows: int
    """Rows that were offered."""
    read_at: Int64[Tensor, " n"]
    """Rows of the stream that came before each atom's own, or before the batch it came in."""
    width: int
    """Of the activations."""
    name: str = "itda"
    order: str = ""
    """Hash of the rows in the order they came in; empty where that is not known."""

    def __post_init__(self) -> None:
        if self.identities.ndim != 2 or self.identities.shape[1] != 2 or len(self.identities) != len(self.read_at):
            raise InputError(
                f"{self.name} has identities of shape {tuple(self.identities.shape)} and {len(self.read_at)} rows "
                "read: give one (document, position) and one row an atom"
            )

    def past(self, warm_up: int) -> AtomSet:
        """The atoms that are not among the first rows of the stream, and the rows after those."""
        kept = self.read_at >= warm_up
        return replace(
            self, identities=self.identities[kept], read_at=self.read_at[kept], rows=max(0, self.rows - warm_up)
        )

    def places(self) -> set[tuple[int, int]]:
        """The identities as a set."""
        return {(int(document), int(position)) for document, position in self.identities.tolist()}


def atoms_of(itda: ITDA, spans: Spans | None = None, name: str = "") -> AtomSet:
    """The atoms of an ITDA as places in its text.

    Args:
        spans: of its corpus and tokenizer, to name places by characters: for ITDAs of different tokenizers.

    Raises:
        InputError: the ITDA does not know its text, or `spans` are of another one (names both hashes).
    """
    name = name or repr(itda)
    if itda.text_hash is None:
        raise InputError(f"{name} does not know its text: build it from a stream of a model and a corpus")
    text, identities = itda.text_hash[:16], itda.identities.cpu()
    if spans is None:
        text = f"{text}/{itda.text['tokenizer']['hash'][:16]}"
    elif spans.corpus.content_hash != itda.text_hash:
        raise InputError(
            f"{name} is from another text (hash {itda.text_hash}) than the corpus given (hash "
            f"{spans.corpus.content_hash}): give the corpus it was built from"
        )
    else:
        identities = spans.places(identities)
    rows = int(itda.provenance.training["rows"])
    return AtomSet(identities, text, rows, itda.arrivals.cpu(), itda.d_in, name, itda.order_hash or "")


def chance(first: int, second: int, rows: int) -> float:
    """The index that random subsets of `rows` places have: m / (first + second - m), where m = first * second / rows.

    Raises:
        InputError: more atoms than rows.
    """
    if max(first, second) > rows:
        raise InputError(f"{first} and {second} atoms cannot be places among {rows} rows")
    both = first * second / rows if rows else 0.0
    return both / (first + second - both) if first + second else float("nan")


def jaccard(
    a: AtomSet,
    b: AtomSet,
    *,
    shuffled: AtomSet | None = None,
    warm_up: int | None = None,
    seed: int = 0,
) -> dict[str, Evidence]:
    """`jaccard` over atoms past the warm-up and `jaccard_raw` over all, with intervals over documents.

    Args:
        shuffled: an ITDA made as `b` was, of the same rows shuffled under the same places.
        warm_up: rows at the start of the stream whose atoms are left out; None takes 8 a dimension of the wider one.

    Raises:
        InputError: the texts differ (names both hashes), an ITDA without atoms, or a warm-up that is negative or
            leaves no row or no atom.
    """
    require_same_text(a, b)
    for atoms in (a, b):
        if not len(atoms.identities):
            raise InputError(f"{atoms.name} has no atoms: grow it on more rows, or lower its threshold")
    warm_up = checked_warm_up(warm_up, max(a.width, b.width), min(a.rows, b.rows))
    apart = "; read in different orders" if a.order != b.order else ""
    scores = {}
    for name, begin in (("jaccard", warm_up), ("jaccard_raw", 0)):
        ours, theirs = a.past(begin).places(), b.past(begin).places()
        if not ours and not theirs:
            raise InputError(
                f"{a.name} and {b.name} have no atoms past row {begin}: read more rows, lower tau, or raise max_atoms"
            )
        possible = max(min(a.rows, b.rows) - begin, len(ours), len(theirs))
        nulls = {"chance": chance(len(ours), len(theirs), possible)}
        if shuffled is not None:
            nulls["shuffled"] = index(ours, shuffled.past(begin).places())
        documents, interval = _over_documents(ours, theirs, seed)
        note = f"{len(ours)} and {len(theirs)} atoms past row {begin} of {min(a.rows, b.rows)}{apart}"
        scores[name] = Evidence(name, index(ours, theirs), interval, nulls, documents, better="higher", note=note)
    return scores


def checked_warm_up(warm_up: int | None, width: int, rows: int) -> int:
    """The rows to leave out at the start of a stream: 8 a dimension if none are given.

    Raises:
        InputError: it is negative, or leaves no row.
    """
    warm_up = WARM_UP * width if warm_up is None else warm_up
    if not 0 <= warm_up < rows:
        raise InputError(
            f"a warm-up of {warm_up} rows leaves none of the {rows} that are read: "
            f"read more rows, or give a warm_up from 0 to {rows - 1}"
        )
    return warm_up


def index(first: set[tuple[int, int]], second: set[tuple[int, int]]) -> float:
    """Shared places over all; nan where there are none."""
    return len(first & second) / len(first | second) if first | second else float("nan")


def require_same_text(a: AtomSet, b: AtomSet) -> None:
    """Refuse atoms of different texts: the same place would be another token.

    Raises:
        InputError: names both hashes.
    """
    if a.text != b.text:
        raise InputError(
            f"{a.name} and {b.name} were made from different text (hashes of text and tokenizer {a.text} and "
            f"{b.text}): places in one are no places in the other, so build both on one text, in one order"
        )


def _over_documents(
    first: set[tuple[int, int]], second: set[tuple[int, int]], seed: int
) -> tuple[int, tuple[float, float] | None]:
    """How many documents have atoms, and the interval of the index under resampling of documents."""
    documents = sorted({document for document, _ in first | second})
    unit = {document: i for i, document in enumerate(documents)}
    shared, either = np.zeros(len(unit)), np.zeros(len(unit))
    for document, position in first | second:
        either[unit[document]] += 1
        shared[unit[document]] += (document, position) in first and (document, position) in second
    interval = bootstrap(lambda weights: float(weights @ shared / (weights @ either)), len(unit), seed=seed)
    return len(unit), interval
