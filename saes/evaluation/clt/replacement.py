"""The replacement model: every output that a cross-layer transcoder predicts is what it predicts, at once.

Latents read the stream as the replacements before them have made it, so errors add up over layers ("Circuit Tracing",
Ameisen et al. 2025, section "Building an interpretable replacement model"). Scores are those of `splicing`; "zero" and
"mean" ablate the same outputs together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from ....lab.errors import InputError
from ....lab.models.hooked_model import HookedModel
from ....lab.models.sites import PATH, Site
from ....lab.text.packing import TokenBatch
from ...architectures.clt.cross_layer import CrossLayer
from ...edit import predicting, splice_edit
from ..document_sums import DocumentSums
from ..splicing import Edits, SpliceLosses, counted, log_softmax_, parts_of, require_free_names, score_edits


def replace_outputs(
    model: HookedModel,
    batches: Iterable[TokenBatch],
    dictionaries: Mapping[str, CrossLayer],
    mean: Float[Tensor, " d_out"],
    *,
    tokens: int,
    progress: bool = False,
) -> SpliceLosses:
    """Run the model clean, ablated and as each replacement model, until `tokens` predictions are measured.

    Args:
        dictionaries: by name, all of the same sites; "clean", "zero" and "mean" are taken. The rows that the first
            one's norm limits leave out are left out for all.
        mean: of all outputs side by side; what the mean ablation writes.

    Raises:
        InputError: a taken name; dictionaries that name no sites or different ones; a site that is read after the
            output of its layer; or batches that hold no prediction.
    """
    require_free_names(dictionaries)
    sources, targets = _places(model, list(dictionaries.values()))
    limits = {
        model.site(site): limit for site, limit in next(iter(dictionaries.values())).provenance.norm_limits.items()
    }
    sums, counts = DocumentSums(), Counter()
    with tqdm(total=tokens, unit="tok", desc="replace", disable=not progress) as bar:
        for batch in parts_of(batches, model.vocab_size or 1):
            counts.update(_measure(model, batch, dictionaries, sources, targets, limits, mean, sums))
            bar.update(min(counts["predictions"], tokens) - bar.n)
            if counts["predictions"] >= tokens:
                break
    if not counts["predictions"]:
        raise InputError("no usable token with a usable next token was found: give a corpus with longer documents")
    return SpliceLosses(sums, dict(counts))


def _places(model: HookedModel, dictionaries: Sequence[CrossLayer]) -> tuple[list[Site], list[Site]]:
    """What the layers of all of them read and write."""
    if not dictionaries:
        raise InputError("there is nothing to replace outputs with: give at least one cross-layer transcoder")
    first = dictionaries[0]
    for one in dictionaries:
        origin = one.provenance
        if not origin.sources or not origin.targets:
            raise InputError(f"{one!r} names no sites: set provenance.sources and provenance.targets")
        if (origin.sources, origin.targets) != (first.provenance.sources, first.provenance.targets):
            raise InputError(f"{one!r} is of other sites than {first!r}: replace their outputs one after the other")
    sources, targets = (
        [model.site(site) for site in sites] for sites in (first.provenance.sources, first.provenance.targets)
    )
    for source, target in zip(sources, targets, strict=True):
        if PATH not in (source.kind, target.kind) and source > target:  # when a path runs, only the module knows
            raise InputError(f"a layer must be read before its output is replaced: {source} comes after {target}")
    return sources, targets


def replacing(
    dictionary: CrossLayer, sources: Sequence[Site], targets: Sequence[Site], mask: Bool[Tensor, "batch tokens"]
) -> Edits:
    """Edits for `HookedModel.editing`: sites that are read pass unchanged, outputs become predictions where `mask`."""
    layers, width = len(sources), dictionary.d_out // len(targets)
    written = [bias.repeat(int(mask.sum()), 1) for bias in dictionary.b_dec.chunk(layers)]

    def reading(layer: int) -> Callable[[Tensor], Tensor]:
        def read(x: Tensor) -> Tensor:
            rows = x.reshape(*mask.shape, -1)[mask].float()
            block = dictionary.layers[layer]
            parts = (block.decode(block.encode(rows)) - block.b_dec).split(width, 1)
            for later, part in enumerate(parts, layer):
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
    dictionaries: Mapping[str, CrossLayer],
    sources: Sequence[Site],
    targets: Sequence[Site],
    limits: Mapping[Site, float],
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

    clean = log_softmax_(logits({site: checking(limit) for site, limit in limits.items()}).float())
    variants: dict[str, Edits] = {
        "zero": {site: constant(torch.zeros_like(value)) for site, value in means.items()},
        "mean": {site: constant(value) for site, value in means.items()},
        **{name: replacing(one, sources, targets, edited) for name, one in dictionaries.items()},
    }
    score_edits(logits, variants, clean, batch, predicts, sums)
    return counted(predicts, usable, edited)
