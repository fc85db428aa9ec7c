"""`ITDA`: a dictionary whose atoms are activations, so that each has a place in a text (Leask et al. 2025, section 3).

There is no encoder, no bias and no centring: codes are found by pursuit over the atoms, when they are needed. That
costs k passes over the atoms where a sparse autoencoder needs one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from ....kernels.pursuit import Pursuit
from ....kernels.tuples import Codes
from ....lab.errors import InputError, unknown
from ....lab.text.corpus import Corpus
from ...dictionary import Dictionary, DictionaryConfig
from ...place import AUTOENCODER
from ...registry import register
from ...sparse_code import SparseCode
from ..matching_pursuit import GRAM_BYTES, merged
from ..schedules import check_share
from .encoders import ENCODERS, Encoder, encode
from .source import AtomSource, place_in_text, reopened


@dataclass(frozen=True)
class ITDAConfig(DictionaryConfig):
    """n_latents atoms, and how rows are encoded with them."""

    k: int = 40
    """Steps of the pursuit: the most atoms a row can have."""
    encoder: Encoder = field(default="mp", kw_only=True)
    """mp: matching pursuit; omp: with coefficients refitted by least squares; nonnegative: positive codes alone."""
    tolerance: float = field(default=0.0, kw_only=True)
    """A row is done when its squared residual is at most this share of |x|^2; 0 spends all k steps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.place.kind != AUTOENCODER:
            raise InputError("an ITDA explains the one site it reads: leave out d_out and sources")
        if self.k < 1:
            raise InputError(f"k must be at least 1, got {self.k}")
        if self.encoder not in ENCODERS:
            raise unknown("encoder", self.encoder, ENCODERS)
        check_share("tolerance", self.tolerance)


@register
class ITDA(Dictionary):
    """Unit atoms W_dec [n_latents, d_in]; codes are signed, unless the encoder is non-negative.

    Tensors beside it: identities [n_latents, 2], each atom's document and offset in the corpus of `text`, and arrivals
    [n_latents], how many rows of the stream came before the batch that brought it.
    """

    architecture = "itda"
    trainer = "monosem.saes.training.itda.trainer:ITDATrainer"
    config_type = ITDAConfig
    config: ITDAConfig
    identities: Int64[Tensor, "n_latents 2"]
    arrivals: Int64[Tensor, " n_latents"]

    def __init__(self, config: ITDAConfig) -> None:
        super().__init__(config)
        self.W_dec = nn.Parameter(torch.zeros(config.n_latents, config.d_in), requires_grad=False)
        self.register_buffer("b_dec", torch.zeros(config.d_in), persistent=False)
        self.register_buffer("identities", torch.zeros(config.n_latents, 2, dtype=torch.int64))
        self.register_buffer("arrivals", torch.zeros(config.n_latents, dtype=torch.int64))
        self._gram: tuple[object, Tensor] | None = None
        self._corpus: Corpus | None = None

    @classmethod
    def of(
        cls,
        atoms: Float[Tensor, "n d"],
        identities: Int64[Tensor, "n 2"] | None = None,
        arrivals: Int64[Tensor, " n"] | None = None,
        **config: Any,
    ) -> ITDA:
        """An ITDA of given rows, normalised.

        Raises:
            InputError: a row is zero or not finite, or a value that the config refuses.
        """
        norms = atoms.float().norm(dim=1, keepdim=True)
        if not bool((norms.isfinite() & (norms > 0)).all()):
            raise InputError("an atom must be a finite row that is not zero: leave the others out")
        itda = cls(ITDAConfig(atoms.shape[1], len(atoms), **config)).to(atoms.device)
        itda.W_dec.copy_(atoms.float() / norms)
        if identities is not None:
            itda.identities.copy_(identities)
        if arrivals is not None:
            itda.arrivals.copy_(arrivals)
        return itda

    def with_encoder(
        self, k: int | None = None, encoder: Encoder | None = None, tolerance: float | None = None
    ) -> ITDA:
        """The same atoms, encoded another way; None keeps what is.

        Raises:
            InputError: a value that the config refuses.
        """
        now = self.config
        itda = type(self).of(
            self.W_dec, self.identities, self.arrivals,
            k=now.k if k is None else k,
            encoder=encoder or now.encoder,
            tolerance=now.tolerance if tolerance is None else tolerance,
        )  # fmt: skip
        itda.W_dec.copy_(self.W_dec)  # normalising again would move the last bit
        itda.place, itda.provenance = self.place, self.provenance
        return itda

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "*batch d"]) -> SparseCode:
        """Codes of every row by the encoder of the config; an atom chosen twice has the sum of both."""
        steps = self.steps(x)
        return merged(Codes(steps.values, steps.columns), self.n_latents)

    @torch.no_grad()
    def steps(self, x: Float[Tensor, "*batch d"]) -> Pursuit:
        """Codes in order of selection, an atom perhaps more than once, and squared residuals."""
        rows, shape = self.rows(x), self.config
        gram = None if shape.encoder == "omp" else self._gram_for(len(rows))
        return encode(rows, self.W_dec, shape.k, shape.encoder, gram=gram, tolerance=shape.tolerance)

    def _gram_for(self, rows: int) -> Float32[Tensor, "n n"] | None:
        """The atoms' Gram matrix where it pays: kept until the atoms change or move."""
        n, atoms = self.n_latents, self.W_dec
        if 4 * n * n > GRAM_BYTES:
            return None
        key = (atoms.device, atoms.data_ptr(), atoms._version)
        if self._gram is None or self._gram[0] != key:
            if n > rows * self.config.k:
                return None
            self._gram = (key, atoms @ atoms.T)
        return self._gram[1]

    @property
    def text(self) -> dict[str, Any]:
        """Fingerprint of the corpus that identities are places in: source, hash, settings, tokenizer."""
        return self.provenance.training.get("text", {})

    @property
    def text_hash(self) -> str | None:
        """Hash of the documents that identities are places in; None where that is not known."""
        return self.text.get("hash")

    @property
    def order_hash(self) -> str | None:
        """Hash of the places of all rows it was built from, in their order; None where that is not known."""
        return self.provenance.training.get("order_hash")

    @property
    def warmup_atoms(self) -> int:
        """How many of the first atoms were taken untested, from the beginning of the stream."""
        return self.provenance.training.get("warmup_atoms", 0)

    def source(self, atom: int, corpus: Corpus | None = None, *, before: int = 20, after: int = 8) -> AtomSource:
        """The text around an atom, with its token marked.

        Args:
            corpus: what the atoms are from; by default opened anew, once, as the artefact names it, with the
                tokenizer of its model.
            before: tokens to show before it, of the same document.
            after: tokens to show after it.

        Raises:
            InputError: no such atom, the artefact does not know its text, or the corpus or its tokenizer has changed
                (names both hashes).
        """
        if not 0 <= atom < self.n_latents:
            raise InputError(f"atom {atom} is outside this ITDA of {self.n_latents} atoms: count from 0")
        if corpus is None:
            corpus = self._corpus = self._corpus or reopened(self.text, self.provenance.model)
        document, offset = self.identities[atom].tolist()
        return place_in_text(atom, document, offset, self.text, corpus, before, after)
