"""Cross-layer transcoders that learned less: what a trained one is compared with.

    own_layer   the trained one, whose latents write only to the layer they read: transcoders layer by layer
    untrained   random directions to read, decoder rows as training starts with them; as many codes in each layer
    linear      no latents: ridge regression of each output on what its own layer reads

All have the mean of the outputs right on the rows they are fitted on.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from ....lab.rng import generator
from ...architectures.clt.cross_layer import CrossLayer, CrossLayerConfig
from ...architectures.linear import Linear
from ...dictionary import Dictionary
from ..nulls import require_rows, untrained


def fit_cross_layer_nulls(
    x: Float[Tensor, "rows d_in"], dictionary: CrossLayer, seed: int, target: Float[Tensor, "rows d_out"]
) -> dict[str, Dictionary]:
    """The nulls `own_layer`, `untrained` and `linear` of a cross-layer transcoder, each one itself.

    Args:
        x: what all layers read, side by side, on rows that the scores are not measured on.
        target: all outputs on these rows, side by side.

    Raises:
        InputError: fewer than two rows, or another width than the dictionary's.
    """
    device = dictionary.b_dec.device
    x, goal = dictionary.rows(x.to(device)), target.to(device).float()
    require_rows(x)
    nulls = {
        "own_layer": own_layer(dictionary, x, goal),
        "untrained": untrained_layers(dictionary, x, goal, generator(seed, "untrained null")),
        "linear": linear_layers(dictionary.config, x, goal),
    }
    for name, null in nulls.items():
        null.place = dictionary.place
        null.provenance = replace(dictionary.provenance, training={"null": name, "rows": len(x), "seed": seed})
    return dict(nulls)


@torch.no_grad()
def own_layer(
    dictionary: CrossLayer, x: Float32[Tensor, "rows d_in"], goal: Float32[Tensor, "rows d_out"]
) -> CrossLayer:
    """A copy whose decoder rows for later layers are zero."""
    null, width = copy.deepcopy(dictionary), dictionary.d_out // dictionary.config.layers
    for block in null.layers:
        block.W_dec[:, width:] = 0
    return _centred(null, x, goal)


@torch.no_grad()
def untrained_layers(
    dictionary: CrossLayer,
    x: Float32[Tensor, "rows d_in"],
    goal: Float32[Tensor, "rows d_out"],
    rng: torch.Generator,
) -> CrossLayer:
    """Untrained transcoders of the same sizes; all layers that reach an output get equal parts of it to explain."""
    layers, width = dictionary.config.layers, dictionary.d_out // dictionary.config.layers
    ragged = dictionary.layers[0].ragged
    whole = CrossLayer(replace(dictionary.config, base="batchtopk" if ragged else "topk", joint=False, skip=False)).to(
        x.device
    )
    for layer, (block, own) in enumerate(zip(dictionary.layers, x.chunk(layers, 1), strict=True)):
        writers = torch.arange(layer + 1, layers + 1, device=x.device).repeat_interleave(width)
        k = max(1, round(len(block.encode(own).values) / len(own)))
        whole.blocks[layer] = null = untrained(block, own, k, rng, goal[:, layer * width :] / writers)
        null.b_dec.zero_()
    return _centred(whole, x, goal)


@torch.no_grad()
def linear_layers(
    config: CrossLayerConfig, x: Float32[Tensor, "rows d_in"], goal: Float32[Tensor, "rows d_out"]
) -> CrossLayer:
    """A linear map from what each layer reads to its own output, as the skip of latents that are never active."""
    shape = CrossLayerConfig(
        config.d_in, config.layers, 1, d_out=config.d_out, layers=config.layers, base="relu", skip=True
    )
    null = CrossLayer(shape).to(x.device)
    assert null.W_skip is not None, "it has a skip"
    parts = zip(x.chunk(config.layers, 1), goal.chunk(config.layers, 1), strict=True)
    for layer, (own, output) in enumerate(parts):
        fitted = Linear.fit(own, output)
        null.W_skip[layer] = (fitted.W_enc.T @ fitted.W_dec).T
    return _centred(null, x, goal)


def _centred(
    dictionary: CrossLayer, x: Float32[Tensor, "rows d_in"], goal: Float32[Tensor, "rows d_out"]
) -> CrossLayer:
    """The dictionary with its bias set so that the residual of these rows has mean zero."""
    dictionary.b_dec.add_((goal - dictionary.reconstruct(x)).double().mean(0).float())
    return dictionary
