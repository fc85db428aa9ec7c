"""The replacement model: every output that a cross-layer transcoder predicts is what it predicts, at once.

Latents read the stream as the replacements before them have made it, so errors add up over layers ("Circuit Tracing",
Ameisen et al. 2025, section "Building an interpretable replacement model"). Scores are those of `splicing`; "zero" and
"mean" ablate the same outputs together, and `own_layer` lets latents write only to the layer they read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...lab.errors import InputError
from ...lab.models import HookedModel
from ...lab.packing import TokenBatch
from ...lab.sites import Site
from ..splicing import Edits, SpliceLosses, counted, log_softmax_, parts_of, predicting, score_edits, splice_edit
from ..sums import DocumentSums
from .cross_layer import CrossLayer

NAME, OWN_LAYER = "clt", "own_layer"


def replace_outputs(
    model: HookedModel,
    batches: Iterable[TokenBatch],
    dictionary: CrossLayer,
    mean: Float[Tensor, " d_out"],
    *,
    tokens: int,
) -> SpliceLosses:
    """Run the model clean, ablated and as the replacement model, until `tokens` predictions are measured.

    The variants of the result are "clt" and "own_layer": `result.evidence("clt", ["own_layer"])`.

    Args:
        mean: of all outputs side by side; what the mean ablation writes.

    Raises:
        InputError: the dictionary names no sites, one of them reads after the output of its layer, or the batches
            hold no prediction.
    """
    origin = dictionary.provenance
    sources, targets = ([model.site(site) for site in sites] for sites in (origin.sources, origin.targets))
    if not sources or not targets:
        raise InputError(f"{dictionary!r} names no sites: set provenance.sources and provenance.targets")
    for source, target in zip(sources, targets, strict=True):
        if source > target:
            raise InputError(f"a layer must be read before its output is replaced: {source} comes after {target}")
    sums, counts = DocumentSums(), Counter()
    for batch in parts_of(batches, model.vocab_size or 1):
        counts.update(_measure(model, batch, dictionary, sources, targets, mean, sums))
        if counts["predictions"] >= tokens:
            break
    if not counts["predictions"]:
        raise InputError("no usable token with a usable next token was found: give a corpus with longer documents")
    return SpliceLosses(sums, dict(counts))


def replacing(
    dictionary: CrossLayer,
    sources: list[Site],
    targets: list[Site],
    mask: Bool[Tensor, "batch tokens"],
    own_layer: bool = False,
) -> Edits:
    """Edits for `HookedModel.editing`: sites that are read pass unchanged, outputs become predictions where `mask`.

    Args:
        own_layer: let latents write only to the layer they read.
    """
    layers, width = len(sources), dictionary.d_out // len(targets)
    written = [bias.repeat(int(mask.sum()), 1) for bias in dictionary.b_dec.chunk(layers)]

    def reading(layer: int) -> Callable[[Tensor], Tensor]:
        def read(x: Tensor) -> Tensor:
            rows = x.reshape(*mask.shape, -1)[mask].float()
            block = dictionary.layers[layer]
            parts = (block.decode(block.encode(rows)) - block.b_dec).split(width, 1)
            for later, part in enumerate(parts[:1] if own_layer else parts, layer):
                written[later] += part
            if dictionary.W_skip is not None:
                written[layer] += rows @ dictionary.W_skip[layer].T
            return x

        return read

    def writing(layer: int) -> Callable[[Tensor], Tensor]:
        return splice_edit(lambda _: written[layer], mask)

    edits: dict[str | Site, Callable[[Tensor], Tensor]] = {}
    edits.update({site: reading(at) for at, site in enumerate(sources)})
    edits.update({site: writing(at) for at, site in enumerate(targets)})
    return edits


@torch.no_grad()
def _measure(
    model: HookedModel,
    batch: TokenBatch,
    dictionary: CrossLayer,
    sources: list[Site],
    targets: list[Site],
    mean: Float[Tensor, " d_out"],
    sums: DocumentSums,
) -> dict[str, int]:
    """One part of a batch, in every variant; special and first tokens, padding and long rows pass unchanged."""
    attention = None if bool(batch.attention.all()) else batch.attention
    usable, predicts = batch.usable.to(model.device), predicting(batch).to(model.device)
    edited = usable.clone()
    means = dict(zip(targets, mean.chunk(len(targets)), strict=True))

    def constant(value: Tensor) -> Callable[[Tensor], Tensor]:
        return splice_edit(lambda rows: value.to(rows).expand_as(rows), edited)

    def checking(limit: float) -> Callable[[Tensor], Tensor]:
        def check(x: Tensor) -> Tensor:
            norms = torch.linalg.vector_norm(x.reshape(*edited.shape, -1), dim=-1, dtype=torch.float32)
            edited.logical_and_(norms <= limit)
            return x

        return check

    def logits(edits: Edits) -> Float[Tensor, "predictions vocab"]:
        with model.editing(edits):
            return model.logits(batch.tokens, attention_mask=attention)[predicts]

    limits = dictionary.provenance.norm_limits
    clean = log_softmax_(logits({model.site(site): checking(limit) for site, limit in limits.items()}).float())
    variants: dict[str, Edits] = {
        "zero": {site: constant(torch.zeros_like(value)) for site, value in means.items()},
        "mean": {site: constant(value) for site, value in means.items()},
        NAME: replacing(dictionary, sources, targets, edited),
        OWN_LAYER: replacing(dictionary, sources, targets, edited, own_layer=True),
    }
    score_edits(logits, variants, clean, batch, predicts, sums)
    return counted(predicts, usable, edited)
