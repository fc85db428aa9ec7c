"""`monosem bench itda`: an ITDA beside sparse autoencoders of the same size, built in one loop from one stream."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from tqdm import tqdm

from ....saes.architectures.itda.dictionary import ITDA
from ....saes.dictionary import Dictionary
from ....saes.evaluation.evaluate import EvaluationConfig, evaluate_many
from ....saes.evaluation.itda_nulls import itda_nulls
from ....saes.evaluation.results import Evaluation
from ....saes.training.itda.trainer import GrowthConfig, ITDATrainer
from ....saes.training.trainer import Trainer
from ...errors import InputError
from ...models.hooked_model import HookedModel
from ...models.loading import device_named
from ...models.sites import Site
from ...streams.activation_stream import ActivationStream, StreamConfig
from ...streams.store import ActivationStore
from ..options import Flat, ModelText
from .command import Bench
from .timing import interleaved

log = logging.getLogger(__name__)

SCORES = ("fvu", "ce_recovered_zero", "ce_recovered_mean", "ce_increase", "l0", "dead")
BUILD_K = 40


@dataclass
class Clock:
    """Seconds spent, by the wall and by all threads together."""

    wall: float = 0.0
    cpu: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count what happens inside."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.wall += time.perf_counter() - wall
        self.cpu += time.process_time() - cpu

    def shared(self, parts: int) -> Clock:
        """One of so many equal parts."""
        return Clock(self.wall / parts, self.cpu / parts)


@dataclass(frozen=True)
class BenchItda(Bench):
    """Build an ITDA and train TopK autoencoders of the same size on one stream; compare time, quality and encoding.

    The ITDA takes its batches evenly over the run, so that a machine that is slower for a while is so for all.
    """

    example = "monosem bench itda --itda-rows 5000 --sae-rows 20000"

    n_latents: int = 9216
    """Atoms, and latents of each autoencoder."""
    itda_rows: int = 100_000
    """Rows the ITDA may see; it takes fewer where it is full before."""
    sae_rows: int = 2_000_000
    """Rows an autoencoder is trained on."""
    ks: tuple[int, ...] = (20, BUILD_K, 80)
    """Codes a row: an autoencoder is trained for each; the ITDA is built once and encodes with each."""
    tau: float = GrowthConfig.tau
    """Threshold of the ITDA: 1 - cos."""
    site: str = "resid_post.12"
    """Where the activations come from."""
    batch: int = 2048
    """Rows a step."""
    buffer: int = StreamConfig.buffer
    """Rows that are shuffled."""
    source: Flat[ModelText] = field(default_factory=ModelText)
    store: Path | None = None
    """Read the rows from this store, serving each more than once where it holds fewer. The forward pass is then timed
    on `forward_rows` rows of text, and each row is charged one pass, however often it is served."""
    forward_rows: int = 8192
    """Rows to time the forward pass on, with a store."""
    rounds: int = 3
    """Times that the last batch is encoded; medians are compared."""
    keep: Path | None = None
    """Folder for the dictionaries."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        for name in ("n_latents", "itda_rows", "sae_rows", "batch", "forward_rows", "rounds"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.ks or min(self.ks) < 1 or max(self.ks) > self.n_latents:
            raise InputError(f"ks are from 1 to n_latents={self.n_latents}, got {self.ks}")
        if self.itda_rows > self.sae_rows:
            raise InputError(f"itda_rows={self.itda_rows} is more than sae_rows={self.sae_rows}, and read with them")
        self.growth()

    def growth(self) -> GrowthConfig:
        """How the ITDA is built."""
        k = BUILD_K if BUILD_K in self.ks else self.ks[0]
        return GrowthConfig(max_atoms=self.n_latents, rows=self.itda_rows, k=k, tau=self.tau)

    def race(self) -> dict[str, Any]:
        """Build, time and measure.

        Returns:
            JSON keys `seconds` and `cpu_seconds` (step of each, and the forward pass a row), `forward_rows` (rows whose
            forward pass each needs: a row that is served again is charged once), `ratio` of the ITDA's to the
            autoencoder's wall time with and without the forward pass, `encode` (microseconds a token, and the ratio to
            the autoencoder's), and `scores` by dictionary, each an Evidence beside its nulls.
        """
        model = self.source.open_model()
        stream = self._open(model)
        saes, itda, clocks, rows = self._build(stream)
        if self.store is None:
            fresh = stream.counts["kept"]
            forward = clocks["forward"].shared(fresh)
        else:
            fresh = min(ActivationStore.open(self.store).rows, self.sae_rows)
            forward = self._forward(model)
        needed = {"itda": min(itda.rows, fresh), "sae": fresh}
        built = itda.folded()
        dictionaries: dict[str, Dictionary] = {
            **{f"itda_{k}": built.with_encoder(k=k) for k in self.ks},
            **{f"sae_{k}": sae.folded() for k, sae in saes.items()},
        }
        if self.keep is not None:
            for name, one in dictionaries.items():
                one.save(self.keep / name)
        return {
            "atoms": built.n_latents,
            "itda_rows": itda.rows,
            "stopped": itda.stopped,
            "sae_rows": next(iter(saes.values())).rows,
            "seconds": {name: clock.wall for name, clock in clocks.items()},
            "cpu_seconds": {name: clock.cpu for name, clock in clocks.items()},
            "forward_seconds_a_row": forward.wall,
            "forward_rows": needed,
            "ratio": self._ratios(clocks, needed, forward),
            "encode": self._encode(dictionaries, rows[-self.batch :]),
            "scores": self._scores(model, dictionaries, built, rows[: -self.batch]),
        }

    def _open(self, model: HookedModel) -> ActivationStream:
        """The stream of the training split, or of the store."""
        config = StreamConfig(batch=self.batch, buffer=self.buffer)
        if self.store is None:
            return ActivationStream(model, self.source.open_corpus(model, split="train"), [self.site], config=config)
        store = ActivationStore.open(self.store)
        if store.rows < self.itda_rows:
            raise InputError(f"{self.store} holds {store.rows} rows and itda_rows={self.itda_rows}: harvest more")
        config = replace(config, reuse=-(-self.sae_rows // store.rows))
        log.info("%s holds %d rows: each is served %d times on average", self.store, store.rows, config.reuse)
        return ActivationStream.from_store(store, sites=[self.site], config=config)

    def _build(self, stream: ActivationStream) -> tuple[dict[int, Trainer], ITDATrainer, dict[str, Clock], Tensor]:
        """The trainers when all are done, their clocks, and some rows: as many of the first as atoms, and the last."""
        site, device = Site.parse(self.site), device_named(self.source.device)
        shape = {"n_latents": self.n_latents, "rows": self.sae_rows, "device": device}
        saes = {k: cast(Trainer, Trainer.on(stream, site, "topk", k=k, name=f"sae_{k}", **shape)) for k in self.ks}
        itda = cast(ITDATrainer, Trainer.on(stream, site, "itda", training=self.growth(), device=device))
        clocks = {name: Clock() for name in ("forward", "itda", *(one.name for one in saes.values()))}
        gap, rows, steps = max(1, self.sae_rows // self.itda_rows), [], -(-self.sae_rows // self.batch)
        with tqdm(total=self.sae_rows, unit="row", unit_scale=True) as bar:
            for number in range(steps):  # a bare loop: forward pass and learners have a clock each
                with clocks["forward"].running():
                    batch = next(stream)
                if number * self.batch < self.n_latents or number == steps - 1:
                    rows.append(batch.acts[site].float())
                if number % gap == 0 and not itda.done:
                    with clocks["itda"].running():
                        itda.step(batch)
                for sae in saes.values():
                    with clocks[sae.name].running():
                        sae.step(batch)
                bar.update(len(batch.origin))
        stream.close()
        return saes, itda, clocks, torch.cat(rows)

    def _forward(self, model: HookedModel) -> Clock:
        """A row of text: a part of the forward pass over `forward_rows` of them."""
        clock, config = Clock(), StreamConfig(batch=512, buffer=1024)
        stream = ActivationStream(model, self.source.open_corpus(model, split="train"), [self.site], config=config)
        next(stream)  # the model is warm now
        before = stream.counts["kept"]
        with clock.running():
            # a bare loop: nothing but the forward pass is in the clock
            while stream.counts["kept"] - before < self.forward_rows:
                next(stream)
        stream.close()
        return clock.shared(stream.counts["kept"] - before)

    def _ratios(self, clocks: dict[str, Clock], needed: dict[str, int], forward: Clock) -> dict[str, float]:
        """Of the ITDA's time to that of the autoencoder with the k it was built with."""
        itda, sae = clocks["itda"], clocks[f"sae_{self.growth().k}"]
        ours, theirs = needed["itda"], needed["sae"]
        return {
            "wall": (itda.wall + ours * forward.wall) / (sae.wall + theirs * forward.wall),
            "cpu": (itda.cpu + ours * forward.cpu) / (sae.cpu + theirs * forward.cpu),
            "wall_without_forward": itda.wall / sae.wall,
            "cpu_without_forward": itda.cpu / sae.cpu,
        }

    def _encode(self, dictionaries: dict[str, Dictionary], x: Tensor) -> dict[str, dict[str, float]]:
        log.info("timing encode on %d rows", len(x))
        turns: dict[str, Callable[[int], object]] = {
            name: lambda _, one=one: one.encode(x) for name, one in dictionaries.items()
        }
        seconds = interleaved(turns, self.rounds, 1)
        return {
            "microseconds_a_token": {name: 1e6 * value / len(x) for name, value in seconds.items()},
            "ratio": {str(k): seconds[f"itda_{k}"] / seconds[f"sae_{k}"] for k in self.ks},
        }

    def _scores(
        self, model: HookedModel, dictionaries: dict[str, Dictionary], built: ITDA, rows: Tensor
    ) -> dict[str, dict[str, Any]]:
        """Of every dictionary and of the ITDA's own nulls; those of `evaluate` stand inside each Evidence."""
        nulls = {
            f"{name}_{k}": null for k in self.ks for name, null in itda_nulls(built.with_encoder(k=k), rows).items()
        }
        corpus = self.source.open_corpus(model, split="heldout")
        found = evaluate_many(model, corpus, {**dictionaries, **nulls}, self.evaluation)
        return {name: _chosen(one, SCORES) for name, one in found.items()}


def _chosen(evaluation: Evaluation, names: Sequence[str]) -> dict[str, Any]:
    return {name: evaluation[name].to_json() for name in names if name in evaluation.scores}
