"""`monosem train`: dictionaries on one or more sites, transcoders, a crosscoder or a cross-layer transcoder."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import tyro

from ....saes.place import Place
from ....saes.training.trainer import TrainConfig, Trainer
from ...errors import InputError
from ...models.loading import device_named
from ...models.sites import Site
from ...runs.run import Run
from ...streams.activation_stream import ActivationStream
from ..command import Command, Result
from ..dictionary_options import DictionaryOptions
from ..options import Flat
from ..training_options import LoopOptions, StreamOptions, outcome

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainCommand(Command):
    """Train one dictionary per site; one forward pass of the model feeds them all.

    With --target they are transcoders to that site; with --crosscode it is one dictionary over all sites; with
    --targets it is one cross-layer transcoder, which reads each of --sites and writes from that layer on.
    """

    example = "monosem train runs/first --sites resid_post.12 --rows 20000 --n-latents 2304"

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
    reading: Flat[StreamOptions] = field(default_factory=StreamOptions)
    dictionary: DictionaryOptions = field(default_factory=DictionaryOptions)
    training: TrainConfig = field(default_factory=TrainConfig)
    loop: Flat[LoopOptions] = field(default_factory=LoopOptions)

    def __post_init__(self) -> None:
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

    def run(self) -> Result:
        """Train and return where everything is."""
        self.reading.check(self._read_sites, self.out, self.loop.resume)
        run = self.train(self.open_stream())
        return self.result({**outcome(run), "last": {name: run.metrics(name)[-1] for name in run.dictionaries}})

    def open_stream(self) -> ActivationStream:
        """The stream of the training split, or of the store."""
        return self.reading.open(self._read_sites, rows=self.training.rows, out=self.out)

    @property
    def _read_sites(self) -> tuple[str, ...]:
        return (*self.sites, *self.targets, *((self.target,) if self.target else ()))

    def train(self, stream: ActivationStream) -> Run:
        """Run the loop; resumes where `resume` is set."""
        fingerprints, trainers = stream.fingerprint(), self._trainers(stream)
        self.loop.require_rows(stream, self.training.rows)
        run = Run.create(self.out, self._config(), fingerprints, resume=self.loop.resume)
        return self.loop.train(stream, trainers, run, self.training.rows)

    def _places(self) -> list[Place]:
        """The place of every dictionary."""
        sites = list(dict.fromkeys(map(Site.parse, self.sites)))
        if self.targets:
            return [Place.at(sites, self.targets)]
        predicts = () if self.target is None else (self.target,)
        return [Place.at(reads, predicts) for reads in ([sites] if self.crosscode else [[site] for site in sites])]

    def _trainers(self, stream: ActivationStream) -> list[Any]:
        own = self.dictionary.given()
        architecture = own.pop("architecture")
        rare = {"skip": self.skip, "joint": self.joint}
        own |= {name: value for name, value in rare.items() if value}
        given = {"dictionary": own, "training": self.training, "device": device_named(self.reading.source.device)}
        return [Trainer.on(stream, place, architecture, **given) for place in self._places()]

    def _config(self) -> dict[str, Any]:
        """The run's request; fields of transcoders and crosscoders stand in it only for such a place."""
        rare = {"target": self.target, "skip": self.skip, "crosscode": self.crosscode, "joint": self.joint}
        rare["targets"] = list(self.targets)
        return {"sites": list(self.sites), "dictionary": self.dictionary.given(), "training": asdict(self.training),
                **{name: value for name, value in rare.items() if value}}  # fmt: skip
