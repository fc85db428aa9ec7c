"""Checks of the inputs that a model accepts: checks with one clear sentence, and the smallest inputs to try it on."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError
from .wiring import Wiring


def tiny_inputs(wiring: Wiring) -> Tensor:
    """Small inputs that are equal at every call: [1, 8] token ids, fewer where the model takes fewer, or
    [1, channels, height, width] pixels."""
    if wiring.image_shape is not None:
        count = torch.Size(wiring.image_shape).numel()
        return torch.linspace(-1, 1, count).mul(50).sin().reshape(1, *wiring.image_shape)
    return (torch.arange(1, 1 + min(8, wiring.n_ctx or 8))[None] * 7919) % (wiring.vocab_size or 1)


def check_inputs(wiring: Wiring, inputs: Tensor, mask: Tensor | None) -> None:
    """Raise InputError unless a model so wired can run on these inputs. Costs no device synchronisation.

    Ids are looked at where they lie on the CPU, as a corpus serves them.
    """
    if not isinstance(inputs, Tensor):
        raise InputError(f"inputs must be a tensor, not {type(inputs).__name__}")
    given = f"{inputs.dtype} of shape {list(inputs.shape)}"
    whole = not inputs.is_floating_point() and inputs.dtype != torch.bool
    if wiring.inputs == "input_ids":
        if inputs.dim() != 2 or not whole:
            raise InputError(f"inputs must be token ids [batch, tokens], not {given}")
        if not inputs.numel():
            raise InputError(f"inputs hold no token (shape {list(inputs.shape)}): give at least one row of one token")
        if wiring.n_ctx is not None and inputs.shape[1] > wiring.n_ctx:
            raise InputError(f"{inputs.shape[1]} tokens are too many: this model takes at most {wiring.n_ctx}")
    if wiring.inputs == "pixel_values":
        if inputs.dim() != 4 or not inputs.is_floating_point():
            raise InputError(f"inputs must be pixel values [batch, channels, height, width], not {given}")
        if mask is not None:
            raise InputError("attention_mask is for text: images have no padding")
    if mask is not None and mask.shape != inputs.shape[:2]:
        raise InputError(f"attention_mask must have the shape {list(inputs.shape[:2])}, not {list(mask.shape)}")
    if wiring.inputs == "input_ids" and wiring.vocab_size is not None and not inputs.is_cuda:
        outside = (inputs < 0) | (inputs >= wiring.vocab_size)
        outside &= True if mask is None else mask.to(inputs.device).bool()
        if bool(outside.any()):
            row, place = outside.nonzero()[0].tolist()
            raise InputError(
                f"token id {int(inputs[row, place])} at row {row}, position {place} is outside the vocabulary: "
                f"its embeddings have ids 0 to {wiring.vocab_size - 1}; use the model's own tokenizer, or leave out "
                "tokens that were added to it"
            )


def valid_padding(wiring: Wiring, inputs: Tensor, mask: Tensor | None) -> Tensor:
    """The ids with 0 in cells of padding whose id has no embedding, such as an added pad token."""
    if mask is None or wiring.vocab_size is None or wiring.inputs != "input_ids":
        return inputs
    outside = (inputs < 0) | (inputs >= wiring.vocab_size)
    return inputs.masked_fill(outside & ~mask.to(inputs.device).bool(), 0)
