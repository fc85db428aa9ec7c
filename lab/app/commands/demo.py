"""`monosem demo`: the main path once. Stream, train, measure against nulls, look at features, write one page."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

from ....saes.evaluation.evaluate import EvaluationConfig, evaluate
from ....saes.evaluation.results import Evaluation
from ....saes.features.collect import Features, collect
from ....saes.files import load
from ....saes.training.trainer import TrainConfig
from ...errors import InputError
from ...models.hooked_model import HookedModel
from ...runs.run import Run
from ...storage import write_json
from ...streams.activation_stream import ActivationStream, StreamConfig
from ...text.corpus import TextConfig
from ..checks import check_folder
from ..command import Command, Result
from ..dictionary_options import DictionaryOptions
from ..options import Flat, ModelText
from ..pages.report import write_report
from ..training_options import LoopOptions, StreamOptions, stream_counts, tokens_per_second
from .train import TrainCommand

log = logging.getLogger(__name__)

HELD_OUT_TOKENS = 128
"""Of each held-out document: short pieces of many documents, so that intervals over documents mean something."""


@dataclass(frozen=True)
class DemoCommand(Command):
    """Train a TopK SAE on a real model, evaluate it, find what features fire on and write an HTML report.

    Run again after an interruption, it continues.
    """

    example = "monosem demo"
    always_json = True

    out: tyro.conf.Positional[Path] = Path("runs/demo")
    """Folder of the run."""
    site: str = "resid_post.12"
    """Where to read."""
    source: Flat[ModelText] = field(
        default_factory=lambda: ModelText(text=TextConfig(heldout=0.2, document_tokens=256))
    )
    dictionary: DictionaryOptions = field(default_factory=DictionaryOptions)
    training: TrainConfig = field(default_factory=lambda: TrainConfig(rows=327_680))
    stream: StreamConfig = field(default_factory=lambda: StreamConfig(buffer=32_768, reuse=3))
    evaluation: EvaluationConfig = field(default_factory=lambda: EvaluationConfig(tokens=16_384, ce_tokens=1_536))
    allow_short: bool = False
    """Accept a text that ends before --training.rows (with --stream.epochs)."""
    features: int = 64
    """How many features to show."""
    feature_tokens: int = 16_384
    """Held-out tokens searched for examples."""

    def __post_init__(self) -> None:
        if not 1 <= self.features <= self.dictionary.n_latents:
            raise InputError(f"features must be from 1 to n_latents={self.dictionary.n_latents}, got {self.features}")

    def run(self) -> Result:
        """Everything, then the summary that is printed as JSON."""
        start = time.perf_counter()
        check_folder(self.out)
        self.source.check([self.site])
        model = self.source.open_model()
        log.info("%r", model)
        run = self._train(model)
        folder = next(iter(run.dictionaries.values()))
        held_out = self.source.open_corpus(model, split="heldout", document_tokens=HELD_OUT_TOKENS)
        evaluation = evaluate(model, held_out, load(folder), self.evaluation)
        evaluation.save(folder / "evaluation.json")
        log.info("%r", evaluation)
        features = collect(
            model, held_out, load(folder), tokens=self.feature_tokens, latents=self.features, progress=True
        )
        features.save(run.folder / "features")
        summary = self._summary(run, evaluation, time.perf_counter() - start)
        report = self._report(run, evaluation, features, summary)
        summary["report"] = str(report)
        write_json(run.folder / "summary.json", summary)
        return self.result(summary, report)

    def _train(self, model: HookedModel) -> Run:
        corpus = self.source.open_corpus(model, split="train")
        stream = ActivationStream(model, corpus, [self.site], config=self.stream)
        training = TrainCommand(
            out=self.out, sites=(self.site,), reading=StreamOptions(self.source, stream=self.stream),
            dictionary=self.dictionary, training=self.training,
            loop=LoopOptions(resume=True, allow_short=self.allow_short),
        )  # fmt: skip
        return training.train(stream)

    def _summary(self, run: Run, evaluation: Evaluation, seconds: float) -> dict[str, Any]:
        scores = evaluation.scores
        last = run.metrics(next(iter(run.dictionaries)))[-1]
        counts = stream_counts(run)
        return {
            "fvu": scores["fvu"].value,
            "l0": scores["l0"].value,
            "dead_fraction": last["dead"],
            "dead_window_rows": self.training.dead_after,
            "ce_recovered_zero": scores["ce_recovered_zero"].value,
            "ce_recovered_mean": scores["ce_recovered_mean"].value,
            "nulls": {name: scores[name].nulls for name in ("fvu", "ce_recovered_zero", "ce_recovered_mean")},
            "intervals": {name: scores[name].interval for name in ("fvu", "ce_recovered_zero")},
            "tokens": counts["tokens"],
            "rows": counts["served"],
            "tokens_per_second": tokens_per_second(run),
            "seconds": seconds,
            "run": str(run.folder),
        }

    def _report(self, run: Run, evaluation: Evaluation, features: Features, summary: dict[str, Any]) -> Path:
        return write_report(
            run.folder / "report.html",
            title=f"{evaluation.site} of {evaluation.model}",
            evaluation=evaluation,
            metrics=run.metrics(next(iter(run.dictionaries))),
            features=features,
            manifest=run.manifest or {},
            summary=summary,
        )
