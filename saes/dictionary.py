"""`Dictionary`: anything that encodes activations into sparse codes and decodes codes into activations.

What takes one dictionary takes all: metrics, the feature store, edits and converters use only this interface.
Weights are in activation units; normalisation that training used is already folded in.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..kernels import decode as decode_kernel
from ..lab.errors import InputError
from ..lab.markup import facts_table
from ..lab.models.sites import Site
from ..lab.storage import file_sha256, write_json, write_tensors
from .hints import ATTRIBUTES
from .place import CROSSCODER, Place, output_width
from .place_files import SCHEMA, place_json
from .sparse_code import SparseCode

if TYPE_CHECKING:
    from ..lab.models.hooked_model import HookedModel
    from ..lab.models.pairs import ModelPair

WEIGHTS, DESCRIPTION = "dictionary.safetensors", "dictionary.json"


@dataclass(frozen=True)
class DictionaryConfig:
    """The shape of a dictionary; architectures add their own fields."""

    d_in: int
    """Width of the activations."""
    n_latents: int
    """Number of latents."""
    d_out: int | None = field(default=None, kw_only=True)
    """Width of the activations that a transcoder predicts from those it reads. None: it reconstructs what it reads."""
    skip: bool = field(default=False, kw_only=True)
    """True if a transcoder adds a linear map of its input (Paulo et al. 2025, arXiv 2501.18823)."""
    sources: tuple[int, ...] = field(default=(), kw_only=True)
    """Widths of the sources of a crosscoder, which lie side by side in its d_in columns (Lindsey et al. 2024)."""

    def __post_init__(self) -> None:
        for name in ("d_in", "n_latents"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        object.__setattr__(self, "sources", tuple(self.sources))
        place = self.place
        if self.skip and not place.targets:
            raise InputError("skip=True is for transcoders: give d_out, the width of what is predicted")

    @property
    def place(self) -> Place:
        """The place of a dictionary of these widths, without sites.

        Raises:
            InputError: widths that fit no dictionary.
        """
        return Place.of_widths(self.d_in, self.d_out, self.sources)


@dataclass
class Provenance:
    """Where a dictionary comes from; saved beside the weights. Its sites are in `Dictionary.place`."""

    model: dict[str, Any] = field(default_factory=dict)
    """Fingerprint of the model; `Dictionary.check` compares it."""
    training: dict[str, Any] = field(default_factory=dict)
    """Training config and counts."""


class Block(NamedTuple):
    """A part of a dictionary that encodes some sources by itself."""

    dictionary: Dictionary
    """Encodes the activations of those sources, side by side."""
    sources: slice
    """Sources that the block reads, among those of the whole dictionary."""
    outputs: slice
    """Sites that the block writes to, among those that the whole dictionary reconstructs or predicts."""
    latents: slice
    """Latents of the block, among those of the whole dictionary."""


class _Elsewhere:
    """A class method of another library: asking for it raises the sentence that says what to use here."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: object, owner: type) -> NoReturn:
        raise AttributeError(f"{owner.__name__!r} has no {self.name!r}: {ATTRIBUTES[self.name]}")


class Dictionary(nn.Module):
    """Base class: `encode(x) -> SparseCode`, `reconstruct(x) -> x_hat`, decoder rows `W_dec [n_latents, d_out]`."""

    architecture: ClassVar[str]
    """The name it is registered under, in files and on the command line."""
    config_type: ClassVar[type[DictionaryConfig]] = DictionaryConfig
    """The class of its `config`."""
    trainable: ClassVar[bool] = False
    """True if a `Trainer` trains it by gradients."""
    trainer: ClassVar[str] = ""
    """Module and class of its trainer, such as "monosem.saes.training.trainer:Trainer"; none for a closed form."""
    config: DictionaryConfig
    provenance: Provenance
    W_dec: Tensor
    b_dec: Tensor
    from_pretrained = _Elsewhere()
    load_from_disk = _Elsewhere()
    W_skip: Tensor | None
    """A skip transcoder's linear map [d_out, d_in]."""

    def __init__(self, config: DictionaryConfig) -> None:
        super().__init__()
        self.config = config
        self.provenance = Provenance()
        self._place = config.place
        self.register_parameter("W_skip", None)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "config" and name in self.__dict__:
            self._require_widths(value)
        super().__setattr__(name, value)

    def _require_widths(self, config: DictionaryConfig) -> None:
        """Refuse a config of other widths: weights and place would keep the old ones."""
        if config.place != self.config.place or config.n_latents != self.config.n_latents:
            raise InputError(
                f"config {config} has other widths than the dictionary's {self.config}, and its weights and place keep"
                " theirs: build a new dictionary with that config"
            )

    def __getattr__(self, name: str) -> Any:
        if name in ATTRIBUTES:
            raise AttributeError(f"{type(self).__name__!r} has no {name!r}: {ATTRIBUTES[name]}")
        return super().__getattr__(name)

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        return self.config.d_in

    @property
    def d_out(self) -> int:
        """Width of what is reconstructed: `d_in`, but for a transcoder."""
        return output_width(self.d_in, self.config.d_out)

    @property
    def n_latents(self) -> int:
        """Number of latents."""
        return self.config.n_latents

    @property
    def place(self) -> Place:
        """The sites that the dictionary reads and predicts, with their widths, norm limits and scales.

        May be set, also from text: `dictionary.place = "resid_post.12"`. Widths and kind stay those of the config.

        Raises:
            InputError: set to another number of sites than the dictionary has, or to other widths.
        """
        return self._place

    @place.setter
    def place(self, place: Place | Site | str) -> None:
        self._place = self.config.place.named_as(place)

    def check(self, model: HookedModel | ModelPair) -> Place:
        """The place with sites as the model writes them, once the model is known to be the dictionary's own.

        Raises:
            InputError: a port has no site, the model is not the one it was trained on, lacks a site or has another
                width there.
        """
        return self.place.check(model, self.provenance.model)

    def set_model(self, model: HookedModel | ModelPair) -> Dictionary:
        """State that a model is the one that the dictionary was trained on, whatever its files say.

        The provenance names the model from then on, and under `training["model_of_files"]` the model of the files.

        Returns:
            The dictionary itself.

        Raises:
            InputError: the model lacks a site of the dictionary, or has another width there.
        """
        if any(port.site for port in self.place.ports):
            self.place.in_model(model)
        own = model.fingerprint()
        if self.provenance.model not in ({}, own):
            self.provenance.training.setdefault("model_of_files", self.provenance.model)
        self.provenance.model = own
        return self

    def rows(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "rows d"]:
        """Leading dimensions flattened, fp32.

        Raises:
            InputError: `x` is no tensor, its last dimension is not `d_in`, or the weights are not fp32.
        """
        if not isinstance(x, Tensor) or not x.ndim:
            kind = "a number" if isinstance(x, Tensor) else type(x).__name__
            raise InputError(f"activations are a tensor [..., {self.d_in}], not {kind}: give torch.as_tensor(x)")
        if x.shape[-1] != self.d_in:
            raise InputError(
                f"activations of width {x.shape[-1]} given to a dictionary of width {self.d_in}"
                f" (trained on {self.place}): capture the site it was trained on"
            )
        if self.W_dec.dtype != torch.float32:
            raise InputError(
                f"the weights are {self.W_dec.dtype}, and a dictionary encodes with fp32 ones: undo it with .float()"
            )
        return x.reshape(-1, self.d_in).float().contiguous()

    def encode(self, x: Float[Tensor, "*batch d"]) -> SparseCode:
        """Codes of every row of `x`, leading dimensions flattened."""
        raise NotImplementedError

    @torch.no_grad()
    def decode(self, code: SparseCode) -> Float[Tensor, "rows d_out"]:
        """Codes times decoder rows, plus `b_dec`; a skip's part is left out.

        Raises:
            InputError: `code` is no `SparseCode`.
        """
        if not isinstance(code, SparseCode):
            raise InputError(
                f"decode takes the SparseCode that encode returns, not {type(code).__name__}:"
                " for dense codes z give SparseCode.from_dense(z), or take z @ dictionary.W_dec + dictionary.b_dec"
            )
        return decode_kernel.decode(code.indptr, code.indices, code.values, self.W_dec, self.b_dec)

    def contribution(self, code: SparseCode) -> Float[Tensor, "rows d_out"]:
        """z W_dec: what codes add to the output, without `b_dec`. Differentiable in the values and in W_dec."""
        zero = self.W_dec.new_zeros(self.d_out)
        return decode_kernel.decode(code.indptr, code.indices, code.values, self.W_dec, zero)

    def parts(self) -> list[Block]:
        """The blocks that encode by themselves: one, but for a cross-layer transcoder, which has one for each layer."""
        return [Block(self, slice(None), slice(None), slice(0, self.n_latents))]

    @torch.no_grad()
    def reconstruct(
        self, x: Float[Tensor, "*batch d_in"], code: SparseCode | None = None
    ) -> Float[Tensor, "rows d_out"]:
        """Every row of `x` reconstructed, or what a transcoder predicts from it, fp32.

        Args:
            code: the codes to use (edited ones, or those already at hand); by default those of `x`.
        """
        rows = self.rows(x)
        x_hat = self.decode(self.encode(rows) if code is None else code)
        return x_hat if self.W_skip is None else x_hat.addmm_(rows, self.W_skip.T)

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """`reconstruct` in the leading shape and the dtype of `x`."""
        return self.reconstruct(x).reshape(*x.shape[:-1], self.d_out).to(x.dtype)

    def split(self, rows: Float[Tensor, "*rows d_in"]) -> tuple[Float[Tensor, "*rows d_source"], ...]:
        """Views of the columns of each source; all of them at once where there is one."""
        widths = [port.width for port in self.place.sources] if self.place.kind == CROSSCODER else rows.shape[-1]
        return rows.split(widths, -1)

    def decoder_of(self, source: int) -> Float[Tensor, "n_latents d_source"]:
        """The decoder rows of one source of a crosscoder: a view."""
        return self.split(self.W_dec)[source]

    def tensors(self) -> dict[str, Tensor]:
        """Every parameter and buffer by name, as it is saved."""
        return {name: tensor.detach() for name, tensor in self.state_dict().items()}

    def save(self, folder: Path | str) -> Path:
        """Write the dictionary into a directory, which is created; the description is written last.

        The directory holds `dictionary.safetensors` and `dictionary.json`: {schema, architecture, config, place,
        provenance, sha256 of the tensor file}. `monosem.saes.load` reads it.
        """
        folder = Path(folder)
        write_tensors(folder / WEIGHTS, self.tensors())
        description = {
            "schema": SCHEMA,
            "architecture": self.architecture,
            "config": asdict(self.config),
            "place": place_json(self.place),
            "provenance": asdict(self.provenance),
            "sha256": file_sha256(folder / WEIGHTS),
        }
        write_json(folder / DESCRIPTION, description)
        return folder

    def __repr__(self) -> str:
        shape = ", ".join(f"{key}={value}" for key, value in self._shown().items())
        where = f" @ {self.place}" if any(port.site for port in self.place.ports) else ""
        return f"{type(self).__name__}({shape}){where}"

    def _shown(self) -> dict[str, Any]:
        """The config, without what marks transcoders and crosscoders where this is none."""
        rare = ("d_out", "skip", "sources")
        return {key: value for key, value in asdict(self.config).items() if value or key not in rare}

    def _repr_html_(self) -> str:
        rows = {"architecture": self.architecture, **self._shown(), "place": self.place,
                "model": self.provenance.model.get("name")}  # fmt: skip
        return facts_table(rows)
