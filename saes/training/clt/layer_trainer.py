"""`LayerTrainer`: trains the block of one layer of a cross-layer transcoder, as one part of a `CrossLayerTrainer`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor

from ....kernels import decode as decode_kernel
from ....kernels.code_gradients import code_gradients
from ....kernels.tuples import Residual
from ....lab.models.sites import Site
from ....lab.rng import generator
from ...architectures.block_update import LatentBlock
from ...architectures.objective import Gradients, Objective, TrainingRows, adam_step
from ...architectures.sae import SparseAutoencoder
from ...architectures.units import Units
from ...sparse_code import SparseCode
from ..checks import check_config
from ..config import TrainConfig
from ..gradient_trainer import GradientTrainer
from ..initialise import initialise


class LayerTrainer(GradientTrainer):
    """Trains the block of one layer, whose targets are the output of that layer and of all later ones.

    Args:
        block: transcoder of the layer, with its targets side by side.
        source: site that the layer reads.
        targets: outputs that the layer writes to.
        earlier: number of layers before it. The first layer holds the bias of all outputs.
        skip: linear map from the layer's input to its own output, trained along by Adam, whatever the optimizer of the
            weights, and not clipped.
    """

    def __init__(
        self,
        block: SparseAutoencoder,
        source: Site,
        targets: Sequence[Site],
        config: TrainConfig,
        *,
        earlier: int,
        name: str,
        skip: Float32[Tensor, "d_out d"] | None = None,
    ) -> None:
        check_config(block, config, trained=False)
        super().__init__(block, config, (source, *targets), name)
        self.earlier, self.skip = earlier, skip
        self.skip_moments = None if skip is None else skip.new_zeros(2, *skip.shape)

    def begin(self, x: Float32[Tensor, "batch d"], goal: Float32[Tensor, "batch d_reached"]) -> None:
        """Set units and starting weights from the first batch.

        All layers that reach an output start with equal parts of it, each with a bias of its own.
        """
        sae, rng = self.dictionary, generator(self.config.seed, "init", self.name)
        self.prepare(len(x))
        self.units = units = Units.measure(sae.config, x, goal, self.sites)
        writers = torch.arange(self.earlier + 1, self.earlier + len(self.sites), device=x.device)
        part = goal * (units.output / writers.repeat_interleave(sae.d_out // len(writers)))
        read = self.read(x)
        kind = {"start": self.config.start, "centre": self.config.start_bias}
        initialise(sae, read, rng, self.config.data_share(sae), part, **kind)
        part = part - sae.b_dec
        self.objective.start(TrainingRows.of(read, part))
        self.refresh_copies()

    def read(self, x: Float32[Tensor, "batch d"]) -> Float32[Tensor, "batch d"]:
        """Scale and centre rows for the encoder."""
        assert self.units is not None, "units are set from the first batch"
        return torch.mul(x, self.units.input).sub_(self.units.centre)

    def select(self, read: Float32[Tensor, "batch d"]) -> SparseCode:
        """Select the codes of this layer alone."""
        return self.dictionary.training_code(read, self.low_precision)

    def written(self, code: SparseCode) -> Float32[Tensor, "batch d_reached"]:
        """Decode codes into the part that they add to the outputs."""
        zero = torch.zeros_like(self.dictionary.b_dec)
        return decode_kernel.decode(code.indptr, code.indices, code.values, self.decoder, zero)

    def tensors(self) -> dict[str, Tensor]:
        """Trained tensors by name, the skip included."""
        return super().tensors() | ({} if self.skip is None else {"W_skip": self.skip})

    def learn(
        self,
        read: Float32[Tensor, "batch d"],
        code: SparseCode,
        residual: Float32[Tensor, "batch d_reached"],
        variance: Float32[Tensor, ""],
        scale: Float32[Tensor, ""],
    ) -> None:
        """Take one step on the residual that all layers leave.

        Args:
            read: input of the encoder, from `read`.
            code: codes of this layer.
            residual: of all outputs that this layer reaches.
            variance: squared distance of this layer's own output from its mean, for the metrics.
            scale: of d(half the squared error), the same in all layers.
        """
        own = residual[:, : residual.shape[1] // (len(self.sites) - 1)]
        copy = read.bfloat16() if self.gathers_bf16 else read
        rows = TrainingRows(read, residual, copy, residual, residual)
        gradients = self._gradients(rows, code, residual)._replace(squares=own.square().sum(1))
        if self.earlier:
            gradients = gradients._replace(to_bias=torch.zeros_like(gradients.to_bias[:1]))
        self.apply(gradients, rows, variance, scale)
        if self.skip is not None and self.skip_moments is not None:
            adam_step(self.skip, own.T @ read * scale, self.skip_moments, self.adam)
        self.advance(len(read))

    def folded_skip(self) -> tuple[Float32[Tensor, "d_out d"], Float32[Tensor, " d_out"]]:
        """Fold the skip: its matrix in activation units, and the share of the outputs' bias that comes from it."""
        assert self.skip is not None, "asked of a transcoder without a skip"
        weight = self.skip if self.average is None else self.average.averaged().get("W_skip", self.skip)
        if self.units is None:
            return weight, torch.zeros_like(weight[:, 0])
        output = self.units.output[: len(weight)]
        return weight * self.units.input / output[:, None], -(weight @ self.units.centre) / output

    def state_dict(self) -> dict[str, Any]:
        """Everything a continued run needs, the skip's weights and moments included."""
        skip = {} if self.skip is None else {"skip": {"weight": self.skip, "moments": self.skip_moments}}
        return super().state_dict() | skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict` of the same config."""
        super().load_state_dict(state)
        if self.skip is not None and self.skip_moments is not None:
            self.skip.copy_(state["skip"]["weight"])
            self.skip_moments.copy_(state["skip"]["moments"])

    def _gradients(self, rows: TrainingRows, code: SparseCode, residual: Tensor) -> Gradients:
        if type(self.objective) is not Objective:  # penalties and thresholds: the objective encodes once more
            return self.gradients(rows)
        codes = (code.indptr, code.indices, code.values)
        grads = code_gradients(*codes[:2], self.decoder, residual) * (code.values != 0)
        out = Residual(residual, residual[:, 0], grads)
        return Gradients(code, residual, out.squares, (LatentBlock(slice(None), codes, out),), residual, {})
