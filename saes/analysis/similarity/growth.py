"""ITDAs of every layer from rows in memory, and their null: the same rows shuffled under the same places."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tqdm import tqdm

from ....lab.models.sites import Site
from ....lab.rng import generator
from ....lab.streams.activation_stream import Batch
from ...training.itda.growth_config import GrowthConfig
from ...training.itda.trainer import ITDATrainer
from .atoms import AtomSet
from .representations import Representations

BATCH = 512


def grow_atoms(
    representations: Representations,
    config: GrowthConfig | None = None,
    *,
    sites: Sequence[str] | None = None,
    shuffle: int | None = None,
    progress: bool = False,
) -> dict[str, AtomSet]:
    """The atoms of an ITDA of each site, by site; rows come in their order.

    Args:
        sites: which; all by default.
        shuffle: seed of another order of the rows, while the places stay in theirs: the null `shuffled`.

    Raises:
        InputError: a threshold that no row of a site's width can exceed.
    """
    order = torch.arange(len(representations))
    if shuffle is not None:
        order = torch.randperm(len(representations), generator=generator(shuffle, "order of the rows"))
    atoms = {}
    for text in tqdm(
        sites or list(representations.acts), f"ITDA of {representations.name}", unit="layer", disable=not progress
    ):
        site, x = Site.parse(text), representations.acts[text]
        trainer = ITDATrainer(x.shape[1], site, config)
        for part in torch.arange(len(representations)).split(BATCH):
            trainer.step(Batch({site: x[order[part]]}, representations.places[part]))
            if trainer.done:
                break
        name = f"{text} of {representations.name}"
        atoms[text] = AtomSet(
            trainer.identities,
            representations.text,
            len(representations),
            trainer.arrivals,
            x.shape[1],
            name,
            trainer.order_hash,
        )
    return atoms
