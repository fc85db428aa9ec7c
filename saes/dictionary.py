"""`Dictionary`: anything that encodes activations into sparse codes and decodes codes into activations.

What takes one dictionary takes all: metrics, the feature store, edits and converters use only this interface.
Weights are in activation units; normalisation that training used is already folded in.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..kernels import decode as decode_kernel
from ..lab.errors import InputError
from .sparse_code import SparseCode


@dataclass(frozen=True)
class DictionaryConfig:
    """The shape of a dictionary; architectures add their own fields."""

    d_in: int
    """Width of the activations."""
    n_latents: int
    """Number of latents."""

    def __post_init__(self) -> None:
        for name in ("d_in", "n_latents"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass
class Provenance:
    """Where a dictionary comes from; saved beside the weights and checked before it is used."""

    site: str | None = None
    """Text form of the site it was trained on."""
    model: dict[str, Any] = field(default_factory=dict)
    """Fingerprint of the model."""
    norm_limit: float | None = None
    """Rows with a larger norm were dropped in training and pass through unedited."""
    training: dict[str, Any] = field(default_factory=dict)
    """Training config and counts."""


class Dictionary(nn.Module):
    """Base class: `encode(x) -> SparseCode`, `decode(code) -> x_hat`, decoder rows `W_dec [n_latents, d_in]`."""

    architecture: ClassVar[str]
    config: DictionaryConfig
    provenance: Provenance
    W_dec: Tensor
    b_dec: Tensor

    def __init__(self, config: DictionaryConfig) -> None:
        super().__init__()
        self.config = config
        self.provenance = Provenance()

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        return self.config.d_in

    @property
    def n_latents(self) -> int:
        """Number of latents."""
        return self.config.n_latents

    def rows(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "rows d"]:
        """Leading dimensions flattened, fp32.

        Raises:
            InputError: the last dimension is not `d_in`.
        """
        if x.shape[-1] != self.d_in:
            raise InputError(
                f"activations of width {x.shape[-1]} given to a dictionary of width {self.d_in}"
                f" (trained on {self.provenance.site or 'an unnamed site'}): capture the site it was trained on"
            )
        return x.reshape(-1, self.d_in).float().contiguous()

    def encode(self, x: Float[Tensor, "*batch d"]) -> SparseCode:
        """Codes of every row of `x`, leading dimensions flattened."""
        raise NotImplementedError

    @torch.no_grad()
    def decode(self, code: SparseCode) -> Float[Tensor, "rows d"]:
        """Reconstruction of every row: codes times decoder rows, plus `b_dec`."""
        return decode_kernel.decode(code.indptr, code.indices, code.values, self.W_dec, self.b_dec)

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """The reconstruction of `x`, in its shape and dtype."""
        return self.decode(self.encode(x)).reshape(x.shape).to(x.dtype)

    def tensors(self) -> dict[str, Tensor]:
        """What is saved: every parameter and buffer by name."""
        return {name: tensor.detach() for name, tensor in self.state_dict().items()}

    def save(self, folder: Path | str) -> Path:
        """Write the dictionary into a directory (see `files.py`)."""
        from .files import save

        return save(self, folder)

    def __repr__(self) -> str:
        shape = ", ".join(f"{key}={value}" for key, value in asdict(self.config).items())
        where = f" @ {self.provenance.site}" if self.provenance.site else ""
        return f"{type(self).__name__}({shape}){where}"

    def _repr_html_(self) -> str:
        rows = {"architecture": self.architecture, **asdict(self.config), "site": self.provenance.site,
                "model": self.provenance.model.get("name")}  # fmt: skip
        cells = "".join(f"<tr><td>{key}</td><td>{value}</td></tr>" for key, value in rows.items())
        return f"<table>{cells}</table>"
