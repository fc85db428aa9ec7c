"""Sparse probing of sentence embeddings: a real encoder, real labels, and nothing to download.

Texts become unit vectors (MiniLM by default), a small BatchTopK dictionary is trained on the vectors of all of them
without their labels, and each data set is probed through its latents. Beside every score stand the same probe on an
untrained dictionary, on principal components, on coordinates, on random latents and with shuffled labels.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from threadpoolctl import threadpool_limits
from torch import Tensor
from tqdm import tqdm

from ...lab.errors import InputError
from ...lab.models.sites import Site
from ...lab.rng import generator
from ...lab.streams.activation_stream import Batch
from ...lab.text.sentence_encoder import SentenceEncoder
from ...saes.dictionary import Dictionary, Provenance
from ...saes.evaluation.nulls import untrained
from ...saes.registry import build_trainable
from ...saes.training.trainer import TrainConfig, Trainer
from ..fitting.sparse import SparseProbe, SparseProbeConfig, sparse_probe
from .datasets import LabelledTexts

log = logging.getLogger(__name__)

SITE = Site.parse("path:sentence")
"""What stands for a site where the rows are whole texts."""


@dataclass(frozen=True)
class SentenceProbing:
    """Which part of the texts is read, the dictionary trained on them, and the probes."""

    texts: int = 200
    """Texts of each data set, half of each class."""
    tokens: int = 64
    """Tokens of a text that are read; the rest is cut off."""
    n_latents: int = 768
    """Latents of the dictionary."""
    k: int = 16
    """Codes a text, on average."""
    rows: int = 200_000
    """Rows to train it on; texts come again."""
    batch: int = 512
    """Rows a training step."""
    lr: float = 2e-3
    """Its peak learning rate."""
    probe: SparseProbeConfig = field(default_factory=lambda: SparseProbeConfig(k=(1, 5)))
    """How each label is probed; its seed is that of the dictionary and of drawing texts too."""

    def __post_init__(self) -> None:
        for name in ("texts", "n_latents", "k", "rows", "batch"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.tokens < 3:
            raise InputError(f"tokens must be at least 3, of which two begin and end a text, got {self.tokens}")


def probe_sentences(
    datasets: Sequence[LabelledTexts],
    config: SentenceProbing | None = None,
    *,
    encoder: SentenceEncoder | None = None,
    dictionary: Dictionary | None = None,
    progress: bool = False,
) -> dict[str, SparseProbe]:
    """Sparse probes of every data set, by name; equal texts stay on one side of a split.

    Args:
        encoder: makes the vectors; None takes MiniLM, reading the config's number of tokens.
        dictionary: of such vectors; None trains one on the texts at hand, test texts included, without labels.

    Raises:
        InputError: no data set, MiniLM is not installed, or what `sparse_probe` refuses.
    """
    config = config or SentenceProbing()
    if not datasets:
        raise InputError("no data set is given: take some of probes.datasets.dataset_names()")
    encoder = encoder or SentenceEncoder(tokens=config.tokens)
    taken = [data.take(config.texts, config.probe.seed) for data in datasets]
    log.info("embedding %d texts of %d data sets", sum(map(len, taken)), len(taken))
    x = encoder.embed([text for data in taken for text in data.texts], progress=progress)
    dictionary = dictionary or train_dictionary(x, config)
    null = untrained(dictionary, x, config.k, generator(config.probe.seed, "sentences", "untrained"))
    scores = {}
    parts = zip(taken, x.split([len(data) for data in taken]), strict=True)
    with threadpool_limits(1):  # a few hundred rows: more threads only wait for one another
        for data, rows in tqdm(list(parts), desc="probe", unit="set", disable=not progress):
            scores[data.name] = sparse_probe(
                dictionary.encode(rows).to_dense(), rows, data.labels, groups=data.texts, config=config.probe,
                others={"untrained": null.encode(rows).to_dense()},
            )  # fmt: skip
    return scores


def train_dictionary(x: Float[Tensor, "texts d"], config: SentenceProbing) -> Dictionary:
    """A BatchTopK dictionary of the rows, in their units."""
    trainer = Trainer(
        build_trainable("batchtopk", d_in=x.shape[1], n_latents=config.n_latents, k=config.k),
        SITE,
        TrainConfig(rows=config.rows, lr=config.lr, seed=config.probe.seed),
        provenance=Provenance({"name": "sentences"}),
    )
    rng = generator(config.probe.seed, "sentences", "order")
    while not trainer.done:
        chosen = torch.randint(len(x), (config.batch,), generator=rng)
        trainer.step(Batch({SITE: x[chosen]}, torch.stack([chosen, torch.zeros_like(chosen)], 1)))
    return trainer.folded()
