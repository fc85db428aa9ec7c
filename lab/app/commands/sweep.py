"""`monosem sweep`: many dictionaries off one stream, measured together, with a table and Pareto plots at the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from ....saes.evaluation.evaluate import EvaluationConfig
from ....saes.evaluation.shared import require_nulls
from ....saes.registry import trainable
from ....saes.sweeps.grid import ALL, Member, grid, require_distinct
from ....saes.sweeps.sweep import plan, sweep
from ....saes.sweeps.table import cells
from ....saes.training.trainer import TrainConfig
from ...errors import InputError, unknown
from ...models.hooked_model import HookedModel
from ...models.loading import device_named
from ...runs.run import Run
from ...streams.activation_stream import ActivationStream
from ...table import aligned
from ..command import Command, Result
from ..options import Flat
from ..pages.sweep_page import write_sweep_page
from ..training_options import LoopOptions, StreamOptions
from .sweep_grid_file import read_grid

ARCHITECTURES = ", ".join(trainable())


@dataclass(frozen=True)
class SweepCommand(Command):
    """Train every combination of the axes, one forward pass of the model for all, then measure all against nulls.

    Writes results.json, results.csv and pareto.html (scores against L0, and the course of training) into the folder,
    beside one folder for each dictionary.
    """

    example = "monosem sweep runs/sweep --n-latents 2304 --k 16 32 --rows 20000"

    out: tyro.conf.Positional[Path]
    """Folder of the sweep."""
    architectures: Annotated[tuple[str, ...], tyro.conf.arg(help=f"Some of {ARCHITECTURES}; or {ALL}.")] = ("topk",)
    """Names in `saes.registry.trainable`, or `all`."""
    n_latents: tuple[int, ...] = (9216,)
    """Numbers of latents."""
    k: tuple[int, ...] = (32,)
    """Active latents a row, or the L0 that a penalty is steered to."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the starting weights; from two on, gaps between recipes stand beside the noise between seeds."""
    sites: tuple[str, ...] = ("resid_post.12",)
    """Where to read, TransformerLens names included. 'resid_mid.12 -> mlp_out.12' is a transcoder, 'resid_post.8 +
    resid_post.12' a crosscoder, 'resid_mid.8-11 -> mlp_out.8-11' a cross-layer transcoder over four layers, whose
    n_latents and k are those of one layer: each in quotes."""
    skip: tuple[bool, ...] = ()
    """For transcoders: whether they add a linear map of what they read; `False True` trains both."""
    lr: tuple[float, ...] = ()
    """Peak learning rates; by default the rule of --training.lr."""
    grid: Path | None = None
    """A .json or .toml file with one table or a list `grid` of tables: each is one more grid, whose fields (of the
    above, of an architecture's config, or training.NAME) have a value or a list, and stand in place of the options."""
    reading: Flat[StreamOptions] = field(default_factory=StreamOptions)
    training: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    evaluate: bool = True
    """Measure all dictionaries on held-out documents when they are trained."""
    at_once: int | None = None
    """Dictionaries in memory at once; each further group is another pass over the stream. By default all."""
    loop: Flat[LoopOptions] = field(default_factory=LoopOptions)

    def __post_init__(self) -> None:
        if self.at_once is not None and self.at_once < 1:
            raise InputError(f"at_once must be at least 1, got {self.at_once}")
        members = self.members()
        if self.evaluate:
            require_nulls(self.evaluation)
            for member in members:
                member.place.require_order()

    def members(self) -> list[Member]:
        """Every combination of the options, and of each table of the grid file in their place.

        Raises:
            InputError: an axis without values, an unknown name, a value that is refused, or the same member twice.
        """
        axes: dict[str, Any] = {
            "architecture": list(self.architectures), "site": list(self.sites), "n_latents": list(self.n_latents),
            "k": list(self.k), "seed": list(self.seeds), **({"lr": list(self.lr)} if self.lr else {}),
            **({"skip": list(self.skip)} if self.skip else {}),
        }  # fmt: skip
        for name in self.architectures:
            if name != ALL and name not in trainable():
                raise unknown("architecture", name, (*trainable(), ALL))
        tables = read_grid(self.grid) if self.grid is not None else [{}]
        members = [member for table in tables for member in grid(self.training, **{**axes, **table})]
        require_distinct(members)
        return members

    def run(self) -> Result:
        """Train, measure, write the results, and return them as one object."""
        source, members = self.reading.source, self.members()
        sites = tuple(dict.fromkeys(str(site) for member in members for site in member.place.sites))
        self.reading.check(sites, self.out, self.loop.resume)
        model = None if self.reading.store is not None and not self.evaluate else source.open_model()
        longest = max(member.training.rows for member in members)
        place, first = device_named(source.device), self._stream(sites, model, longest)
        plan(first, members, self.at_once, device=place)
        self.loop.require_rows(first, longest)
        first.norm_limit  # noqa: B018 (reads the first rows: what cannot be read or held leaves no run behind)
        opened = iter([first])
        run = Run.create(self.out, {"training": asdict(self.training)}, first.fingerprint(), resume=self.loop.resume)
        result = sweep(
            lambda: next(opened, None) or self._stream(sites, model, longest), members, run,
            at_once=self.at_once, device=place, **self.loop.arguments(),
        )  # fmt: skip
        if model is not None and self.evaluate:
            result = result.evaluate(model, source.open_corpus(model, split="heldout"), self.evaluation)
        result.save()
        written = {"run": str(run.folder), "results": str(run.folder / "results.json")}
        written["page"] = str(write_sweep_page(run.folder / "pareto.html", result))
        return self.result({**written, **result.to_json()}, written["page"])

    def _stream(self, sites: tuple[str, ...], model: HookedModel | None, rows: int) -> ActivationStream:
        """A fresh stream, whose buffer is no larger than the rows asked for."""
        return self.reading.open(sites, model, rows=rows, out=self.out)

    def as_text(self, result: Mapping[str, Any]) -> str:
        """The result for people: the table, the front, gaps between recipes, and where the files are."""
        lines = [aligned(cells(result["members"])), ""]
        for site, fronts in result.get("pareto", {}).items():
            lines += [f"Pareto front of {score} at {site}: {', '.join(names)}" for score, names in fronts.items()]
        gaps = result.get("gaps", ())
        clear = [gap for gap in gaps if gap["verdict"] in ("first", "second")]
        lines += [gap_text(gap) for gap in clear]
        lines += [f"{len(gaps) - len(clear)} of {len(gaps)} gaps between recipes are within seed noise"] if gaps else []
        return "\n".join([*lines, *(f"{key}: {result[key]}" for key in ("run", "results", "page") if key in result)])


def gap_text(gap: dict[str, Any]) -> str:
    """One line for a gap between two recipes."""
    low, high = gap["interval"] or (None, None)
    spread = "" if low is None else f" [{low:.4g}, {high:.4g}]"
    verdict = {"first": f"{gap['first']} is better", "second": f"{gap['second']} is better"}.get(
        gap["verdict"], gap["verdict"]
    )
    noise = "" if gap["noise"] is None else f", seed noise {gap['noise']:.4g}"
    return f"{gap['score']}: {gap['first']} - {gap['second']} = {gap['difference']:.4g}{spread}{noise}: {verdict}"
