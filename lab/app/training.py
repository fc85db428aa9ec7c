"""`monosem train`: dictionaries on one or more sites, all off one stream."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import tyro

from ...saes.dictionary import Provenance
from ...saes.files import build_trainable
from ...saes.training import TrainConfig, Trainer
from ..errors import InputError, unknown
from ..loading import device_named
from ..loop import train
from ..runs import Run
from ..sinks import SINKS
from ..store import ActivationStore
from ..streams import ActivationStream, StreamConfig
from .options import Flat, ModelText

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DictionaryOptions:
    """The dictionary to train on every site."""

    architecture: str = "topk"
    """relu, gated, jumprelu, topk, abstopk, groupmax, batchtopk or matryoshka."""
    n_latents: int = 9216
    """Number of latents."""
    k: int = 32
    """Active latents a row (on average, for batchtopk)."""


@dataclass(frozen=True)
class Train:
    """Train one dictionary per site; one forward pass of the model feeds them all."""

    out: tyro.conf.Positional[Path]
    """Folder of the run."""
    sites: tuple[str, ...] = ("resid_post.12",)
    """Where to read, TransformerLens names included."""
    source: Flat[ModelText] = field(default_factory=ModelText)
    store: Path | None = None
    """Read activations from this store (written by `monosem harvest`) in place of a model."""
    dictionary: Flat[DictionaryOptions] = field(default_factory=DictionaryOptions)
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
        if self.log_every < 1:
            raise InputError(f"log_every must be at least 1, got {self.log_every}")
        for sink in self.sinks:
            if sink not in SINKS:
                raise unknown("metrics sink", sink, SINKS)

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
        if self.store is not None:
            store = ActivationStore.open(self.store)
            return ActivationStream.from_store(store, sites=self.sites, config=self.stream)
        model = self.source.open_model()
        corpus = self.source.open_corpus(model, split="train")
        return ActivationStream(model, corpus, self.sites, config=self.stream)

    def train(self, stream: ActivationStream) -> Run:
        """Run the loop; resumes where `resume` is set."""
        config = {"sites": list(self.sites), "dictionary": asdict(self.dictionary), "training": asdict(self.training)}
        stands_on = stream.fingerprint()
        limits = stream.norm_limit  # reads the first rows: what cannot be read or built leaves no run behind
        place = device_named(self.source.device)
        trainers = [
            Trainer(
                build_trainable(d_in=width, **asdict(self.dictionary)).to(place), site, self.training,
                provenance=Provenance(str(site), stands_on.get("model", {}), limits[site]),
            )
            for site, width in stream.widths.items()
        ]  # fmt: skip
        run = Run.create(self.out, config, stands_on, resume=self.resume)
        return train(
            stream, trainers, run, steps=-(-self.training.rows // self.stream.batch),
            log_every=self.log_every, checkpoint_minutes=self.checkpoint_minutes, sinks=self.sinks,
        )  # fmt: skip


def stream_counts(run: Run) -> dict[str, Any]:
    """Tokens read, rows kept, dropped and served over the whole finished run."""
    return (run.manifest or {})["counts"]


def tokens_per_second(run: Run) -> float:
    """Rows trained on per second of the loop, interruptions left out."""
    lines = [json.loads(line) for line in (run.folder / "timing.jsonl").read_text().splitlines()]
    return sum(line["rows"] for line in lines) / max(sum(line["seconds"] for line in lines), 1e-9)
