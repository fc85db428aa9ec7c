"""Position ids of padded batches: which of them make a padded row equal to the same row without padding.

A module that counts positions by itself counts the padding to the left of a row as tokens. Position ids are therefore
given wherever the module takes them, and one row, padded on either side, is compared with the row alone when a model is
loaded.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..errors import InputError

if TYPE_CHECKING:
    from .wiring import Wiring

PADDING = 3
"""Cells of padding beside the row that is compared; fewer where the model takes fewer."""
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""Largest root mean square of the difference of the two rows, relative to the spread of the row alone.

Over 46 small models in bf16, rounding under rotary positions made at most .011 of it, and a shift of learned or
sinusoidal positions at least .10; relative to the largest entry the two were .015 and .094.
"""


class Positions(NamedTuple):
    """The rule for a module's position ids."""

    first: int | None
    """Position of the first token of a row; None leaves the count to the module."""
    left: bool = True
    """True if rows padded on the left are computed like rows without padding."""
    right: bool = True
    """True if rows padded on the right are."""

    def ids(self, mask: Int[Tensor, "batch tokens"] | Bool[Tensor, "batch tokens"]) -> Tensor | None:
        """Position ids [batch, tokens] of a batch with this mask: tokens are counted, padding is not."""
        return None if self.first is None else (mask.long().cumsum(-1) - 1).clamp(min=0) + self.first

    def check(self, mask: Tensor, name: str) -> None:
        """Refuse padding on a side where a row with it is not computed like the row alone.

        Raises:
            InputError: the mask has padding on that side of a token.
        """
        if self.left and self.right:
            return
        tokens = mask.bool()
        tokens = tokens[tokens.any(1)]
        for side, equal, cells in (("left", self.left, tokens[:, :1]), ("right", self.right, tokens[:, -1:])):
            if not equal and not bool(cells.all()):
                other = "pad on the right" if self.right else "pad on the left" if self.left else ""
                fix = other or "run rows of one length together, without padding"
                raise InputError(f"{name} counts the padding on the {side} of a row as tokens: {fix}")


def takes_positions(module: nn.Module) -> bool:
    """True if the module's forward pass takes `position_ids`."""
    return "position_ids" in inspect.signature(module.forward).parameters


def first_position(module: nn.Module) -> int:
    """Position of a row's first token: RoBERTa's learned positions begin behind the one kept for padding."""
    for name, child in module.named_modules():
        if isinstance(child, nn.Embedding) and name.rpartition(".")[2] == "position_embeddings":
            return 0 if child.padding_idx is None else child.padding_idx + 1
    return 0


def part_to_check(module: Any) -> nn.Module:
    """The part of a module that runs on token ids alone: the encoder of an encoder-decoder, else the module."""
    both = getattr(getattr(module, "config", None), "is_encoder_decoder", False)
    return module.get_encoder() if both else module


def is_by_token(output: Any, inputs: Int[Tensor, "batch tokens"]) -> bool:
    """True if a module's output has a vector for each token, not one for each row as a classifier's has."""
    tensor = output_of(output)
    return tensor.dim() == 3 and tensor.shape[:2] == inputs.shape


@torch.no_grad()
def fit_positions(
    wiring: Wiring, inputs: Int[Tensor, "one tokens"], alone: Float[Tensor, "one *cells width"]
) -> Positions:
    """The rule under which a padded row equals the row alone, on each side if there is one.

    Args:
        inputs: one row of token ids, on the module's device.
        alone: the module's output for it without a mask; one without tokens, as a classifier's, is compared whole.
    """
    by_token = is_by_token(alone, inputs)
    padding = PADDING if wiring.n_ctx is None else min(PADDING, wiring.n_ctx - 1)
    rules = [Positions(wiring.first_position), Positions(None)] if wiring.positions else [Positions(None)]
    if wiring.n_ctx is not None and inputs.shape[1] + padding > wiring.n_ctx:
        inputs = inputs[:, : wiring.n_ctx - padding]
        alone = output_of(wiring.call(inputs, None, None))
    if not padding:
        return rules[0]
    width = inputs.shape[1]
    allowed = TOLERANCE.get(alone.dtype, 0.1) * float(alone.double().std(-1, correction=0).square().mean().sqrt())
    fill = torch.full((1, padding), _padding_id(wiring, inputs), dtype=inputs.dtype, device=inputs.device)

    def equals(rule: Positions, left: bool) -> bool:
        padded = torch.cat([fill, inputs] if left else [inputs, fill], 1)
        mask = torch.ones_like(padded)
        mask[:, slice(padding) if left else slice(width, None)] = 0
        row = output_of(wiring.call(padded, mask, rule.ids(mask)))
        if by_token:
            row = row[:, padding:] if left else row[:, :width]
        return float((row.double() - alone.double()).square().mean().sqrt()) <= allowed

    rule = next((rule for rule in rules if equals(rule, left=True)), rules[0]._replace(left=False))
    return rule._replace(right=equals(rule, left=False))


def _padding_id(wiring: Wiring, inputs: Tensor) -> int:
    """The model's own padding token, else the first token of the row."""
    own = getattr(getattr(wiring.module, "config", None), "pad_token_id", None)
    return own if isinstance(own, int) and 0 <= own < (wiring.vocab_size or 0) else int(inputs[0, 0])


def output_of(output: Any) -> Tensor:
    """The tensor of a module's output: logits where there are some, else the last hidden state."""
    if isinstance(output, Tensor):
        return output
    return output.logits if getattr(output, "logits", None) is not None else output[0]
