"""The replacement model: every output that a cross-layer transcoder predicts is what it predicts, at once.

Latents read the stream as the replacements before them have made it, so errors add up over layers ("Circuit Tracing",
Ameisen et al. 2025, section "Building an interpretable replacement model"). Scores are those of `splicing`; "zero" and
"mean" ablate the same outputs together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ....lab.errors import InputError
from ....lab.models.hooked_model import HookedModel
from ....lab.models.sites import Site
from ....lab.text.corpus import Corpus
from ....lab.text.packing import TokenBatch
from ...architectures.clt.cross_layer import CrossLayer
from ...edit import Edit, EditableRows, Stage
from ...place import Place
from ..document_sums import DocumentSums
from ..splicing import (
    Edits,
    Ends,
    SpliceLosses,
    Splices,
    counted,
    read_splices,
    require_free_names,
    score_edits,
)


def replacements(
    model: HookedModel,
    dictionaries: Mapping[str, CrossLayer],
    mean: Float[Tensor, " d_out"],
    *,
    tokens: int,
    name: str = "replace",
) -> Splices:
    """The consumer that runs replacement models; arguments as in `replace_outputs`.

    Raises:
        InputError: as `replace_outputs`.
    """
    require_free_names(dictionaries)
    place = _place(model, list(dictionaries.values()))
    sources, targets = place.reads, place.predicts
    limits = {site: limit for site, limit in place.norm_limits.items() if limit is not None}
    ends = Ends.of(model, place.sites)

    def measure(block: TokenBatch, sums: DocumentSums) -> dict[str, int]:
        return _measure(ends, block, dictionaries, sources, targets, limits, mean, sums)

    return Splices(measure, tokens, ends.whole_vocab, name=name)


def replace_outputs(
    model: HookedModel,
    text: Corpus | Iterable[TokenBatch],
    dictionaries: Mapping[str, CrossLayer],
    mean: Float[Tensor, " d_out"],
    *,
    tokens: int,
    progress: bool = False,
) -> SpliceLosses:
    """Run the model clean, ablated and as each replacement model, until `tokens` predictions are measured.

    Args:
        text: a corpus, read from its beginning, or token batches.
        dictionaries: by name, all of the same sites; "clean", "zero" and "mean" are taken. The rows that the first
            one's norm limits leave out are left out for all.
        mean: of all outputs side by side; what the mean ablation writes.

    Raises:
        InputError: a taken name; dictionaries that name no sites or different ones; a site that is read after the
            output of its layer; or batches that hold no prediction.
    """
    consumer = replacements(model, dictionaries, mean, tokens=tokens)
    return read_splices(model, text, consumer, progress=progress)


def _place(model: HookedModel, dictionaries: Sequence[CrossLayer]) -> Place:
    """The place that all of them share, in the model."""
    if not dictionaries:
        raise InputError("there is nothing to replace outputs with: give at least one cross-layer transcoder")
    first = dictionaries[0]
    for dictionary in dictionaries:
        if dictionary.place.sites != first.place.sites:
            raise InputError(
                f"{dictionary!r} is of other sites than {first!r}: replace their outputs one after the other"
            )
    place = first.place.check(model)
    place.require_order()
    return place


def replacing(dictionary: CrossLayer, sources: Sequence[Site], targets: Sequence[Site]) -> Edit[Site]:
    """The edit that puts predictions in place of all outputs, each layer read as the edits before it have left it.

    x'[m] = b_dec[m] + sum over l <= m of z[l] @ W_dec[l, m]  (+ W_skip[m] x[m])
    """
    layers, width = len(sources), dictionary.d_out // len(targets)
    biases = dict(zip(targets, dictionary.b_dec.chunk(layers), strict=True))

    def block_stage(layer: int) -> Stage[Site]:
        block = dictionary.layers[layer]

        def run(read: Sequence[Tensor]) -> Sequence[Tensor]:
            return (block.decode(block.encode(read[0].float())) - block.b_dec).split(width, 1)

        return Stage((sources[layer],), tuple(targets[layer:]), run)

    def skip_stage(layer: int, weight: Tensor) -> Stage[Site]:
        return Stage((sources[layer],), (targets[layer],), lambda read: [read[0].float() @ weight.T])

    def combine(target: Site, rows: Tensor, terms: Sequence[Tensor]) -> Tensor:
        out = biases[target].repeat(len(rows), 1)
        for term in terms:
            out += term
        return out

    stages = [block_stage(layer) for layer in range(layers)]
    if dictionary.W_skip is not None:
        stages += [skip_stage(layer, weight) for layer, weight in enumerate(dictionary.W_skip)]
    return Edit(tuple(targets), combine, tuple(stages))


@torch.no_grad()
def _measure(
    ends: Ends,
    batch: TokenBatch,
    dictionaries: Mapping[str, CrossLayer],
    sources: Sequence[Site],
    targets: Sequence[Site],
    limits: Mapping[Site, float],
    mean: Float[Tensor, " d_out"],
    sums: DocumentSums,
) -> dict[str, int]:
    """One part of a batch, in every variant; special and first tokens, padding and long rows pass unchanged."""
    means = dict(zip(targets, mean.chunk(len(targets)), strict=True))
    editable = EditableRows(batch.usable.to(ends.model.device), limits)

    clean = ends.run(batch, editable.hooks())

    def constants(values: Mapping[Site, Tensor]) -> Edits:
        edit = Edit(tuple(values), lambda site, rows, _: values[site].to(rows).expand_as(rows))
        return edit.at(editable.mask)

    variants: dict[str, Edits] = {
        "zero": constants({site: torch.zeros_like(value) for site, value in means.items()}),
        "mean": constants(means),
        **{
            name: replacing(dictionary, sources, targets).at(editable.mask) for name, dictionary in dictionaries.items()
        },
    }
    return counted(score_edits(ends, variants, clean, batch, sums), editable.counts)
