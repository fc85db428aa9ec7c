"""`monosem bench probing`: sparse probes of sentence embeddings over the sae-probes data sets, timed."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from ....probes.tasks.datasets import dataset_names, load_dataset
from ....probes.tasks.sentences import SentenceProbing, probe_sentences
from ....probes.tasks.texts import over_datasets
from ....saes.evaluation.results import flat
from ..options import Flat
from .command import Bench


@dataclass(frozen=True)
class BenchProbing(Bench):
    """Embed texts with MiniLM, train a dictionary on the vectors, probe every data set; with all baselines."""

    example = "monosem bench probing --datasets 92_glue_sst2"

    datasets: tuple[str, ...] = ("all",)
    """Names of data sets; "all" takes the 113."""
    probing: Flat[SentenceProbing] = field(default_factory=SentenceProbing)

    def race(self) -> dict[str, Any]:
        """JSON keys seconds, cpu_seconds, datasets, and the mean of every score with its nulls."""
        wall, cpu = time.perf_counter(), time.process_time()
        names = dataset_names() if self.datasets == ("all",) else self.datasets
        probes = probe_sentences([load_dataset(name) for name in names], self.probing, progress=True)
        means = over_datasets(probes, seed=self.probing.probe.seed)
        return {
            "datasets": len(probes),
            "seconds": time.perf_counter() - wall,
            "cpu_seconds": time.process_time() - cpu,
            **flat(means),
        }
