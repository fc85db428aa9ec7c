"""Position ids of padded batches: which of them make a padded row equal to the same row without padding.

A module that counts positions by itself counts the padding to the left of a row as tokens. Position ids are therefore
given wherever the module takes them, and one padded row is compared with the row alone when a model is loaded.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from ..errors import InputError

if TYPE_CHECKING:
    from .wiring import Wiring

PADDING = 3
"""Cells of padding to the left of the row that is compared."""
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 1e-1}
"""Largest difference of the two rows, relative to the largest entry of the row alone."""


class Positions(NamedTuple):
    """The rule for a module's position ids."""

    first: int | None
    """Position of the first token of a row; None leaves the count to the module."""
    left: bool = True
    """True if rows padded on the left are computed like rows without padding."""

    def ids(self, mask: Int[Tensor, "batch tokens"] | Bool[Tensor, "batch tokens"]) -> Tensor | None:
        """Position ids [batch, tokens] of a batch with this mask: tokens are counted, padding is not."""
        return None if self.first is None else (mask.long().cumsum(-1) - 1).clamp(min=0) + self.first

    def check(self, mask: Tensor, name: str) -> None:
        """Refuse padding on the left where it shifts positions.

        Raises:
            InputError: the mask has padding before a token.
        """
        if not self.left and bool((~mask[:, 0].bool() & mask.bool().any(1)).any()):
            raise InputError(
                f"{name} counts the padding on the left of a row as tokens, and takes no position ids: pad on the right"
            )


def takes_positions(module: nn.Module) -> bool:
    """True if the module's forward pass takes `position_ids`."""
    return "position_ids" in inspect.signature(module.forward).parameters


def first_position(module: nn.Module) -> int:
    """Position of a row's first token: RoBERTa's learned positions begin behind the one kept for padding."""
    for name, child in module.named_modules():
        if isinstance(child, nn.Embedding) and name.rpartition(".")[2] == "position_embeddings":
            return 0 if child.padding_idx is None else child.padding_idx + 1
    return 0


@torch.no_grad()
def fit_positions(
    wiring: Wiring, run: Callable[[Tensor, Tensor, Positions], Any], inputs: Int[Tensor, "one tokens"], alone: Tensor
) -> Positions:
    """The rule under which a row padded on the left equals the row alone.

    Args:
        run: a forward pass of inputs and a mask by a rule.
        inputs: one row of token ids.
        alone: output for it without a mask, [1, tokens, ...], in the model's dtype.
    """
    padded = torch.cat([inputs[:, :1].expand(-1, PADDING), inputs], 1)
    mask = torch.ones_like(padded)
    mask[:, :PADDING] = 0
    rules = [Positions(wiring.first_position), Positions(None)] if wiring.positions else [Positions(None)]
    allowed = TOLERANCE.get(alone.dtype, 0.1) * float(alone.abs().max())
    for rule in rules:
        row = output_of(run(padded, mask, rule))[:, PADDING:]
        if row.shape == alone.shape and float((row.double() - alone.double()).abs().max()) <= allowed:
            return rule
    return rules[0]._replace(left=False)


def output_of(output: Any) -> Tensor:
    """The tensor of a module's output: logits where there are some, else the last hidden state."""
    if isinstance(output, Tensor):
        return output
    return output.logits if getattr(output, "logits", None) is not None else output[0]
