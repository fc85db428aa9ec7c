"""`Reconstruction`: how well a dictionary reconstructs activations, streamed and kept by document.

An entry of a code is active where it is not zero, whatever its sign. All sums are fp64 and run over every row
seen, so no number depends on how the rows were batched.

    fvu             E||x - x_hat||^2 / (E||x||^2 - ||E x||^2); unchanged by scaling and shifting x
    explained_variance   1 - fvu
    mse             E||x - x_hat||^2, summed over dimensions, a row
    mse_dimension   the same, mean over dimensions
    correlation     of x and x_hat about their own means, pooled over dimensions; unchanged by scaling and shifting
    l0              active latents a row
    l1              sum of |code| a row
    cosine          mean cosine of x and x_hat (0 for a row of zeros)
    norm_ratio      mean ||x_hat|| / ||x||; below 1 when the code leaves energy out
    relative_bias   E||x_hat||^2 / E[x . x_hat]; c for x_hat = c x (Rajamanoharan et al. 2024, 2404.16014)
    dead, alive     share of latents never, and ever, active over the rows seen
    dense_1, dense_10   share of latents active on more than 1 % and 10 % of the rows

Of a transcoder, x is what it predicts, not what it reads. Of a crosscoder, x is all sources side by side, and of a
cross-layer transcoder all outputs; `fvu_SITE` is that of one of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...lab.errors import InputError
from ...lab.evidence import Evidence
from ...lab.models.sites import Site
from ...lab.storage import State, write_json, write_tensors
from ...lab.streams.activation_stream import Batch
from ..dictionary import Dictionary
from ..place import CROSSCODER, Place
from ..sparse_code import SparseCode
from .document_sums import DocumentSums, Formula, ratio
from .results import SCHEMA, flat


class Measure(NamedTuple):
    """A score of summed columns and which direction is better."""

    formula: Formula
    better: str = "lower"


def total_variance(sums: Mapping[str, np.ndarray]) -> float:
    """E||x||^2 - ||E x||^2."""
    mean = sums["x"] / sums["rows"]
    return float(sums["square"] / sums["rows"] - mean @ mean)


def part_fvu(sums: Mapping[str, np.ndarray], site: Site, own: slice) -> float:
    """The FVU of one of the sites that are reconstructed together, which has these columns."""
    mean = sums["x"][own] / sums["rows"]
    variance = float(sums[f"square_{site}"] / sums["rows"] - mean @ mean)
    return ratio(sums[f"error_{site}"] / sums["rows"], variance)


def correlation(sums: Mapping[str, np.ndarray]) -> float:
    """Cov(x, x_hat) / sqrt(Var x Var x_hat), each summed over dimensions; nan where one of them is constant."""
    rows, mean = sums["rows"], sums["x"] / sums["rows"]
    mean_hat = mean + sums["residual"] / rows
    covariance = sums["dot"] / rows - mean @ mean_hat
    squares = (sums["square"] / rows, sums["square_hat"] / rows)
    # what fp64 leaves of a constant is no variance
    spread = [max(0.0, s - m @ m - 1e-12 * s) for s, m in zip(squares, (mean, mean_hat), strict=True)]
    return ratio(covariance, np.sqrt(spread[0] * spread[1]))


PER_TOKEN = {
    "fvu": Measure(lambda s: ratio(s["error"] / s["rows"], total_variance(s))),
    "mse": Measure(lambda s: ratio(s["error"], s["rows"])),
    "mse_dimension": Measure(lambda s: ratio(s["error"], s["rows"] * len(s["x"]))),
    "correlation": Measure(correlation, "higher"),
    "l0": Measure(lambda s: ratio(s["l0"], s["rows"])),
    "l1": Measure(lambda s: ratio(s["l1"], s["rows"])),
    "cosine": Measure(lambda s: ratio(s["cosine"], s["rows"]), "higher"),
    "norm_ratio": Measure(lambda s: ratio(s["norm_ratio"], s["rows"]), "nearest one"),
    "relative_bias": Measure(lambda s: ratio(s["square_hat"], s["dot"]), "nearest one"),
}
"""Scores with an interval over documents."""

COMPLEMENTS = {"explained_variance": "fvu", "alive": "dead"}
"""Scores that are 1 less another."""

DENSE = {"dense_1": 0.01, "dense_10": 0.1}
DECADES = 8
"""Of density in the histogram."""


class Reconstruction:
    """Measures one dictionary on one site; a consumer, so it may ride on any stream beside what is trained.

    Args:
        dictionary: in activation units; it is not changed.
        site: where its rows come from; by default the site it was trained on. Several for a crosscoder, in order.
        target: what a transcoder predicts, several sites for a cross-layer one; by default as it was trained.
        name: by default "reconstruction-" and the site.
        rows: measure this many rows, then be done; None goes on to the end of the stream.

    Raises:
        InputError: no site is known, a transcoder's target is not, or `rows` is below 1.
    """

    kind = "measures"

    def __init__(
        self,
        dictionary: Dictionary,
        site: Place | Site | str | Sequence[Site | str] | None = None,
        *,
        target: Site | str | Sequence[Site | str] | None = None,
        name: str | None = None,
        rows: int | None = None,
    ) -> None:
        if rows is not None and rows < 1:
            raise InputError(f"rows must be at least 1, got {rows}")
        self.dictionary, self.limit = dictionary, rows
        self.place = _placed(dictionary, site, target)
        self.sources, self.targets = self.place.reads, self.place.predicts
        self.sites = (*self.sources, *self.targets)
        self.name = name or f"reconstruction-{'+'.join(map(str, self.sources))}"
        self.parts = self._parts()
        """The columns of each of several sites that are reconstructed together; empty where there is one."""
        self.scores = PER_TOKEN | self._per_part()
        self.sums = DocumentSums()
        self.rows = 0
        self.firing = torch.zeros(dictionary.n_latents, dtype=torch.int64, device=dictionary.W_dec.device)
        """In how many rows each latent was active."""

    def __repr__(self) -> str:
        shown = ", ".join(f"{name} {value:.4g}" for name, value in self.metrics().items()) if self.rows else "no rows"
        return f"Reconstruction({self.name!r}: {shown})"

    @property
    def done(self) -> bool:
        """True once the rows asked for have been measured."""
        return self.limit is not None and self.rows >= self.limit

    @property
    def density(self) -> Float[Tensor, " n_latents"]:
        """Share of rows on which each latent is active."""
        return self.firing.double() / max(self.rows, 1)

    @property
    def mean(self) -> Float[Tensor, " d"]:
        """Mean of the rows seen; of a transcoder, of those it predicts.

        Raises:
            InputError: none were.
        """
        self._require_rows()
        return torch.from_numpy(self.sums.total["x"] / self.rows).float()

    def step(self, batch: Batch) -> None:
        """Measure one batch of the stream, up to the rows asked for."""
        room = len(batch.origin) if self.limit is None else self.limit - self.rows
        read = [batch.acts[site][:room] for site in self.sources]
        written = [batch.acts[site][:room] for site in self.targets]
        target = None if not written else _joined(written)
        self.add(_joined(read), batch.origin[:room, 0], target)

    @torch.no_grad()
    def add(
        self,
        x: Float[Tensor, "rows d_in"],
        doc: Int[Tensor, " rows"],
        target: Float[Tensor, "rows d_out"] | None = None,
    ) -> None:
        """Measure rows of activations, each with the id of its document. Encodes them in one call.

        Args:
            target: what a transcoder should have predicted; None for others.

        Raises:
            InputError: the width is not the dictionary's.
        """
        if not len(x):
            return
        x = self.dictionary.rows(x.to(self.dictionary.W_dec.device))
        code = self.dictionary.encode(x)
        x_hat = self.dictionary.reconstruct(x, code)
        exact, exact_hat = (x if target is None else target.to(x.device)).double(), x_hat.double()
        square, square_hat = exact.square().sum(1), exact_hat.square().sum(1)
        dot = (exact * exact_hat).sum(1)
        # a row of zeros has no direction and no ratio: dividing by inf counts both as 0
        norm, norm_hat = (s.sqrt().masked_fill(s == 0, torch.inf) for s in (square, square_hat))
        residual = exact_hat.sub_(exact)
        columns = {
            "rows": torch.ones_like(square),
            "error": torch.linalg.vecdot(residual, residual),
            "square": square,
            "square_hat": square_hat,
            "dot": dot,
            "cosine": dot / norm / norm_hat,
            "norm_ratio": square_hat.sqrt() / norm,
            "l0": code.l0,
            "l1": torch.zeros_like(square).index_add_(0, code.rows, code.values.abs().double()),
            "x": exact,
            "residual": residual,
        }
        for site, own in self.parts.items():
            columns |= {
                f"error_{site}": residual[:, own].square().sum(1),
                f"square_{site}": exact[:, own].square().sum(1),
            }
        self.sums.add(doc, columns | self._further(code))
        self.firing += code.firing_counts()
        self.rows += len(x)

    def metrics(self) -> dict[str, float]:
        """Every score over the rows so far, and their number.

        Raises:
            InputError: no rows were seen.
        """
        self._require_rows()
        total = self.sums.total
        scores = {name: measure.formula(total) for name, measure in self.scores.items()}
        scores |= self._latent_shares()
        return scores | {name: 1 - scores[of] for name, of in COMPLEMENTS.items()} | {"rows": float(self.rows)}

    def evidence(
        self, nulls: Mapping[str, Reconstruction] | None = None, *, held_out: str = "", seed: int = 0
    ) -> dict[str, Evidence]:
        """Every score with its interval over documents, and the same score of `nulls` on the same rows.

        Raises:
            InputError: no rows were seen.
        """
        own = self.metrics()
        others = {name: null.metrics() for name, null in (nulls or {}).items()}
        by_name = {}
        for name, value in own.items():
            if name == "rows" or name in COMPLEMENTS:
                continue
            measure = self.scores.get(name)
            by_name[name] = Evidence(
                name,
                value,
                interval=self.sums.interval(measure.formula, seed=seed) if measure else None,
                nulls={null: scores[name] for null, scores in others.items() if name in scores},
                n=len(self.sums) if measure else self.rows,
                unit="documents" if measure else "tokens",
                held_out=held_out,
                better=measure.better if measure else "lower",
            )
        return by_name | {name: _complement(name, by_name[of]) for name, of in COMPLEMENTS.items()}

    def density_histogram(self) -> dict[str, list[float]]:
        """How many latents lie in each half decade of density: `edges` (log10, one more) and `latents`.

        The first bin begins at 1e-8 and holds what is rarer; latents that never fired are in none.
        """
        edges = np.arange(2 * DECADES + 1) / 2 - DECADES
        density = self.density.cpu().numpy()
        latents, _ = np.histogram(np.log10(density[density > 0]).clip(-DECADES, 0), edges)
        return {"edges": edges.tolist(), "latents": latents.tolist()}

    def _parts(self) -> dict[Site, slice]:
        place = self.place
        if place.kind != CROSSCODER and len(place.outputs) == 1:
            return {}
        ends = list(itertools.accumulate((port.width for port in place.outputs), initial=0))
        return {site: slice(*ends[at : at + 2]) for at, site in enumerate(place.predicts or place.reads)}

    def _per_part(self) -> dict[str, Measure]:
        """The FVU of every site, where there are several."""
        return {
            f"fvu_{site}": Measure(lambda s, site=site, own=own: part_fvu(s, site, own))
            for site, own in self.parts.items()
        }

    def _further(self, code: SparseCode) -> dict[str, Tensor]:
        """Columns that scores of a subclass are made of."""
        return {}

    def _latent_shares(self) -> dict[str, float]:
        density = self.density
        shares = {name: density > least for name, least in DENSE.items()}
        return {name: float(mask.double().mean()) for name, mask in {"dead": density == 0, **shares}.items()}

    def _require_rows(self) -> None:
        if not self.rows:
            raise InputError(f"{self.name} has measured no rows: step it on at least one batch")

    @property
    def progress(self) -> tuple[int, int | None]:
        """Rows measured, and rows asked for."""
        return self.rows, self.limit

    def merge(self, other: Reconstruction) -> None:
        """Add what an equal measure of the same dictionary saw of later rows.

        Raises:
            InputError: the other measures other sites, or a dictionary with another number of latents.
        """
        if self.sites != other.sites or self.firing.shape != other.firing.shape:
            raise InputError(
                f"{other!r} has {len(other.firing)} latents at {', '.join(map(str, other.sites))} and this measure "
                f"{len(self.firing)} at {', '.join(map(str, self.sites))}: merge measures of one dictionary"
            )
        self.sums.merge(other.sums)
        self.firing += other.firing.to(self.firing.device)
        self.rows += other.rows

    def state_dict(self) -> State:
        """The sums, and how often each latent was active."""
        return {"sums": self.sums.state_dict(), "firing": self.firing.clone(), "rows": self.rows}

    def load_state_dict(self, state: State) -> None:
        """Continue from a `state_dict` of a dictionary with as many latents.

        Raises:
            InputError: it had another number of latents.
        """
        if state["firing"].shape != self.firing.shape:
            raise InputError(
                f"the state was taken with {len(state['firing'])} latents and this dictionary has "
                f"{len(self.firing)}: measure it from the beginning"
            )
        self.sums.load_state_dict(state["sums"])
        self.firing.copy_(state["firing"])
        self.rows = state["rows"]

    def save(self, folder: Path) -> None:
        """Write `reconstruction.json` (scores with intervals) and `firing.safetensors` (counts a latent)."""
        write_tensors(folder / "firing.safetensors", {"firing": self.firing})
        scores = {"rows": self.rows, **flat(self.evidence()), "density_histogram": self.density_histogram()}
        write_json(folder / "reconstruction.json", {"schema": SCHEMA, **scores})


def _placed(
    dictionary: Dictionary,
    site: Place | Site | str | Sequence[Site | str] | None,
    target: Site | str | Sequence[Site | str] | None,
) -> Place:
    """The place of a dictionary, at other sites where they are given."""
    own = dictionary.place
    if isinstance(site, Place):
        return own.named_as(site)
    reads = own.reads if site is None else _sites(site)
    predicts = own.predicts if target is None else _sites(target)
    return own.named_as(Place.at(reads, predicts if own.targets else ()))


def _sites(named: Site | str | Sequence[Site | str]) -> tuple[Site, ...]:
    return tuple(map(Site.parse, [named] if isinstance(named, Site | str) else named))


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), 1)


def _complement(name: str, of: Evidence) -> Evidence:
    """1 less a score that is better when lower."""
    interval = of.interval and (1 - of.interval[1], 1 - of.interval[0])
    nulls = {null: 1 - value for null, value in of.nulls.items()}
    return replace(of, name=name, value=1 - of.value, interval=interval, nulls=nulls, better="higher")
