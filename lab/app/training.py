"""`monosem train`: dictionaries on one or more sites, transcoders, a crosscoder or a cross-layer transcoder."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import tyro

from ...saes.clt.training import CrossLayerTrainer, cross_layer_trainer_on
from ...saes.sweeps.sweep import trainer_on
from ...saes.training import TrainConfig, Trainer
from ..errors import InputError
from ..loading import device_named
from ..loop import train
from ..runs import Run
from ..sites import Site
from ..store import ActivationStore
from ..streams import ActivationStream, StreamConfig
from .dictionary_options import DictionaryOptions
from .options import Flat, ModelText, check_loop

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Train:
    """Train one dictionary per site; one forward pass of the model feeds them all.

    With --target they are transcoders to that site; with --crosscode it is one dictionary over all sites; with
    --targets it is one cross-layer transcoder, which reads each of --sites and writes from that layer on.
    """

    out: tyro.conf.Positional[Path]
    """Folder of the run."""
    sites: tuple[str, ...] = ("resid_post.12",)
    """Where to read, TransformerLens names included."""
    target: str | None = None
    """Train transcoders: predict this site from each of --sites."""
    skip: bool = False
    """With --target or --targets: add a linear map of the input to what the latents predict."""
    crosscode: bool = False
    """Train one crosscoder over all of --sites, in place of one dictionary for each."""
    targets: tuple[str, ...] = ()
    """Train one cross-layer transcoder: for each of --sites the output of the same layer, such as mlp_out.4 mlp_out.5.
    --n-latents and --k are then those of one layer."""
    joint: bool = False
    """With --targets and --architecture batchtopk: spend the codes of all layers where they are largest."""
    source: Flat[ModelText] = field(default_factory=ModelText)
    store: Path | None = None
    """Read activations from this store (written by `monosem harvest`) in place of a model."""
    dictionary: DictionaryOptions = field(default_factory=DictionaryOptions)
    training: TrainConfig = field(default_factory=TrainConfig)
    stream: StreamConfig = field(default_factory=StreamConfig)
    resume: bool = False
    """Continue the run in `out`; it ends in the same bytes as if it had never stopped."""
    log_every: int = 20
    """Steps between lines of metrics.jsonl."""
    checkpoint_minutes: float = 10.0
    """Minutes between checkpoints."""
    sinks: tuple[str, ...] = ()
    """Also send metrics to wandb, tensorboard or trackio."""

    def __post_init__(self) -> None:
        check_loop(self.log_every, self.checkpoint_minutes, self.sinks)
        self._check_sites()

    def _check_sites(self) -> None:
        read = set(map(Site.parse, self.sites))
        if self.target is not None and Site.parse(self.target) in read:
            raise InputError(
                f"target {self.target} is among the sites: a transcoder predicts another site than it reads"
            )
        if self.target is not None and self.crosscode:
            raise InputError("a crosscoder reconstructs the sites it reads: give --target or --crosscode, not both")
        if self.skip and self.target is None and not self.targets:
            raise InputError("--skip is for transcoders: give --target, the site to predict")
        if self.targets and (self.target is not None or self.crosscode):
            raise InputError("--targets trains one cross-layer transcoder: leave out --target and --crosscode")
        if self.targets and len(self.targets) != len(self.sites):
            raise InputError(
                f"give one of --targets for each of --sites, got {len(self.targets)} for {len(self.sites)}"
            )
        if self.joint and not self.targets:
            raise InputError("--joint is for cross-layer transcoders: give --targets, the outputs to predict")
        if self.crosscode and len(read) < 2:
            raise InputError(f"a crosscoder reads at least two sites, got {', '.join(self.sites) or 'none'}")

    def run(self) -> dict[str, Any]:
        """Train and return where everything is."""
        run = self.train(self.open_stream())
        return {
            "run": str(run.folder),
            "dictionaries": {name: str(path) for name, path in run.dictionaries.items()},
            "tokens": stream_counts(run)["tokens"],
            "rows": stream_counts(run)["served"],
            "tokens_per_second": tokens_per_second(run),
            "last": {name: run.metrics(name)[-1] for name in run.dictionaries},
        }

    def open_stream(self) -> ActivationStream:
        """The stream of the training split, or of the store."""
        sites = (*self.sites, *self.targets, *((self.target,) if self.target else ()))
        if self.store is not None:
            store = ActivationStore.open(self.store)
            return ActivationStream.from_store(store, sites=sites, config=self.stream)
        model = self.source.open_model()
        corpus = self.source.open_corpus(model, split="train")
        return ActivationStream(model, corpus, sites, config=self.stream)

    def train(self, stream: ActivationStream) -> Run:
        """Run the loop; resumes where `resume` is set."""
        stands_on, trainers = stream.fingerprint(), self._trainers(stream)
        run = Run.create(self.out, self._config(), stands_on, resume=self.resume)
        return train(
            stream, trainers, run, steps=-(-self.training.rows // self.stream.batch),
            log_every=self.log_every, checkpoint_minutes=self.checkpoint_minutes, sinks=self.sinks,
        )  # fmt: skip

    def _trainers(self, stream: ActivationStream) -> Sequence[Trainer | CrossLayerTrainer]:
        sites, device = list(dict.fromkeys(map(Site.parse, self.sites))), device_named(self.source.device)
        if self.targets:
            given = self.dictionary.given()
            own = {"base": given.pop("architecture"), "joint": self.joint, "skip": self.skip, **given}
            written = list(map(Site.parse, self.targets))
            return [cross_layer_trainer_on(stream, sites, written, self.training, device=device, **own)]
        target = None if self.target is None else Site.parse(self.target)
        own = {**self.dictionary.given(), **({"skip": True} if self.skip else {})}
        return [
            trainer_on(stream, read, own, self.training, target=target, device=device)
            for read in ([sites] if self.crosscode else [[site] for site in sites])
        ]

    def _config(self) -> dict[str, Any]:
        """What the run is asked for; what marks transcoders and crosscoders only where this is one."""
        rare = {"target": self.target, "skip": self.skip, "crosscode": self.crosscode, "joint": self.joint}
        rare["targets"] = list(self.targets)
        return {"sites": list(self.sites), "dictionary": self.dictionary.given(), "training": asdict(self.training),
                **{name: value for name, value in rare.items() if value}}  # fmt: skip


def stream_counts(run: Run) -> dict[str, Any]:
    """Tokens read, rows kept, dropped and served over the whole finished run."""
    return (run.manifest or {})["counts"]


def tokens_per_second(run: Run) -> float:
    """Rows trained on per second of the loop, interruptions left out."""
    lines = [json.loads(line) for line in (run.folder / "timing.jsonl").read_text().splitlines()]
    return sum(line["rows"] for line in lines) / max(sum(line["seconds"] for line in lines), 1e-9)
