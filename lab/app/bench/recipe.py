"""`monosem bench recipe`: what each default of training is worth, one change at a time, on held-out rows.

Every change is trained on the same rows in the same order, once for each architecture, shape and seed, beside the
defaults themselves. A rate given as `lr=x2` is that multiple of the default rule for the shape and the run.
"""

from __future__ import annotations

import ast
import logging
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ....saes.registry import trainable
from ....saes.training.config import TrainConfig, default_lr
from ...errors import InputError, unknown
from ...models.sites import Site
from ...table import aligned
from ..options import Flat, ModelText
from ..rows import split_rows
from .architectures import Rows
from .cells import Cells
from .command import Bench
from .contestant import Asked, Ours
from .score import score
from .timing import named

log = logging.getLogger(__name__)

CHANGES = (
    "lr=x0.5",
    "lr=x2",
    "beta1=0.9,beta2=0.999",
    "beta1=0.9",
    "beta2=0.999",
    "beta1=0",
    "blend=0",
    "blend=0.2",
    "blend=0.8",
    "start_bias='zero'",
    "start='kaiming'",
    "warmup=0",
    "decay=0",
    "decay=0.6",
    "decay_shape='cosine'",
    "aux_k=0",
)
"""What is changed, one at a time; fields of one change are set together."""
FIXED = ("rows", "seed")
"""Fields that the options of the benchmark set."""
NUMBERS = [one.name for one in fields(TrainConfig) if not isinstance(one.default, str)]
"""Fields whose values are numbers, or None."""


@dataclass(frozen=True)
class BenchRecipe(Bench):
    """Train with the defaults and with one change at a time, on the same rows; report FVU on held-out rows."""

    example = "monosem bench recipe --architectures topk --changes blend=0 lr=x2 --rows 20000 --seeds 0"

    changes: tuple[str, ...] = CHANGES
    """Changes of the training options, each `field=value`, several with commas. `lr=x2` is twice the rule."""
    architectures: str = "topk"
    """Which, comma-separated."""
    n_latents: tuple[int, ...] = (2048,)
    """Numbers of latents."""
    k: int = 32
    """Active latents a row."""
    batch: tuple[int, ...] = (512,)
    """Rows a step."""
    rows: int = 100_000
    """Rows all are trained on, each once."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the starting weights and of the order of rows."""
    held_out: int = 12_000
    """Held-out rows that the FVU is measured on."""
    site: str = "resid_post.12"
    """Where the activations come from."""
    source: Flat[ModelText] = field(default_factory=ModelText)
    store: Path | None = None
    """Use this store's rows (written by `monosem harvest`); documents of their own are held out."""
    keep: Path | None = None
    """Keep finished trainings in this folder, and continue from those in it."""

    def __post_init__(self) -> None:
        if not self.seeds or min(self.seeds) < 0:
            raise InputError(f"seeds must be one or more numbers from 0, got {self.seeds}")
        if self.rows < max(self.batch):
            raise InputError(f"rows={self.rows} are less than one batch of {max(self.batch)}: give more rows")
        named(self.architectures, tuple(trainable()), "architecture", "--architectures")
        for change in self.changes:
            for n in self.n_latents:
                TrainConfig(**changed(change, n, self.batch[0], self.rows))

    def race(self) -> dict[str, Any]:
        """One line for each architecture, shape and change.

        Returns:
            JSON key `lines`; a line has `change` ("" for the defaults), the learning rate, `fvu` (mean), `spread` and
            `by_seed`, `ratio` to the FVU of the defaults, `l0`, the share of latents that no held-out row activates
            (`unfired`) and the share that was dead when training ended (`dead`; null where the run is not longer than
            `dead_after`).
        """
        site = Site.parse(self.site)
        decides: dict[str, Any] = {name: getattr(self, name) for name in ("k", "rows", "held_out", "site")}
        decides["defaults"] = asdict(TrainConfig())
        source = {"model": self.source.model, "dtype": self.source.dtype, "corpus": self.source.corpus}
        store = None if self.store is None else str(self.store.resolve())
        cells = Cells(self.keep, decides | source | {"store": store})
        x, held = split_rows(self.source, self.store, site, self.rows, self.held_out, max(self.batch))
        rows = Rows(x[: self.rows], held, held)
        lines: list[dict[str, Any]] = []
        for n in self.n_latents:
            for batch in self.batch:
                for name in named(self.architectures, tuple(trainable())):
                    asked = Asked(n, self.k, self.rows // batch, name)
                    default: dict[str, Any] | None = None
                    for change in ("", *self.changes):
                        line = self._line(asked, batch, change, rows, cells)
                        default = default or line
                        lines.append({**line, "ratio": line["fvu"] / default["fvu"]})
                        log.info("%s", lines[-1])
        return {"d_in": x.shape[1], "k": self.k, "rows": self.rows, "seeds": list(self.seeds), "lines": lines}

    def _line(self, asked: Asked, batch: int, change: str, rows: Rows, cells: Cells) -> dict[str, Any]:
        shape = {"architecture": asked.architecture, "n_latents": asked.n_latents, "batch": batch}
        changes = changed(change, asked.n_latents, batch, asked.steps * batch)

        def train(seed: int) -> dict[str, Any]:
            made = Ours(next(rows.batches(batch, 1, seed)), Asked(**{**vars(asked), "seed": seed}), **changes)
            for part in rows.batches(batch, 1, seed):
                made.step(part)
            dictionary, trainer = made.dictionary(), made.trainer
            dead = trainer.dead.fraction if trainer.rows > trainer.config.dead_after else None
            return {**score(dictionary, rows.test)._asdict(), "dead": dead}

        found = [
            cells.get({**shape, "change": change, "seed": seed}, lambda seed=seed: train(seed)) for seed in self.seeds
        ]
        by_seed, dead = [one["fvu"] for one in found], [one["dead"] for one in found]
        return {
            **shape, "change": change, "lr": changes.get("lr", default_lr(asked.n_latents, batch, asked.steps * batch)),
            "fvu": statistics.fmean(by_seed), "spread": max(by_seed) - min(by_seed), "by_seed": by_seed,
            "l0": statistics.fmean(one["l0"] for one in found),
            "unfired": statistics.fmean(one["unfired"] for one in found),
            "dead": None if None in dead else statistics.fmean(dead),
        }  # fmt: skip

    def as_text(self, result: Mapping[str, Any]) -> str:
        """A table: a line for each architecture, shape and change."""
        table = [["latents", "batch", "architecture", "change", "lr", "L0", "FVU", "ratio", "unfired", "dead"]]
        for line in result["lines"]:
            dead = "" if line["dead"] is None else f"{line['dead']:.2%}"
            table.append([
                str(line["n_latents"]), str(line["batch"]), line["architecture"], line["change"] or "(defaults)",
                f"{line['lr']:.2g}", f"{line['l0']:.1f}", f"{line['fvu']:.4f} ±{line['spread'] / 2:.4f}",
                f"{line['ratio']:.3f}", f"{line['unfired']:.2%}", dead,
            ])  # fmt: skip
        return aligned(table)


def changed(change: str, n_latents: int, batch: int, rows: int) -> dict[str, Any]:
    """Fields of `TrainConfig` by what is written of them, such as `beta1=0.9,blend=0` or `lr=x2`.

    Raises:
        InputError: it is not of this form, or there is no such field.
    """
    names = [one.name for one in fields(TrainConfig) if one.name not in FIXED]
    found: dict[str, Any] = {}
    for part in filter(None, change.split(",")):
        name, _, value = (word.strip() for word in part.partition("="))
        if name not in names:
            raise unknown("training option", name, names)
        times = name == "lr" and value.startswith("x")
        try:
            found[name] = ast.literal_eval(value[times:])
        except (ValueError, SyntaxError):
            found[name] = value
        if name in NUMBERS and not isinstance(found[name], (int, float, type(None))):
            raise InputError(f"--changes {part!r}: {name} is a number, or for lr x and a number, got {value!r}")
        if times:
            found[name] *= default_lr(n_latents, batch, rows)
    return found
