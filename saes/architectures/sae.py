"""Sparse autoencoder: the part all architectures share. A subclass says which pre-activations become codes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...kernels.chunks import chunk_buffer, chunk_rows
from ...kernels.dispatch import Precision, choose
from ...kernels.encode import encode_topk, product
from ...kernels.threshold import encode_above
from ...kernels.tuples import Codes, LowPrecisionCopy
from ...lab.errors import InputError
from ..dictionary import Dictionary, DictionaryConfig
from ..place import TRANSCODER
from ..sparse_code import SparseCode
from .objective import Objective
from .schedules import check_share

if TYPE_CHECKING:
    from .units import Units


@dataclass(frozen=True)
class SAEConfig(DictionaryConfig):
    """A dictionary that keeps k latents a row (on average, where the architecture is ragged)."""

    k: int = 32
    """Active latents a row."""
    centre_input: bool = True
    """True if the encoder reads x - b_dec: ours are trained so, but for transcoders; other libraries differ."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.place.kind == TRANSCODER:
            object.__setattr__(self, "centre_input", False)
        if not 1 <= self.k <= self.n_latents:
            raise InputError(f"k must be from 1 to n_latents={self.n_latents}, got {self.k}")


@dataclass(frozen=True)
class PenaltyConfig(SAEConfig):
    """A dictionary that a penalty makes sparse; `k` is the L0 that the penalty's weight is steered to."""

    coefficient: float | None = None
    """Weight of the penalty against half the squared error of activations of unit mean square; steered by default."""
    warmup: float = 0.1
    """Share of the run over which a given coefficient rises from 0; a steered one starts where the L0 is k."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("warmup", self.warmup)
        if self.coefficient is not None and not self.coefficient > 0:
            raise InputError(f"coefficient must be above 0 (or None, to be steered to k), got {self.coefficient}")


class SparseAutoencoder(Dictionary):
    """pre = (x - b_dec) @ W_enc.T + b_enc; codes are the selected, non-negative pre-activations.

    Tensors: W_enc [n_latents, d_in], b_enc [n_latents], W_dec [n_latents, d_out], b_dec [d_out].

    With `d_out` it is a transcoder, pre = x @ W_enc.T + b_enc, and may have a skip matrix W_skip [d_out, d_in]; with
    `sources` it is a crosscoder, whose latents read and write several sites, or one site of several models, at once.
    """

    config_type = SAEConfig
    trainable = True
    trainer = "monosem.saes.training.trainer:Trainer"
    config: SAEConfig
    W_enc: Tensor
    b_enc: Tensor
    ragged = False
    """True if rows may hold different numbers of codes."""
    crosses = True
    """True if the architecture has transcoders and crosscoders."""
    data_share: ClassVar[float] = 0.4
    """Share of data in the rows that training starts on, by default; see `TrainConfig.blend`."""
    k_is_free = True
    """True if k can change in the course of training."""
    precision: Precision = "auto"
    """Which products propose codes; see `kernels.dispatch`."""

    def __init__(self, config: SAEConfig) -> None:
        super().__init__(config)
        n, d, d_out = config.n_latents, config.d_in, self.d_out
        shapes = {"W_enc": (n, d), "b_enc": (n,), "W_dec": (n, d_out), "b_dec": (d_out,)}
        for name, shape in (shapes | ({"W_skip": (d_out, d)} if config.skip else {})).items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape), requires_grad=False))

    def encoder_of(self, source: int) -> Float[Tensor, "n_latents d_source"]:
        """The encoder rows of one source of a crosscoder: a view."""
        return self.split(self.W_enc)[source]

    def centred(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "rows d"]:
        """Rows as the encoder sees them: with `b_dec` subtracted, unless the config says otherwise."""
        rows = self.rows(x)
        return rows - self.b_dec if self.config.centre_input else rows

    def objective(self) -> Objective:
        """The objective that a training step minimises."""
        return Objective(self)

    @property
    def by_row(self) -> bool:
        """True if a row's codes compete with one another alone, not with a bound or with other rows."""
        return not self.ragged

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "*batch d"]) -> SparseCode:
        """The codes of activations: by the rule of training, unless an architecture has another at inference."""
        return self.training_code(self.centred(x), None)

    def training_code(self, centred: Float[Tensor, "batch d"], low_precision: LowPrecisionCopy | None) -> SparseCode:
        """Codes of one training batch (a batch-wide rule may differ from the inference rule)."""
        raise NotImplementedError

    def observe(self, code: SparseCode, step: int) -> None:
        """Learn from the codes of a training batch what inference needs; nothing for most architectures."""

    def fold_scale(self, scale: float) -> None:
        """Divide codes and reconstruction by `scale`, in place: biases, and thresholds in subclasses."""
        self.b_enc /= scale
        self.b_dec /= scale

    def shift(self, constant: Float[Tensor, " n"]) -> None:
        """Add a constant to the product of every latent's encoder row, in place: to biases that stand beside it."""
        self.b_enc += constant

    def fold(self, units: Units) -> None:
        """Take the dictionary from the units of training back to those of activations, in place.

        Decoder rows keep their norm, but for a crosscoder, where those of a source with large activations grow.
        """
        if self.place.kind == TRANSCODER:
            self.shift(-(self.W_enc @ units.centre))
        if self.W_skip is not None:
            self.b_dec -= self.W_skip @ units.centre
            self.W_skip *= units.input / units.output[:, None]
        scale = units.scale
        self.fold_scale(scale)
        self.W_enc *= units.input / scale
        self.W_dec *= scale / units.output
        self.b_dec *= scale / units.output


def keep_largest(
    dictionary: SparseAutoencoder, centred: Float[Tensor, "batch d"], low_precision: LowPrecisionCopy | None
) -> SparseCode:
    """The k largest pre-activations of every row, cut at zero."""
    precision = choose(centred.device, dictionary.precision).encode
    values, columns = encode_topk(
        centred,
        dictionary.W_enc,
        dictionary.b_enc,
        dictionary.config.k,
        precision=precision,
        low_precision=low_precision,
    )
    return SparseCode.fixed(values.clamp_min_(0), columns, dictionary.n_latents)


def keep_above(
    dictionary: SparseAutoencoder,
    centred: Float[Tensor, "batch d"],
    bound: Float[Tensor, " n"] | Float[Tensor, ""],
    low_precision: LowPrecisionCopy | None,
) -> SparseCode:
    """Every pre-activation above its latent's bound."""
    precision = choose(centred.device, dictionary.precision).encode
    code = encode_above(
        centred, dictionary.W_enc, dictionary.b_enc, bound, precision=precision, low_precision=low_precision
    )
    return SparseCode(*code, dictionary.n_latents)


def select_rows(
    dictionary: SparseAutoencoder,
    centred: Float[Tensor, "batch d"],
    low_precision: LowPrecisionCopy | None,
    select: Callable[[Tensor], Codes],
) -> SparseCode:
    """Codes with the same number of entries in every row, by a rule that reads whole rows of pre-activations.

    For rules without a kernel of their own. Memory is one chunk of pre-activations; int8 proposals do not apply.

    Args:
        select: takes pre-activations [rows, n_latents], which it may overwrite, to values and ascending columns.
    """
    x, weight = centred.float().contiguous(), dictionary.W_enc
    if choose(x.device, dictionary.precision).encode == "bf16":
        x, weight = x.bfloat16(), weight.bfloat16() if low_precision is None else low_precision.W_enc
    chunk = max(1, min(len(x), chunk_rows(len(weight), x.device.type)))
    held = chunk_buffer(chunk, len(weight), torch.float32, x.device)
    parts = [select(product(part, weight, held[: len(part)]).add_(dictionary.b_enc)) for part in x.split(chunk)]
    values, columns = (torch.cat(kind) for kind in zip(*parts, strict=True))
    return SparseCode.fixed(values, columns, dictionary.n_latents)
