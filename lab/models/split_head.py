"""A language model's forward pass in two parts: everything up to what the head reads, and the head on some of its rows.

The head is run by the module's own code on a copy of the module that shares all weights, in which the base model is a
stand-in that returns the given rows. Softcaps, scales and heads of several layers need no telling apart.
"""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .hooks import Tap
from .wiring import Wiring

log = logging.getLogger(__name__)


class _Given(nn.Module):
    """Stands for the base model and returns rows that were set before."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = torch.empty(0)

    def forward(self, *_: Any, **__: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=self.rows)  # pyright: ignore[reportArgumentType]


class SplitHead:
    """The head of a module, apart from its base model.

    Args:
        wiring: of a module whose `base_model` is a part of it.
    """

    def __init__(self, wiring: Wiring) -> None:
        module: Any = wiring.module
        self.end = Tap(module.base_model, "out")
        """Where the rows that the head reads leave the base model."""
        self._wiring, self._given = wiring, _Given()
        self._shell: Any = copy.copy(module)
        names = [name for name, part in module.named_children() if part is module.base_model]
        object.__setattr__(self._shell, "_modules", {**module._modules, **dict.fromkeys(names, self._given)})

    @torch.no_grad()
    def __call__(self, rows: Float[Tensor, "n width"]) -> Float[Tensor, "n vocab"]:
        """Logits of rows that the base model gave."""
        self._given.rows = rows[None]
        ids = torch.zeros(1, len(rows), dtype=torch.int64, device=rows.device)
        return self._shell(input_ids=ids).logits[0]


def split_head(wiring: Wiring) -> SplitHead | None:
    """The head of a module where it has one apart; None for modules of other kinds, whose logits come whole."""
    module: Any = wiring.module
    base = getattr(module, "base_model", module)
    if wiring.inputs != "input_ids" or not any(part is base for part in getattr(module, "children", list)()):
        return None
    return SplitHead(wiring)
