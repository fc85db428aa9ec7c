"""A cross-layer transcoder in neutral terms: a transcoder for each layer, which is converted as any other."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, replace
from typing import Any, cast

import torch

from ...lab.errors import InputError
from ..architectures.clt.cross_layer import CrossLayer, CrossLayerConfig
from ..architectures.sae import SparseAutoencoder
from ..dictionary import Dictionary, Provenance
from ..place import CROSS_LAYER
from .portable import IMPORTED, Portable


def parts_of(dictionary: Dictionary) -> Portable:
    """A dictionary in neutral terms, a cross-layer transcoder by its layers.

    Raises:
        InputError: no other format can hold it (see `Portable.of`).
    """
    return (
        Layered.of_layers(cast(CrossLayer, dictionary))
        if dictionary.place.kind == CROSS_LAYER
        else Portable.of(dictionary)
    )


@dataclass(frozen=True)
class Layered(Portable):
    """Its own tensors are only a skip, W_skip [layers, o, d]; the bias of all outputs is the first layer's."""

    layers: tuple[Portable, ...] = ()
    """The transcoder of each layer to the outputs of it and of all later ones, side by side."""

    @property
    def across(self) -> bool:
        """False: formats of single transcoders hold no cross-layer one."""
        return False

    @classmethod
    def of_layers(cls, dictionary: CrossLayer) -> Layered:
        """The parts of a cross-layer transcoder."""
        kept = dictionary.provenance.training.get(IMPORTED, {}).get("layers", [{}] * dictionary.config.layers)
        layers = []
        for block, own in zip(dictionary.layers, kept, strict=True):
            named = copy(block)  # the weights are shared
            named.provenance = Provenance(training={IMPORTED: own})
            layers.append(Portable.of(named))
        skip = {} if dictionary.W_skip is None else {"W_skip": dictionary.W_skip.detach().cpu()}
        return cls(dictionary.architecture, skip, {}, dictionary.provenance, dictionary.place, tuple(layers))

    def build(self) -> CrossLayer:
        """The dictionary.

        Raises:
            InputError: layers of different widths, or as `Portable.build`.
        """
        blocks = [cast(SparseAutoencoder, layer.build()) for layer in self.layers]
        count, first = len(blocks), blocks[0]
        base: Any = first.architecture
        config = CrossLayerConfig(
            count * first.d_in, count * first.n_latents, d_out=first.d_out, skip="W_skip" in self.tensors, layers=count,
            base=base, k=first.config.k,
        )  # fmt: skip
        for number, block in enumerate(blocks):
            expected = config.of_layer(number)
            if block.config != expected:
                raise InputError(
                    f"the layers do not fit together: layer {number} has d_in={block.d_in}, n_latents={block.n_latents}"
                    f" and d_out={block.d_out}, by layer 0 it should be {expected.d_in}, {expected.n_latents} and"
                    f" {expected.d_out}"
                )
        with torch.device("meta"):
            built = CrossLayer(config)
        for number, block in enumerate(blocks):
            built.blocks[number] = block
        if "W_skip" in self.tensors:
            built.W_skip = torch.nn.Parameter(self.tensors["W_skip"].clone(), requires_grad=False)
        kept = {**self.provenance.training.get(IMPORTED, {})}
        kept["layers"] = [block.provenance.training.get(IMPORTED, {}) for block in blocks]
        if self.place is not None:
            built.place = self.place
        built.provenance = replace(self.provenance, training={**self.provenance.training, IMPORTED: kept})
        return built
