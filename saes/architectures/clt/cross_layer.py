"""Cross-layer transcoder: latents that read one layer and write to it and to all later ones (Ameisen et al. 2025).

    z[l] = select(W_enc[l] x[l] + b_enc[l])
    y_hat[m] = b_dec[m] + sum over l <= m of z[l] @ W_dec[l, m]  (+ W_skip[m] x[m])

"Circuit Tracing", Anthropic, section "Building an interpretable replacement model". What the latents of one layer
read and write is a transcoder with several targets side by side: `CrossLayer` is as many of those as there are
layers, and their selection, files' conversion and training are the transcoders' own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ....kernels import decode as decode_kernel
from ....lab.errors import InputError, unknown
from ....lab.models.sites import Site
from ...dictionary import Block, Dictionary, DictionaryConfig
from ...place import Place, output_width
from ...registry import register
from ...sparse_code import SparseCode, side_by_side
from ..batchtopk import BatchTopK
from ..jumprelu import JumpReLU, JumpReLUConfig
from ..relu import ReLU, ReLUConfig
from ..sae import SAEConfig, SparseAutoencoder
from ..topk import TopK

BASES: dict[str, tuple[type[SparseAutoencoder], type[SAEConfig]]] = {
    "topk": (TopK, SAEConfig),
    "batchtopk": (BatchTopK, SAEConfig),
    "jumprelu": (JumpReLU, JumpReLUConfig),
    "relu": (ReLU, ReLUConfig),
}
"""Rules that select codes, each layer by itself: their classes and configs."""


@dataclass(frozen=True)
class CrossLayerConfig(DictionaryConfig):
    """All widths and numbers are over all layers together: rows hold the layers' activations side by side."""

    layers: int = field(default=1, kw_only=True)
    """Number of layers; each has an equal share of d_in, d_out and n_latents."""
    k: int = 32
    """Active latents a row in each layer (on average, for BatchTopK)."""
    base: Literal["batchtopk", "topk", "jumprelu", "relu"] = "batchtopk"
    """Which pre-activations become codes."""
    joint: bool = False
    """With BatchTopK: spend layers * k codes a row where they are largest, in whichever layers."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "d_out", output_width(self.d_in, self.d_out))
        super().__post_init__()
        for name in ("d_in", "d_out", "n_latents"):
            if getattr(self, name) % self.layers:
                raise InputError(
                    f"{name} is over all layers together: {getattr(self, name)} is not a multiple of {self.layers}"
                )
        if self.sources:
            raise InputError(f"a cross-layer transcoder has equally wide layers: leave out sources={self.sources}")
        if self.base not in BASES:
            raise unknown("base of a cross-layer transcoder", self.base, BASES)
        if not 1 <= self.k <= self.n_latents // self.layers:
            raise InputError(f"k must be from 1 to the {self.n_latents // self.layers} latents of a layer: {self.k}")
        if self.joint and self.base != "batchtopk":
            raise InputError(f"joint=True is for base='batchtopk', whose codes compete in a batch, not {self.base!r}")

    @property
    def place(self) -> Place:
        """The place of as many layers, without sites."""
        return Place.of_layers(self.layers, self.d_in, output_width(self.d_in, self.d_out))

    @classmethod
    def over(cls, layers: int, d_in: int, n_latents: int, *, d_out: int | None = None, **config: Any) -> Self:
        """The config of that many layers, whose widths and latents are given for one.

        Raises:
            InputError: a field that it has not, or a value that it refuses.
        """
        known = [field.name for field in fields(cls)]
        for name in config:
            if name not in known:
                raise unknown("cross-layer transcoder config field", name, known)
        d_out = layers * output_width(d_in, d_out)
        return cls(layers * d_in, layers * n_latents, d_out=d_out, layers=layers, **config)

    def of_layer(self, layer: int) -> SAEConfig:
        """The transcoder from one layer's activations to the outputs of it and all later ones."""
        d_in, d_out, n = ((width or 0) // self.layers for width in (self.d_in, self.d_out, self.n_latents))
        return BASES[self.base][1](d_in, n, self.k, d_out=(self.layers - layer) * d_out)


@register
class CrossLayer(Dictionary):
    """`blocks[l]` is the transcoder from layer l to layers l, l + 1, ..., whose outputs lie side by side.

    Latent j of layer l has id l * n + j, with n latents a layer. The bias of all outputs is the first block's
    `b_dec`; that of the other blocks is zero. W_skip [layers, d_out, d_in] has widths of one layer.
    """

    architecture = "clt"
    trainer = "monosem.saes.training.clt.trainer:CrossLayerTrainer"
    config_type = CrossLayerConfig
    config: CrossLayerConfig
    blocks: nn.ModuleList

    def __init__(self, config: CrossLayerConfig) -> None:
        super().__init__(config)
        kind = BASES[config.base][0]
        self.blocks = nn.ModuleList(kind(config.of_layer(layer)) for layer in range(config.layers))
        if config.skip:
            shape = (config.layers, self.d_out // config.layers, self.d_in // config.layers)
            self.W_skip = nn.Parameter(torch.zeros(shape), requires_grad=False)

    @property
    def layers(self) -> list[SparseAutoencoder]:
        """The blocks, typed."""
        return [cast(SparseAutoencoder, block) for block in self.blocks]

    @property
    def b_dec(self) -> Tensor:
        """The bias of all outputs, [d_out]."""
        return self.layers[0].b_dec

    @property
    def W_dec(self) -> Tensor:
        """[n_latents, d_out], zero where a latent does not reach: made anew at each call, for small things."""
        width = self.d_out
        return torch.cat([nn.functional.pad(block.W_dec, (width - block.d_out, 0)) for block in self.layers])

    def decoder_of(self, source: int, target: int | None = None) -> Float[Tensor, "n_layer d"]:
        """Decoder rows of layer `source` at layer `target`, or at all layers that they reach: a view.

        Raises:
            InputError: there are no such layers, or the target comes before the source.
        """
        if not 0 <= source < self.config.layers:
            raise InputError(f"source must be a layer from 0 to {self.config.layers - 1}, got {source}")
        written = self.layers[source].W_dec
        if target is None:
            return written
        if not source <= target < self.config.layers:
            raise InputError(
                f"latents of layer {source} write to layers {source} to {self.config.layers - 1}, not to {target}"
            )
        width = self.d_out // self.config.layers
        return written[:, (target - source) * width : (target - source + 1) * width]

    def rows(self, x: Float[Tensor, "*batch d_in"] | Mapping[Site, Tensor]) -> Float[Tensor, "rows d_in"]:
        """Activations of all layers side by side, flattened to fp32; a mapping is by the sites it was trained on."""
        if isinstance(x, Mapping):
            sites = self.place.reads
            if missing := [str(site) for site in sites if site not in x]:
                raise InputError(
                    f"activations at {', '.join(missing)} are needed by {self!r}: capture them, or give all layers side"
                    " by side"
                )
            x = torch.cat([x[site] for site in sites], -1)
        return super().rows(x)

    def select(self, rows: Float[Tensor, "rows d_in"]) -> list[SparseCode]:
        """The codes of each layer."""
        return [block.encode(x) for block, x in zip(self.layers, rows.chunk(self.config.layers, 1), strict=True)]

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "*batch d_in"] | Mapping[Site, Tensor]) -> SparseCode:
        """Codes over all layers' latents: by the layers' rows side by side, or by site."""
        return side_by_side(self.select(self.rows(x)))

    def written(self, code: SparseCode) -> Iterator[Float[Tensor, "rows d_reached"]]:
        """Sums that the codes of each layer in turn add to the outputs from that layer on."""
        n = self.n_latents // self.config.layers
        for layer, block in enumerate(self.layers):
            own = code.within(slice(layer * n, (layer + 1) * n))
            zero = block.b_enc.new_zeros(block.d_out)
            yield decode_kernel.decode(own.indptr, own.indices, own.values, block.W_dec, zero)

    def parts(self) -> list[Block]:
        """One block for each layer, which writes to the outputs of that layer and of all later ones."""
        n = self.n_latents // self.config.layers
        return [
            Block(block, slice(layer, layer + 1), slice(layer, None), slice(layer * n, (layer + 1) * n))
            for layer, block in enumerate(self.layers)
        ]

    def contribution(self, code: SparseCode) -> Float[Tensor, "rows d_out"]:
        """z W_dec over all layers, without biases. Differentiable in the values and in W_dec."""
        parts = self.written(code)
        return torch.stack([nn.functional.pad(part, (self.d_out - part.shape[1], 0)) for part in parts]).sum(0)

    @torch.no_grad()
    def decode(self, code: SparseCode) -> Float[Tensor, "rows d_out"]:
        """All outputs, biases included. A skip's part is not in it."""
        out = self.b_dec.repeat(len(code), 1)
        for part in self.written(code):
            out[:, self.d_out - part.shape[1] :] += part
        return out

    @torch.no_grad()
    def reconstruct(
        self, x: Float[Tensor, "*batch d_in"] | Mapping[Site, Tensor], code: SparseCode | None = None
    ) -> Float[Tensor, "rows d_out"]:
        """The outputs of all layers side by side, predicted from what they read, fp32.

        Args:
            code: the codes to use (edited ones, or those already at hand); by default those of `x`.
        """
        rows = self.rows(x)
        y_hat = self.decode(self.encode(rows) if code is None else code)
        return y_hat if self.W_skip is None else y_hat + self.skipped(rows)

    def skipped(self, rows: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_out"]:
        """The linear part of the outputs; only where there is a W_skip."""
        assert self.W_skip is not None, "asked of a transcoder without a skip"
        parts = rows.chunk(self.config.layers, 1)
        return torch.cat([x @ weight.T for x, weight in zip(parts, self.W_skip, strict=True)], 1)

    def _shown(self) -> dict[str, Any]:
        return {name: value for name, value in super()._shown().items() if name != "joint" or value}
