"""`monosem finetune`: train a dictionary through the model, and say what that gained on held-out text.

Beside it the same dictionary is trained locally on the same rows: the null. Both, and the dictionary as it was, are
measured on the same held-out documents.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import tyro

from ....saes.architectures.sae import SparseAutoencoder
from ....saes.dictionary import Dictionary
from ....saes.evaluation.evaluate import EvaluationConfig, evaluate
from ....saes.files import load
from ....saes.place import CROSSCODER
from ....saes.registry import build_trainable, trainable
from ....saes.training.end_to_end import EndToEnd, EndToEndConfig, later_sites
from ....saes.training.trainer import TrainConfig, Trainer
from ...errors import InputError
from ...models.hooked_model import HookedModel
from ...models.loading import device_named
from ...models.sites import Site
from ...runs.run import Run
from ...storage import write_json
from ...streams.token_stream import TokenStream
from ..checks import check_run
from ..command import Command, Result
from ..options import Flat, ModelText
from ..training_options import LoopOptions
from ..used_dictionaries import UsedDictionaries

log = logging.getLogger(__name__)

LOCAL, BEFORE = "local", "before"


@dataclass(frozen=True)
class FinetuneCommand(Command):
    """Train a dictionary by the model's loss with it spliced in, and locally on the same rows for comparison."""

    example = "monosem finetune runs/first runs/tuned --rows 2000"

    dictionary: tyro.conf.Positional[Path]
    """Folder of a dictionary, of a run with exactly one, a dictionary of another library, `hf:ORG/REPO[/FOLDER]` or
    `sae-lens:RELEASE/ID`."""
    out: tyro.conf.Positional[Path]
    """Folder of the run."""
    objective: Flat[EndToEndConfig] = field(default_factory=EndToEndConfig)
    training: Flat[TrainConfig] = field(default_factory=lambda: TrainConfig(rows=200_000, lr=1e-4, warmup=0.1))
    fresh: bool = False
    """Take only architecture, sizes and site from the dictionary, and start from fresh weights."""
    source: Flat[ModelText] = field(default_factory=ModelText)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    loop: Flat[LoopOptions] = field(default_factory=LoopOptions)
    use: Flat[UsedDictionaries] = field(default_factory=UsedDictionaries)

    def run(self) -> Result:
        """Train, measure and return the scores; also written into the run as `finetuning.json`.

        Every score is that of the fine-tuned dictionary; its nulls are the dictionary before and the one trained
        locally.
        """
        folder, before = self.use.read(self.dictionary)
        check_run(self.out, self.loop.resume)
        source = self.source.of([before])
        self.use.check(source, [before])
        model = self.use.open_model(source, [before])
        run = self.train(model, folder, before)
        tuned, local = (load(run.dictionaries[name]) for name in (self.objective.loss, LOCAL))
        evaluation = evaluate(
            model, source.open_corpus(model, split="heldout"), tuned,
            replace(self.evaluation, spliced=(BEFORE, LOCAL)), nulls={BEFORE: before, LOCAL: local},
        )  # fmt: skip
        log.info("%r", evaluation)
        result = {"run": str(run.folder), "from": str(folder), "objective": asdict(self.objective),
                  "dictionaries": {name: str(path) for name, path in run.dictionaries.items()},
                  "evaluation": evaluation.to_json()}  # fmt: skip
        write_json(run.folder / "finetuning.json", result)
        return self.result(result)

    def train(self, model: HookedModel, folder: Path, before: Dictionary) -> Run:
        """Run the loop with both trainers; resumes where `resume` is set."""
        place = before.check(model)
        if place.kind == CROSSCODER and len(place.sources) > 1:
            raise InputError(
                f"{before!r} is a crosscoder, which writes several sites at once: fine-tune one of one site"
            )
        place.source  # noqa: B018 (refuses a cross-layer transcoder)
        limits: dict[str | Site, float | None] = {**place.norm_limits}
        corpus = self.source.open_corpus(model, split="train")
        next(iter(corpus))  # text that cannot be read leaves no run behind
        stream = TokenStream(
            model, corpus, place.sites, norm_limit=limits,
            also=later_sites(model, place.sites[-1]) if self.objective.downstream else (),
        )  # fmt: skip
        consumers = [
            EndToEnd(model, self.trainer(before, self.objective.loss), self.objective),
            self.trainer(before, LOCAL),
        ]
        config = {"objective": asdict(self.objective), "training": asdict(self.training), "fresh": self.fresh,
                  "from": before.provenance.training, "dictionary": asdict(before.config)}  # fmt: skip
        run = Run.create(self.out, config, stream.fingerprint(), resume=self.loop.resume)
        log.info("%s of %s on %r", self.objective.loss, folder, stream)
        return self.loop.train(stream, consumers, run)

    def trainer(self, before: Dictionary, name: str) -> Trainer:
        """A trainer of a copy.

        Raises:
            InputError: an architecture that is not trained.
        """
        if not isinstance(before, SparseAutoencoder) or before.architecture not in trainable():
            raise InputError(f"{before!r} is not trained: give one of {', '.join(trainable())}")
        copy = build_trainable(before.architecture, **asdict(before.config))
        if not self.fresh:
            copy.load_state_dict(before.state_dict())
        origin = replace(before.provenance, training={})
        return Trainer(
            copy.to(device_named(self.source.device)), before.place, self.training,
            name=name, provenance=origin, trained=not self.fresh,
        )  # fmt: skip
