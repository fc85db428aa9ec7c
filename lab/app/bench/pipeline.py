"""`monosem bench pipeline`: seconds from text to a dictionary of a given quality, each library with its own harvest.

Model, text, site, number of latents, k and rows are equal. Every contestant runs in a process of its own
(`pipeline_worker`), one after another, and writes its dictionary at the same row counts while its clock is stopped. FVU
is then measured here, on rows of the same held-out documents, without the first position of a row and without rows
longer than ten times the median norm. A contestant that takes larger steps than the distance of two counts skips some.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro
from torch import Tensor

from ....saes.files import load
from ...errors import InputError
from ...figures import COLOURS, laid_out, plain
from ...models.sites import Site
from ...storage import read_json, write_json
from ...table import aligned
from ..checks import check_folder
from ..options import Flat, ModelText
from ..rows import split_rows
from .cells import Cells
from .command import Bench
from .score import score
from .timing import named

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

log = logging.getLogger(__name__)

LIBRARIES = ("sae-lens", "sparsify")
COLUMNS = ("documented", "matched")
FINEST = 64
"""Row counts at which dictionaries are measured are spaced by powers of two, down to this part of all rows."""


class CannotRunError(Exception):
    """A contestant's process failed; the message is one sentence with its last line."""


@dataclass(frozen=True)
class BenchPipeline(Bench):
    """Measure the wall time to a quality, from text on, beside other libraries; writes a table and a page."""

    example = "monosem bench pipeline runs/pipeline --against sparsify --rows 20000 --n-latents 1024"

    out: tyro.conf.Positional[Path]
    """Folder for dictionaries, results and the page; finished contestants in it are not run again."""
    against: str = ",".join(LIBRARIES)
    """Peers, comma-separated."""
    columns: str = ",".join(COLUMNS)
    """Ways of running the peers, comma-separated."""
    targets: tuple[float, ...] = (0.25, 0.20, 0.18)
    """Values of FVU whose time is reported."""
    n_latents: int = 2048
    """Number of latents."""
    k: int = 32
    """Active latents a row."""
    rows: int = 500_000
    """Rows each trains on; learning-rate schedules span these."""
    batch: int = 2048
    """Rows a step, ours and of matched peers."""
    held_out: int = 12_000
    """Held-out rows the FVU is measured on."""
    site: str = "resid_post.12"
    """Where the activations come from; a resid_post for sparsify."""
    source: Flat[ModelText] = field(default_factory=ModelText)

    def __post_init__(self) -> None:
        for name in ("n_latents", "k", "batch", "held_out"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.k > self.n_latents:
            raise InputError(f"k must be at most n_latents={self.n_latents}, got {self.k}")
        if self.rows < self.batch:
            raise InputError(f"rows={self.rows} are less than one batch of {self.batch}: give more rows")
        if not self.targets or not all(0 < target < 1 for target in self.targets):
            raise InputError(f"targets must lie between 0 and 1, got {self.targets}")
        named(self.against, LIBRARIES)
        named(self.columns, COLUMNS, "column", "--columns")

    @property
    def marks(self) -> tuple[int, ...]:
        """Row counts at which dictionaries are measured: rows, a half, a quarter and so on, and three quarters."""
        parts = [self.rows // 2**power for power in range(FINEST.bit_length())]
        return tuple(sorted({part for part in (*parts, 3 * self.rows // 4, 7 * self.rows // 8) if part >= 1}))

    def race(self) -> dict[str, Any]:
        """Run every contestant that is not finished, and measure.

        Returns:
            JSON key `contestants`, each with library, column, `curve` (rows, seconds, fvu), `seconds_to` each target
            (null where it is not reached), `rows_per_second`, `peak_bytes` of its process and `load_seconds` of the
            model; or with `cannot`, one sentence on why it did not run here. `page` is the path of the plot.
        """
        check_folder(self.out)
        self.source.check([self.site])
        asked = [("monosem", "documented")]
        asked += [(peer, column) for peer in named(self.against, LIBRARIES)
                  for column in named(self.columns, COLUMNS, "column", "--columns")]  # fmt: skip
        cells = Cells(self.out, self._decides())
        held: list[Tensor] = []
        contestants = [self._finished(*one, cells, held) for one in asked]
        result = {"rows": self.rows, "n_latents": self.n_latents, "k": self.k, "site": self.site,
                  "contestants": [self._timed(one) for one in contestants]}  # fmt: skip
        write_json(self.out / "results.json", result)
        return {**result, "page": str(self._write_page(result))}

    def _decides(self) -> dict[str, Any]:
        names = ("n_latents", "k", "rows", "batch", "held_out", "site")
        source = {"model": self.source.model, "dtype": self.source.dtype, "corpus": self.source.corpus}
        return {name: getattr(self, name) for name in names} | source | {"text": asdict(self.source.text)}

    def _finished(self, library: str, column: str, cells: Cells, held: list[Tensor]) -> dict[str, Any]:
        """The result of a contestant; one that failed is run again by the next command."""
        try:
            return cells.get({"library": library, "column": column}, lambda: self._run(library, column, held))
        except CannotRunError as error:
            return {"library": library, "column": column, "cannot": str(error)}

    def _run(self, library: str, column: str, held: list[Tensor]) -> dict[str, Any]:
        """One contestant: its process, then the FVU of what it wrote."""
        folder = self.out / f"{library}-{column}"
        folder.mkdir(parents=True, exist_ok=True)
        source = self.source
        write_json(folder / "asked.json", {
            "library": library, "matched": column == "matched", "model": source.model, "dtype": source.dtype,
            "corpus": source.corpus, "text": asdict(source.text), "site": self.site, "n_latents": self.n_latents,
            "k": self.k, "batch": self.batch, "rows": self.rows, "marks": list(self.marks), "folder": str(folder),
        })  # fmt: skip
        log.info("%s, %s: running in a process of its own", library, column)
        command = [sys.executable, "-m", f"{__package__}.pipeline_worker", str(folder / "asked.json")]
        with open(folder / "log.txt", "w") as output:
            done = subprocess.run(command, stdout=output, stderr=output, check=False)
        if done.returncode:
            lines = (folder / "log.txt").read_text().strip().splitlines() or ["no message"]
            raise CannotRunError(f"{library} ({column}) did not run on this machine: {lines[-1]}")
        found = read_json(folder / "found.json", "result of a contestant")
        if not held:
            held.append(split_rows(source, None, Site.parse(self.site), 4 * self.batch, self.held_out, self.batch)[1])
        curve = []
        for mark in found["marks"]:
            path = folder / f"{mark['rows']:09d}"
            measured = score(load(path / "dictionary" if library == "monosem" else path), held[0])
            curve.append({**mark, "fvu": measured.fvu, "l0": measured.l0})
        return {
            "library": library,
            "column": column,
            "curve": curve,
            **{name: found[name] for name in ("peak_bytes", "load_seconds", "dtype")},
        }

    def _timed(self, one: Mapping[str, Any]) -> dict[str, Any]:
        if "cannot" in one:
            return dict(one)
        curve = one["curve"]
        reached = {f"{target:g}": seconds_to(curve, target) for target in self.targets}
        return {**one, "seconds_to": reached, "rows_per_second": curve[-1]["rows"] / curve[-1]["seconds"]}

    def as_text(self, result: Mapping[str, Any]) -> str:
        """A line for each contestant; then why some did not run."""
        missing = [one["cannot"] for one in result["contestants"] if "cannot" in one]
        page = [f"page: {result['page']}"] if "page" in result else []
        return "\n".join([aligned(self._table(result["contestants"])), *missing, *page])

    def _table(self, contestants: Sequence[Mapping[str, Any]]) -> list[list[str]]:
        """Cells of the contestants that ran, under their heading."""
        goals = [f"s to FVU {target:g}" for target in self.targets]
        table = [["library", "column", *goals, "FVU at the end", "seconds", "rows/s", "peak GB"]]
        for one in contestants:
            if "cannot" in one:
                continue
            last = one["curve"][-1]
            reached = ["-" if value is None else f"{value:.1f}" for value in one["seconds_to"].values()]
            table.append([one["library"], one["column"], *reached, f"{last['fvu']:.4f}", f"{last['seconds']:.1f}",
                          f"{one['rows_per_second']:.0f}", f"{one['peak_bytes'] / 1e9:.2f}"])  # fmt: skip
        return table

    def _write_page(self, result: Mapping[str, Any]) -> Path:
        from ..pages.figures_page import FigureSection, write_figures_page

        ran = [one for one in result["contestants"] if "cannot" not in one]
        lead = (
            "Seconds of harvest, buffer and training together, from the moment the model is loaded. FVU is measured on "
            "rows of the same held-out documents while the clock is stopped."
        )
        facts = {"Model": self.source.model, "Site": self.site, "Latents": str(self.n_latents), "k": str(self.k),
                 "Rows": f"{self.rows:,}"}  # fmt: skip
        part = FigureSection("Time to quality", lead, {"FVU against seconds": curves(ran)}, self._table(ran))
        return write_figures_page(self.out / "pipeline.html", "Time to quality", facts, [part], {"results": result})


def seconds_to(curve: Sequence[Mapping[str, float]], target: float) -> float | None:
    """Seconds until an FVU, linear between the two counts on either side; None where it is not reached.

    Args:
        curve: seconds and fvu, in the order of training.
    """
    for before, after in zip([None, *curve], curve, strict=False):
        if after["fvu"] <= target:
            if before is None:
                return after["seconds"]
            share = (before["fvu"] - target) / (before["fvu"] - after["fvu"])
            return before["seconds"] + share * (after["seconds"] - before["seconds"])
    return None


def curves(contestants: Sequence[Mapping[str, Any]]) -> Figure:
    """FVU against seconds, a line each; matched peers are dashed."""
    from plotly.graph_objects import Figure, Scatter

    figure, libraries = Figure(), list(dict.fromkeys(one["library"] for one in contestants))
    for one in contestants:
        name = one["library"] if one["library"] == "monosem" else f"{one['library']}, {one['column']}"
        dash = "dash" if one["column"] == "matched" else "solid"
        figure.add_trace(
            Scatter(
                x=[mark["seconds"] for mark in one["curve"]], y=[mark["fvu"] for mark in one["curve"]],
                customdata=[mark["rows"] for mark in one["curve"]], name=plain(name), mode="lines+markers",
                line={"color": COLOURS[libraries.index(one["library"]) % len(COLOURS)], "dash": dash},
                hovertemplate=f"{plain(name)}<br>%{{x:.1f}} s, %{{customdata:,}} rows<br>FVU %{{y:.4f}}<extra></extra>",
            )
        )  # fmt: skip
    return laid_out(figure, "seconds", "FVU on held-out rows")
