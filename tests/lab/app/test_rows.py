"""`split_rows` on a store: a document is trained on or held out, never both."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from monosem.lab.app.options import ModelText
from monosem.lab.app.rows import held_documents, split_rows
from monosem.lab.errors import InputError
from monosem.lab.models.sites import Site
from monosem.lab.streams.activation_stream import Batch
from monosem.lab.streams.store import ActivationStore
from tiny_commands import Tiny

SITE = Site.parse("resid_post.1")


def store(folder: Path, sizes: list[int]) -> Path:
    """A store with rows [document, number of the row, 0, 0], shuffled as a harvest shuffles them."""
    documents = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    documents = documents[torch.randperm(len(documents), generator=torch.Generator().manual_seed(0))]
    acts = torch.zeros(len(documents), 4)
    acts[:, 0], acts[:, 1] = documents, torch.arange(len(documents))

    def batches() -> Iterator[Batch]:
        for part in torch.arange(len(documents)).split(64):
            yield Batch({SITE: acts[part]}, torch.stack([documents[part], part], 1))

    ActivationStore.write(batches(), folder, dtype=torch.float32, progress=False)
    return folder


def test_no_document_of_a_store_is_trained_on_and_held_out(tmp_path: Path) -> None:
    folder = store(tmp_path / "store", [8 + number % 30 for number in range(60)])
    rows, held = split_rows(ModelText(), folder, SITE, 900, 300, 32)
    assert rows.shape == (900, 4) and held.shape == (300, 4)
    assert not set(rows[:, 0].tolist()) & set(held[:, 0].tolist())
    assert len(torch.cat([rows, held])[:, 1].unique()) == 1200, "no row is served twice"
    again = split_rows(ModelText(), folder, SITE, 900, 300, 32)
    assert torch.equal(rows, again[0]) and torch.equal(held, again[1])


def test_a_document_that_is_too_long_is_trained_on(tmp_path: Path) -> None:
    documents = torch.tensor([0] * 50 + [1] * 4 + [2] * 4)
    held = held_documents(documents, 6, 10)
    assert held.sum() == 8 and set(documents[held].tolist()) == {1, 2}
    folder = store(tmp_path / "store", [400, 20])
    with pytest.raises(InputError, match=r"do not part into 300 rows to train on and 100 held-out rows.*at least 4496"):
        split_rows(ModelText(), folder, SITE, 300, 100, 32)


def test_held_out_text_is_not_that_of_training(tiny: Tiny) -> None:
    source = ModelText(str(tiny.model), corpus=f"text:{tiny.text}", dtype="fp32")
    rows, held = split_rows(source, None, SITE, 600, 200, 32)
    assert rows.shape == (600, 32) and held.shape == (200, 32)
    again = (held[:, None] == rows).all(2).any(1)
    assert float(again.float().mean()) < 0.2  # first words of a row alone may be the same
