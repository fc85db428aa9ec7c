"""`monosem bench architectures`: what each architecture reconstructs at equal L0 and rows, beside peers' trainers.

Every peer is trained twice: as its documentation says, and matched to ours (`peers`). A matched peer gets the best
of three learning rates (`contestant.matched_rates`), chosen with the first seed on held-out rows other than those
reported; where the best is the lowest or the highest, lower or higher ones are tried until it is neither.

The peer goes first. Where a penalty decides the L0 that it comes to (relu, gated, jumprelu), it is trained with one
coefficient after another until that is the asked L0 (`l0_search`). Ours is then asked for the L0 that the peer came to,
and where it ends a little beside it, trained once more on the other side and read in between. Both are measured by
their rule at inference. Choices (coefficient, learning rate, our k) are made on one half of the held-out rows; the
other half is reported, for ours as well. A seed sets the starting weights and the order of the rows.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ....saes.evaluation.matched_l0 import Curve
from ...errors import InputError
from ...models.sites import Site
from ...table import aligned
from ..options import Flat, ModelText
from ..rows import split_rows
from .cells import Cells
from .command import Bench
from .contestant import Asked, Ours, Trained, matched_rates
from .l0_search import Trial, reach_l0
from .peers import LIBRARIES
from .score import Score, score
from .timing import named

log = logging.getLogger(__name__)

COLUMNS = ("documented", "matched")
ARCHITECTURES = tuple(dict.fromkeys(name for library in LIBRARIES.values() for name in library.KINDS))
"""Every architecture that a peer shares with us."""
STEERED = ("relu", "gated", "jumprelu")
"""Where a penalty decides the L0 that a peer comes to."""
EXACT = 0.005
"""Two L0 that differ by no more than this share are one."""
MOST_RATES = 6
"""The most learning rates of a matched peer."""


class Rows(NamedTuple):
    """Rows that everyone is trained on, and the two halves of the held-out ones."""

    train: Tensor
    validation: Tensor
    test: Tensor

    def batches(self, batch: int, passes: int, seed: int) -> Iterator[Tensor]:
        """Batches in the order of a seed, every row once a pass."""
        g = torch.Generator().manual_seed(seed)
        whole = len(self.train) // batch * batch
        for _ in range(passes):
            yield from (self.train[part] for part in torch.randperm(len(self.train), generator=g)[:whole].split(batch))


@dataclass(frozen=True)
class BenchArchitectures(Bench):
    """Train every architecture that is shared with peers with both libraries on the same rows; compare at equal L0."""

    example = "monosem bench architectures --architectures topk --peers sae-lens --n-latents 2048 --rows 20000"

    architectures: str = ",".join(ARCHITECTURES)
    """Which, comma-separated; a peer takes part in those that it has."""
    peers: str = ",".join(LIBRARIES)
    """Peers, comma-separated."""
    n_latents: tuple[int, ...] = (2048,)
    """Numbers of latents."""
    k: int = 32
    """Active latents a row, where it can be asked for."""
    batch: tuple[int, ...] = (512,)
    """Rows a step."""
    rows: int = 100_000
    """Rows all are trained on."""
    passes: int = 1
    """Times that each row is served."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the starting weights and of the order of rows."""
    held_out: int = 24_000
    """Held-out rows: choices are made on the first half, the second is reported."""
    columns: str = ",".join(COLUMNS)
    """Ways of training the peers, comma-separated."""
    matched_lr: tuple[float, ...] = ()
    """Learning rates of matched peers. The best counts. By default half of our rule, the rule, twice, and on from there
    while the best is at an end."""
    documented_lr: float | None = None
    """Learning rate of documented peers in place of the library's own."""
    trials: int = 6
    """The most trainings of a peer in search of the coefficient that leads to an L0 of k; 1 for its default one."""
    tolerance: float = 0.05
    """Share of k that the L0 found may be off by."""
    site: str = "resid_post.12"
    """Where the activations come from."""
    source: Flat[ModelText] = field(default_factory=ModelText)
    store: Path | None = None
    """Use this store's rows (written by `monosem harvest`); documents of their own are held out."""
    keep: Path | None = None
    """Keep finished trainings in this folder, and continue from those in it."""

    def __post_init__(self) -> None:
        for name in ("k", "passes", "trials"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("n_latents", "batch", "seeds"):
            given, least = getattr(self, name), 0 if name == "seeds" else 1
            if not given or min(given) < least:
                raise InputError(f"{name} must be one or more numbers from {least}, got {given}")
        if self.held_out < 2:
            raise InputError(f"held_out must be at least 2, a row to choose on and one to report, got {self.held_out}")
        if self.k > min(self.n_latents):
            raise InputError(f"k must be at most n_latents={min(self.n_latents)}, got {self.k}")
        if not 0 < self.tolerance < 1:
            raise InputError(f"tolerance must lie between 0 and 1, got {self.tolerance:g}")
        for name, rates in {"matched_lr": self.matched_lr, "documented_lr": (self.documented_lr or 0.5,)}.items():
            if not all(0 < rate < 1 for rate in rates):
                raise InputError(f"{name} must lie between 0 and 1, got {', '.join(map(str, rates))}")
        if self.rows < max(self.batch):
            raise InputError(f"rows={self.rows} are less than one batch of {max(self.batch)}: give more rows")
        named(self.architectures, ARCHITECTURES, "architecture", "--architectures")
        named(self.peers, LIBRARIES, "peer", "--peers")
        named(self.columns, COLUMNS, "column", "--columns")

    def race(self) -> dict[str, Any]:
        """One line for each shape, architecture and peer.

        Returns:
            JSON key `lines`; a line has, for each column, `peer` and `monosem` (mean and spread of the FVU over seeds,
            L0, share of latents that never fired), the peer's learning rate and coefficients, `ratio` of the means,
            ours to theirs, and `as_good`. Where ours comes to no L0 on either side of theirs, `as_good` is null: the
            ratio is then between two L0.
        """
        site = Site.parse(self.site)
        cells = Cells(self.keep, self._decides())
        x, held = split_rows(self.source, self.store, site, self.rows, self.held_out, max(self.batch))
        rows = Rows(x[: self.rows], *held.chunk(2))
        lines = []
        for n in self.n_latents:
            for batch in self.batch:
                for name in named(self.architectures, ARCHITECTURES, "architecture", "--architectures"):
                    if name == "groupmax" and n % self.k:
                        raise InputError(f"groupmax needs n_latents={n} to be a multiple of k={self.k}")
                    asked = Asked(n, self.k, self.rows // batch * self.passes, name)
                    match = Match(asked, batch, rows, cells, self)
                    lines += [match.line(peer) for peer in named(self.peers, LIBRARIES)
                              if name in LIBRARIES[peer].KINDS]  # fmt: skip
        return {"d_in": x.shape[1], "k": self.k, "rows": self.rows, "passes": self.passes,
                "seeds": list(self.seeds), "lines": lines}  # fmt: skip

    def _decides(self) -> dict[str, Any]:
        """Options on which every training depends; the others only choose among trainings."""
        names = ("k", "rows", "passes", "held_out", "trials", "tolerance", "site", "documented_lr")
        source = {"model": self.source.model, "dtype": self.source.dtype, "corpus": self.source.corpus}
        store = None if self.store is None else str(self.store.resolve())
        return {name: getattr(self, name) for name in names} | source | {"store": store}

    def as_text(self, result: Mapping[str, Any]) -> str:
        """A table: a line for each shape, architecture, peer and column."""
        heading = ["latents", "batch", "architecture", "peer", "column", "lr", "L0", "peer FVU", "monosem FVU", "ratio"]
        table = [heading]
        for line in result["lines"]:
            for column in COLUMNS:
                if (found := line.get(column)) is None:
                    continue
                ratio = f"{found['ratio']:.3f}" + ("" if found["as_good"] is not None else " at another L0")
                table.append([
                    str(line["n_latents"]), str(line["batch"]), line["architecture"], line["peer"], column,
                    "own" if found["lr"] is None else f"{found['lr']:.2g}", f"{found['peer']['l0']:.1f}",
                    _mean(found["peer"]), _mean(found["monosem"]), ratio,
                ])  # fmt: skip
        return aligned(table)


def _mean(side: Mapping[str, Any]) -> str:
    return f"{side['fvu']:.4f} ±{side['spread'] / 2:.4f}"


@dataclass
class Match:
    """One architecture at one shape: our dictionaries, each trained once for a k and a seed, and those of peers."""

    asked: Asked
    batch: int
    rows: Rows
    cells: Cells
    bench: BenchArchitectures

    def line(self, peer: str) -> dict[str, Any]:
        """Both columns of a peer."""
        columns = named(self.bench.columns, COLUMNS, "column", "--columns")
        shape = {"n_latents": self.asked.n_latents, "batch": self.batch, "architecture": self.asked.architecture}
        line: dict[str, Any] = {**shape, "peer": peer}
        for column in columns:
            line[column] = self._column(peer, column)
        log.info("%s", line)
        return line

    def _column(self, peer: str, column: str) -> dict[str, Any]:
        bench, first = self.bench, self.bench.seeds[0]
        if column == "matched":
            tried = self._rates_tried(peer, bench.matched_lr)
        else:
            tried = {bench.documented_lr: self._theirs(peer, column, bench.documented_lr, first, 1.0)}
        best = _best(tried)
        start = tried[best]["coefficient"]
        theirs = [tried[best], *(self._theirs(peer, column, best, seed, start) for seed in bench.seeds[1:])]
        ours = [self._ours(one, seed) for one, seed in zip(theirs, bench.seeds, strict=True)]
        their_fvu, our_fvu = [one["test"]["fvu"] for one in theirs], [one["fvu"] for one in ours]
        ratio = statistics.fmean(our_fvu) / statistics.fmean(their_fvu)
        equal = all(one["equal_l0"] for one in ours)
        return {
            "lr": best,
            "validation_fvu_by_lr": {str(rate): one["validation"]["fvu"] for rate, one in tried.items()},
            "coefficients": [one["coefficient"] for one in theirs],
            "trials": [one["trials"] for one in theirs],
            "peer": {**_over_seeds(their_fvu), **_means([one["test"] for one in theirs])},
            "monosem": {**_over_seeds(our_fvu), **_means(ours), "k": [one["k"] for one in ours]},
            "ratio": ratio,
            "as_good": ratio <= 1 if equal else None,
        }

    def _rates_tried(self, peer: str, given: Sequence[float]) -> dict[float | None, dict[str, Any]]:
        """A matched peer with each learning rate that is given, or with ours and on to where neither end is best."""
        first = self.bench.seeds[0]
        rates = given or matched_rates(self.asked.n_latents, self.batch, self.asked.steps * self.batch)
        tried: dict[float | None, dict[str, Any]] = {}
        start = 1.0
        for rate in rates:
            tried[rate] = self._theirs(peer, "matched", rate, first, start)
            start = tried[rate]["coefficient"]
        while not given and len(tried) < MOST_RATES:
            lowest, highest = min(rates), max(rates)
            if (best := _best(tried)) not in (lowest, highest):
                break
            rates = (*rates, lowest / 2 if best == lowest else highest * 2)
            tried[rates[-1]] = self._theirs(peer, "matched", rates[-1], first, tried[best]["coefficient"])
        return tried

    def _theirs(self, peer: str, column: str, rate: float | None, seed: int, start: float) -> dict[str, Any]:
        """A peer at an L0 of k, or as near as the trials come; a k that it is told needs no search."""
        name, bench = self.asked.architecture, self.bench
        asked = replace(self.asked, matched=column == "matched", lr=rate, seed=seed)

        def train(coefficient: float) -> tuple[float, tuple[Score, Score]]:
            made = LIBRARIES[peer](next(self._batches(seed)), replace(asked, coefficient=coefficient))
            found = self._trained(made, seed)
            log.info("%s %s, %s, lr %s, seed %d, coefficient %.4g: L0 %.4g, FVU %.4g", peer, name, column, rate,
                     seed, coefficient, found[0].l0, found[0].fvu)  # fmt: skip
            return found[0].l0, found

        def search() -> dict[str, Any]:
            trials = bench.trials if name in STEERED else 1
            tried: list[Trial[tuple[Score, Score]]] = reach_l0(
                train, bench.k, start, trials=trials, tolerance=bench.tolerance
            )
            validation, test = tried[-1].result
            steps = [[trial.coefficient, trial.l0] for trial in tried] if name in STEERED else []
            return {"coefficient": tried[-1].coefficient, "validation": validation._asdict(), "test": test._asdict(),
                    "trials": steps}  # fmt: skip

        return self.cells.get({**self._key(peer, seed), "column": column, "lr": rate}, search)

    def _ours(self, theirs: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """Our FVU at the L0 of theirs: of a dictionary that ends there, or between one on either side.

        Where none ends on the other side, as next to n_latents, it is that of the nearest, and `equal_l0` is false.
        """
        wanted = max(theirs["validation"]["l0"], 1e-9)
        k = self._allowed(wanted)
        nearest = self._our_training(k, seed)
        points = {k: nearest["test"]}
        off = nearest["validation"]["l0"] / wanted
        l0 = theirs["test"]["l0"]
        if abs(nearest["test"]["l0"] / max(l0, 1e-9) - 1) > EXACT and off > 0:
            other = self._allowed(wanted / off**2 + (1 if off < 1 else -1))
            points[other] = self._our_training(other, seed)["test"]
        by_l0 = {point["l0"]: point["fvu"] for point in points.values()}
        between = len(by_l0) == 2 and min(by_l0) <= l0 <= max(by_l0)
        fvu = Curve(self.asked.architecture, tuple(by_l0), tuple(by_l0.values())).at(l0) if between else None
        exact = abs(nearest["test"]["l0"] / max(l0, 1e-9) - 1) <= EXACT
        return {"fvu": nearest["test"]["fvu"] if fvu is None else fvu, "k": list(points) if between else [k],
                "l0": l0 if between else nearest["test"]["l0"], "unfired": nearest["test"]["unfired"],
                "equal_l0": between or exact}  # fmt: skip

    def _our_training(self, k: int, seed: int) -> dict[str, Any]:
        def train() -> dict[str, Any]:
            made = Ours(next(self._batches(seed)), replace(self.asked, k=k, seed=seed))
            validation, test = self._trained(made, seed)
            log.info("monosem %s, k %d, seed %d: L0 %.4g, FVU %.4g", self.asked.architecture, k, seed, *validation[:2])
            return {"validation": validation._asdict(), "test": test._asdict()}

        return self.cells.get({**self._key("monosem", seed), "k": k}, train)

    def _key(self, library: str, seed: int) -> dict[str, Any]:
        return {"library": library, "architecture": self.asked.architecture, "n_latents": self.asked.n_latents,
                "batch": self.batch, "seed": seed}  # fmt: skip

    def _batches(self, seed: int) -> Iterator[Tensor]:
        return self.rows.batches(self.batch, self.bench.passes, seed)

    def _trained(self, made: Trained, seed: int) -> tuple[Score, Score]:
        """Scores on both halves of the held-out rows after all steps."""
        for batch in self._batches(seed):
            made.step(batch)
        dictionary = made.dictionary()
        return score(dictionary, self.rows.validation), score(dictionary, self.rows.test)

    def _allowed(self, k: float) -> int:
        if self.asked.architecture == "groupmax":  # k equal groups: what the peer was told
            return self.asked.k
        return min(max(1, round(k)), self.asked.n_latents)


def _best(tried: Mapping[float | None, Mapping[str, Any]]) -> float | None:
    """The learning rate with the lowest FVU on the rows for choosing."""
    return min(tried, key=lambda rate: tried[rate]["validation"]["fvu"])


def _over_seeds(fvu: Sequence[float]) -> dict[str, Any]:
    """Mean, and the largest less the smallest."""
    return {"fvu": statistics.fmean(fvu), "spread": max(fvu) - min(fvu), "by_seed": list(fvu)}


def _means(sides: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    return {name: statistics.fmean(side[name] for side in sides) for name in ("l0", "unfired")}
