"""`monosem bench layer-sweep`: probes of every kind at every layer from one pass, timed; live against stored."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ....probes.fitting.fits import fit_all
from ....probes.labelled_files import open_texts
from ....probes.labels import Labels
from ....probes.layer_sweep import ReadConfig, expand_sites, probe_sweep, text_stream
from ....probes.measure import MeasureConfig
from ....probes.pooling import PooledTexts
from ...errors import InputError
from ...models.hooked_model import HookedModel
from ...models.loading import load_model
from ...models.sites import Site
from ...runs.read import read
from ...streams.activation_stream import ActivationStream
from ...streams.store import ActivationStore
from ..options import Flat
from .command import Bench


@dataclass(frozen=True)
class BenchLayerSweep(Bench):
    """Read texts once, fit and measure probes with nulls at every site; then a few sites from a store on disk."""

    example = "monosem bench layer-sweep --texts 200"

    data: str = "sae-probes:92_glue_sst2"
    """Labelled texts, named like those of `monosem probe --data`."""
    texts: int = 4000
    """Texts to probe."""
    model: str = "smollm2-135m"
    """Model, named like that of `monosem probe --model`."""
    dtype: str | None = None
    """bf16, fp16 or fp32; by default bf16 where the hardware multiplies it."""
    sites: tuple[str, ...] = ("resid_post.*",)
    """Names or patterns."""
    kinds: tuple[str, ...] = ("logistic", "mean_difference", "ridge", "lda")
    """Kinds of probe; those in closed form and logistic are also compared between stream and store."""
    stored_texts: int = 200
    """Texts that are written to a store and probed from there too, at the first and the last site."""
    read: Flat[ReadConfig] = field(default_factory=ReadConfig)
    measure: Flat[MeasureConfig] = field(default_factory=MeasureConfig)

    def __post_init__(self) -> None:
        if self.stored_texts < 20:
            raise InputError(f"stored_texts must be at least 20, got {self.stored_texts}")

    def race(self) -> dict[str, Any]:
        """Seconds to read and to fit, CPU seconds, scores at the best site of every kind, and live against stored.

        The best site is chosen on half of the tested texts and scored on the other half.
        """
        model = load_model(self.model, dtype=self.dtype)
        data = open_texts(self.data, limit=self.texts, seed=self.measure.seed)
        wall, cpu = time.perf_counter(), time.process_time()
        sweep = probe_sweep(
            model, data.texts, data.labels, self.sites, self.kinds, self.read, self.measure, progress=True
        )
        seconds = {"total": time.perf_counter() - wall, "cpu": time.process_time() - cpu, **sweep.facts["seconds"]}
        tokens = int(next(iter(sweep.units.values())).labels.tokens.sum())  # type: ignore[union-attr]
        best = {kind: sweep.chosen(kind) for kind in self.kinds}
        few = data.labels.y.argsort(stable=True)[:: max(1, len(data.texts) // self.stored_texts)]
        return {
            "texts": len(data.texts),
            "tokens": tokens,
            "places": len(sweep.measured),
            "probes": sum(len(kinds) for kinds in sweep.measured.values()),
            "seconds": seconds,
            "best": {
                kind: {"place": chosen.place, **{name: one.to_json() for name, one in chosen.scores.items()}}
                for kind, chosen in best.items()
            },
            "live_equals_stored": self._live_and_stored(
                model, [data.texts[i] for i in few.tolist()], data.labels.take(few)
            ),
        }

    def _live_and_stored(self, model: HookedModel, texts: list[str], labels: Labels) -> dict[str, bool]:
        """For every kind, whether weights and biases from the stream and from its store are the same bytes."""
        sites = expand_sites(model, self.sites)
        sites = list(dict.fromkeys([sites[0], sites[-1]]))
        kinds = [kind for kind in self.kinds if kind != "attention"]
        live = self._probes(model, text_stream(model, texts, sites, self.read), labels, sites, kinds)
        with tempfile.TemporaryDirectory() as folder:
            store = ActivationStore.write(
                text_stream(model, texts, sites, self.read), Path(folder) / "store", dtype=model.dtype, progress=False
            )
            replayed = self._probes(
                model, ActivationStream.from_store(store, batch=256, buffer=4096, seed=1), labels, sites, kinds
            )
        return {
            kind: all(
                torch.equal(getattr(live[place][kind], part), getattr(replayed[place][kind], part))
                for place in live
                for part in ("weight", "bias")
            )
            for kind in kinds
        }

    def _probes(
        self, model: HookedModel, stream: ActivationStream, labels: Labels, sites: list[Site], kinds: list[str]
    ) -> dict[str, Any]:
        texts = PooledTexts(labels, sites, model, pooling=self.read.pooling)
        read(stream, texts, description="read texts", progress=False)
        return {place: fit_all(kinds, rows, self.measure.fit) for place, rows in texts.rows().items()}
