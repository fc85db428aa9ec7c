"""Optimizers: each turns the gradients of a batch into new weights, by the name in `TrainConfig.optimizer`.

    adam, active_row   `fused`: one pass over the latents from codes to new weights; no gradient tensor
    muon               `muon`: momentum, orthogonalised, on matrices, Adam on biases
    adam8bit           `adam8bit`: Adam with moments of a byte each, from a library
    signum             `signum`: signs of gradients with schedule-free averaging

All but the first see the dense gradient. All keep decoder rows at unit norm and leave an objective's extra parameters
to Adam.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .fused import Optimizer

if TYPE_CHECKING:
    from ...architectures.objective import Objective
    from ..config import TrainConfig


def make_optimizer(objective: Objective, config: TrainConfig) -> Optimizer:
    """Make the optimizer that `config.optimizer` names.

    Raises:
        InputError: its library is not installed.
    """
    match config.optimizer:
        case "muon":
            from .muon import Muon

            return Muon(objective, config)
        case "signum":
            from .signum import ScheduleFreeSignum

            return ScheduleFreeSignum(objective, config)
        case "adam8bit":
            from .adam8bit import Adam8bit

            return Adam8bit(objective, config)
        case _:
            return Optimizer(objective, config)
