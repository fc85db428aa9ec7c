"""`Features`: what latents fire on, and what they do to the logits.

features = collect(model, corpus, dictionary, tokens=500_000, latents=512)
features.examples(123)      # the strongest, in context
features.top_logits(123)    # tokens it promotes and suppresses
features.save("features")   # parquet and JSON; `load` reads it without model or tokenizer

`FeatureCollector` does the same as a consumer, beside whatever else is measured in one pass (`lab.read`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...lab.errors import InputError
from ...lab.models.hooked_model import HookedModel
from ...lab.models.sites import Site
from ...lab.rng import generator
from ...lab.runs.read import read
from ...lab.runs.run import Run
from ...lab.sequences import positions_of
from ...lab.streams.token_stream import TokenStream
from ...lab.text.corpus import Corpus
from ...lab.text.token_text import token_texts
from ..dictionary import Dictionary
from .blocks import OUTSIDE
from .examples import FeatureExamples
from .feature_set import Features, Logits

N_LOGITS = 10
LOGIT_ROWS = 256
"""Directions multiplied by the unembedding at a time: 50 MB at a vocabulary of 49,152."""
RESIDUAL = ("resid_pre", "attn_add", "resid_mid", "mlp_add", "resid_post")


def collect(
    model: HookedModel,
    corpus: Corpus,
    dictionary: Dictionary,
    *,
    tokens: int = 500_000,
    latents: Sequence[int] | int | None = None,
    top: int = 12,
    per_octave: int = 3,
    context: tuple[int, int] = (20, 8),
    site: Site | str | None = None,
    seed: int = 0,
    run: Run | None = None,
    progress: bool = False,
) -> Features:
    """Run a model over a corpus once and keep what every latent fires on.

    Args:
        tokens: how many usable tokens to read; fewer if the corpus ends.
        latents: which latents get examples and logits: a list, how many to draw evenly, or None for all.
            Counts, maxima and histograms are kept for all.
        top: strongest examples a latent.
        per_octave: random examples a latent and octave of activation.
        context: tokens shown before and after.
        site: where to read; where the dictionary was trained if None.
        seed: of the drawn latents and the random examples.
        run: where reading leaves checkpoints, and what an earlier call is continued from.
        progress: show a bar.

    Raises:
        InputError: no site is known, widths disagree, a latent is outside the dictionary or a size is not
            possible.
    """
    collector = FeatureCollector(
        model, corpus, dictionary, tokens=tokens, latents=latents, top=top, per_octave=per_octave, context=context,
        site=site, seed=seed,
    )  # fmt: skip
    stream = TokenStream.reading(model, corpus, collector.sites)
    read(stream, collector, run, description="features", progress=progress)
    return collector.features()


class FeatureCollector(FeatureExamples):
    """A consumer of token batches that ends in `Features`; arguments as in `collect`.

    Args:
        corpus: names the text, and tells its tokens where the model has no tokenizer.

    Raises:
        InputError: as `collect`.
    """

    def __init__(
        self,
        model: HookedModel,
        corpus: Corpus,
        dictionary: Dictionary,
        *,
        tokens: int | None = 500_000,
        latents: Sequence[int] | int | None = None,
        top: int = 12,
        per_octave: int = 3,
        context: tuple[int, int] = (20, 8),
        site: Site | str | None = None,
        seed: int = 0,
        name: str = "features",
    ) -> None:
        where = model.site(_site(dictionary, site))
        super().__init__(
            dictionary, _chosen(dictionary.n_latents, latents, seed), top=top, per_octave=per_octave,
            context=context, seed=seed, site=where, tokens=tokens, name=name,
        )  # fmt: skip
        self.model, self.corpus = model, corpus

    def features(self) -> Features:
        """Everything collected so far, with the directions' effects on the logits and the text of every token."""
        options = self._options()
        source = {
            "model": self.model.name,
            "site": str(self.sites[0]),
            "dictionary": repr(self.dictionary),
            "corpus": repr(self.corpus),
            **{name: options[name] for name in ("context", "top", "per_octave", "seed")},
            "unusable": self.unusable,
            "too_long": self.too_long,
        }
        logits = _logits(self.model, self.sites[0], self.dictionary, self.latents)
        return _finish(self, source, logits, self.corpus, self.model)

    def save(self, folder: Path) -> None:
        """Write the features (see `features.files`)."""
        self.features().save(folder)


def _finish(
    examples: FeatureExamples,
    source: dict[str, Any],
    logits: Logits | None,
    corpus: Corpus,
    model: HookedModel,
) -> Features:
    strongest, random = examples.tables()
    ids = [
        strongest.windows.tokens,
        random.windows.tokens,
        *((logits.top_tokens, logits.bottom_tokens) if logits else ()),
    ]
    used = np.unique(np.concatenate([column.ravel() for column in ids]))
    return Features(
        source=source,
        measured=examples.measured,
        count=examples.count,
        maximum=examples.maximum,
        bins=examples.histogram,
        l0=examples.l0,
        latents=examples.latents,
        strongest=strongest,
        random=random,
        logits=logits,
        texts=token_texts(model.tokenizer or corpus.tokenizer, used[used != OUTSIDE]),
    )


def _site(dictionary: Dictionary, site: Site | str | None) -> Site | str:
    return dictionary.place.site if site is None else site


def _chosen(n_latents: int, latents: Sequence[int] | int | None, seed: int) -> np.ndarray:
    if latents is None:
        return np.arange(n_latents)
    if not isinstance(latents, int):
        return positions_of(latents, "latents").numpy()
    if not 1 <= latents <= n_latents:
        raise InputError(f"latents={latents} cannot be drawn: give 1 to {n_latents}, a list, or None for all")
    return torch.randperm(n_latents, generator=generator(seed, "features", "latents"))[:latents].numpy()


@torch.no_grad()
def _logits(model: HookedModel, site: Site, dictionary: Dictionary, latents: np.ndarray) -> Logits | None:
    if model.wiring.readout is None or not _writes_residual(model, site):
        return None
    parts = []
    for rows in torch.from_numpy(latents).split(LOGIT_ROWS):
        effects = model.logit_directions(dictionary.W_dec.detach()[rows.to(dictionary.W_dec.device)].float())
        top = effects.topk(min(N_LOGITS, effects.shape[1]), dim=1)
        bottom = effects.topk(min(N_LOGITS, effects.shape[1]), dim=1, largest=False)
        parts.append([top.indices.int(), top.values, bottom.indices.int(), bottom.values])
    return Logits(*(torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True)))


def _writes_residual(model: HookedModel, site: Site) -> bool:
    """True if the site holds vectors of the residual stream; a norm may follow a module's output."""
    if site.kind not in ("attn_out", "mlp_out"):
        return site.kind in RESIDUAL
    added = Site(site.kind.replace("_out", "_add"), site.layer)
    return model.wiring.tap(site) == model.wiring.tap(added)
