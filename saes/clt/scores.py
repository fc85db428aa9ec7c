"""How well a cross-layer transcoder predicts the outputs of every layer, beside what it does without crossing layers.

    fvu          squared error over variance, all outputs together as they are: large layers decide
    fvu_mean     mean over layers of their FVU
    fvu_SITE     of one output
    l0, l0_SITE  active latents a row: all of them, and those that read one site

The null `own_layer` keeps codes and decoder rows but lets a latent write only to the layer it reads, with the means of
all outputs set right again: what is left of it as transcoders layer by layer. `mean` predicts the mean, which is 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...lab.errors import InputError
from ...lab.evidence import Evidence
from ...lab.sites import Site
from ...lab.streams import Batch
from ..sums import DocumentSums, Formula, ratio
from .cross_layer import CrossLayer


def measure_cross_layer(
    dictionary: CrossLayer, batches: Iterable[Batch], *, rows: int, held_out: str = "", seed: int = 0
) -> dict[str, Evidence]:
    """Every score over the first `rows` rows, with intervals over documents and its nulls.

    Args:
        batches: of a stream that has all sites the dictionary was trained on.

    Raises:
        InputError: the dictionary names no sites, a site is not in the batches, or there are no rows.
    """
    origin = dictionary.provenance
    if not origin.sources or not origin.targets:
        raise InputError(f"{dictionary!r} names no sites: set provenance.sources and provenance.targets")
    sources, targets = (list(map(Site.parse, sites)) for sites in (origin.sources, origin.targets))
    sums, seen = DocumentSums(), 0
    for batch in batches:
        if missing := [str(site) for site in targets if site not in batch.acts]:
            raise InputError(f"the stream has no {', '.join(missing)}, which {dictionary!r} predicts: add it")
        room = slice(rows - seen)
        read = dictionary.rows({site: batch.acts[site][room] for site in sources if site in batch.acts})
        goal = torch.cat([batch.acts[site][room] for site in targets], 1).to(dictionary.b_dec.device)
        sums.add(batch.origin[room, 0], _columns(dictionary, read, goal, sources, targets))
        seen += len(read)
        if seen >= rows:
            break
    if not seen:
        raise InputError("no rows were measured: give a stream with rows, and rows of at least 1")
    return _evidence(sums, sources, targets, held_out, seed)


@torch.no_grad()
def _columns(
    dictionary: CrossLayer,
    read: Float[Tensor, "rows d_in"],
    goal: Float[Tensor, "rows d_out"],
    sources: list[Site],
    targets: list[Site],
) -> dict[str, Tensor]:
    """What is summed by document, fp64."""
    read = read.to(dictionary.b_dec.device)
    code = dictionary.encode(read)
    exact, width = goal.double(), dictionary.d_out // len(targets)
    residual = dictionary.reconstruct(read, code).double() - exact
    own = -exact
    for layer, part in enumerate(dictionary.written(code)):
        own[:, layer * width : (layer + 1) * width] += part[:, :width]
    if dictionary.W_skip is not None:
        own += dictionary.skipped(read)
    columns = {"rows": torch.ones_like(exact[:, 0]), "x": exact, "own_residual": own}
    for name, entries in (("error", residual), ("square", exact), ("own", own)):
        squares = entries.square()
        columns[name] = squares.sum(1)
        parts = zip(targets, squares.chunk(len(targets), 1), strict=True)
        columns |= {f"{name}_{site}": part.sum(1) for site, part in parts}
    n = dictionary.n_latents // len(sources)
    for layer, site in enumerate(sources):
        columns[f"l0_{site}"] = code.within(slice(layer * n, (layer + 1) * n)).l0
    return columns | {"l0": code.l0}


def _variance(sums: Mapping[str, np.ndarray], of: str, columns: slice) -> float:
    mean = sums["x"][columns] / sums["rows"]
    return float(sums[f"square{of}"] / sums["rows"] - mean @ mean)


def _fvu(of: str, columns: slice) -> Formula:
    """The FVU of some columns, whose sums have the suffix `of`."""
    return lambda s: ratio(s[f"error{of}"] / s["rows"], _variance(s, of, columns))


def _fvu_own_layer(of: str, columns: slice) -> Formula:
    """That of the null, without what its mean misses."""

    def score(s: Mapping[str, np.ndarray]) -> float:
        mean = s["own_residual"][columns] / s["rows"]
        return ratio(s[f"own{of}"] / s["rows"] - mean @ mean, _variance(s, of, columns))

    return score


def _mean(formulas: Sequence[Formula]) -> Formula:
    return lambda s: sum(formula(s) for formula in formulas) / len(formulas)


def _evidence(
    sums: DocumentSums, sources: list[Site], targets: list[Site], held_out: str, seed: int
) -> dict[str, Evidence]:
    width = len(sums.total["x"]) // len(targets)
    of_site = {f"_{site}": slice(at * width, (at + 1) * width) for at, site in enumerate(targets)}
    scores = {f"fvu{of}": (_fvu(of, columns), _fvu_own_layer(of, columns)) for of, columns in of_site.items()}
    means = tuple(_mean(formulas) for formulas in zip(*scores.values(), strict=True))
    scores = {"fvu": (_fvu("", slice(None)), _fvu_own_layer("", slice(None))), "fvu_mean": means, **scores}
    total, n = sums.total, len(sums)
    found = {}
    for name, (score, null) in scores.items():
        nulls = {"own_layer": null(total), "mean": 1.0}
        found[name] = Evidence(name, score(total), sums.interval(score, seed=seed), nulls, n, held_out=held_out)
    for name in ("l0", *(f"l0_{site}" for site in sources)):
        count: Formula = lambda s, name=name: ratio(s[name], s["rows"])  # noqa: E731
        found[name] = Evidence(name, count(total), sums.interval(count, seed=seed), {}, n, held_out=held_out)
    return found
