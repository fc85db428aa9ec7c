"""Dictionaries in other coordinates: trained on whitened rows, or turned by a rotation as a null.

A linear encoder that reads y = (x - centre) A is a linear encoder of x. So an autoencoder trained on whitened rows is
written back as a plain one in activation units, which is saved, measured and edited like any other. A dictionary with
any other encoder is wrapped in its rotation instead.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from ....lab.storage import State
from ....lab.streams.activation_stream import Batch
from ...architectures.sae import SparseAutoencoder
from ...dictionary import Dictionary
from ...sparse_code import SparseCode
from ...training.trainer import Trainer
from .inner_product import AtomicInnerProduct


@torch.no_grad()
def in_activation_units(
    sae: SparseAutoencoder, product: AtomicInnerProduct, centre: Float[Tensor, " d"]
) -> SparseAutoencoder:
    """The autoencoder of activations that equals one of whitened rows (x - centre) W; its provenance names both.

    Decoder rows have unit norm under the inner product, not in activation units.
    """
    folded = type(sae)(sae.config).to(sae.W_dec.device)
    folded.load_state_dict(sae.state_dict())
    whitening, back = product.whitening, product.unwhitening
    folded.W_enc.copy_(sae.W_enc.double() @ whitening.T)
    folded.W_dec.copy_(sae.W_dec.double() @ back)
    folded.b_dec.copy_(centre.double() + sae.b_dec.double() @ back)
    whitening_facts = {"whitened": {"ridge": product.ridge, "condition": product.condition}}
    folded.place = sae.place
    folded.provenance = replace(sae.provenance, training={**sae.provenance.training, **whitening_facts})
    return folded


class WhitenedTrainer:
    """A `Trainer` that sees whitened rows: the atoms of the inner product, as a consumer of any stream.

    Args:
        trainer: trains an autoencoder of one site; its weights are in whitened units until it is saved.
        product: the inner product, measured beforehand.
        centre: subtracted before whitening; the mean of the rows the product was measured on.
    """

    def __init__(self, trainer: Trainer, product: AtomicInnerProduct, centre: Float[Tensor, " d"]) -> None:
        self.trainer, self.product, self.centre = trainer, product, centre
        self.name, self.sites = trainer.name, trainer.sites

    @property
    def rows_wanted(self) -> int:
        """Rows of the whole training."""
        return self.trainer.rows_wanted

    @property
    def done(self) -> bool:
        """True once the configured rows have been trained on."""
        return self.trainer.done

    def shorten(self, rows: int) -> None:
        """Let the schedules span `rows`, as `Trainer.shorten`."""
        self.trainer.shorten(rows)

    @property
    def halfway(self) -> bool:
        """True while a step of the trainer has changed a part of it."""
        return self.trainer.halfway

    def step(self, batch: Batch) -> None:
        """Whiten the rows and train on them."""
        (site,) = self.sites
        rows = self.product.whiten(batch.acts[site].float() - self.centre.float())
        self.trainer.step(batch._replace(acts={site: rows}))

    def metrics(self) -> dict[str, float]:
        """The metrics of the trainer; `fvu` is measured on whitened rows, where every direction counts the same."""
        return self.trainer.metrics()

    def state_dict(self) -> State:
        """That of the trainer: the product is measured, not learned."""
        return self.trainer.state_dict()

    def load_state_dict(self, state: State) -> None:
        """Continue from `state_dict`."""
        self.trainer.load_state_dict(state)

    def folded(self) -> SparseAutoencoder:
        """The dictionary in activation units."""
        return in_activation_units(self.trainer.folded(), self.product, self.centre)

    def save(self, folder: Path) -> None:
        """Write the dictionary in activation units."""
        self.folded().save(folder)


class Rotated(Dictionary):
    """A null: a dictionary whose atoms and encoder are turned about a centre by one rotation.

    Its atoms have the same angles and it selects by the same rule; only what they have to do with the data is gone.
    """

    architecture = "rotated"

    def __init__(self, dictionary: Dictionary, rotation: Float64[Tensor, "d d"], centre: Float[Tensor, " d"]) -> None:
        super().__init__(dictionary.config)
        self.dictionary, self.place, self.provenance = dictionary, dictionary.place, dictionary.provenance
        self.rotation, self.centre = rotation.to(dictionary.W_dec), centre.to(dictionary.W_dec)
        self.W_dec = nn.Parameter(dictionary.W_dec.detach() @ self.rotation, requires_grad=False)
        offset = (dictionary.b_dec.detach() - self.centre) @ self.rotation + self.centre
        self.b_dec = nn.Parameter(offset, requires_grad=False)

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "*batch d"]) -> SparseCode:
        """The codes that the dictionary gives to the rows turned back."""
        return self.dictionary.encode((self.rows(x) - self.centre) @ self.rotation.T + self.centre)


def random_rotation(d: int, rng: torch.Generator) -> Float64[Tensor, "d d"]:
    """An orthogonal matrix, uniform over all."""
    normal = torch.randn(d, d, dtype=torch.float64, generator=rng)
    q, r = torch.linalg.qr(normal)
    return q * r.diagonal().sign()
