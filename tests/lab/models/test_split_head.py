"""The head apart from its base gives the logits of the whole model, with edits in force, for every kind of model."""

from __future__ import annotations

import pytest
import torch
from monosem.lab.errors import InputError
from monosem.lab.models.hooked_model import HookedModel
from tiny_models import BUILD, FURTHER, VISION, build, inputs_for

WHOLE = ("opt",)
"""Kinds whose module reads a part of its base, so that the base is not called."""


@pytest.mark.parametrize("name", [name for name in (*BUILD, *FURTHER) if name not in VISION])
def test_the_parts_make_the_whole(name: str) -> None:
    model, inputs = HookedModel(build(name), checks=False), inputs_for(name)
    if name in WHOLE:
        assert model.head is None
        with pytest.raises(InputError, match="does not run apart from its base: use `logits`"):
            model.before_head(inputs)
        return
    assert model.head is not None and model.forwards == 0
    expected = model.logits(inputs)
    rows = model.before_head(inputs)
    assert torch.equal(model.head(rows.flatten(0, 1)), expected.flatten(0, 1))
    torch.testing.assert_close(model.head(rows[0, 2:5]), expected[0, 2:5])
    padded = torch.cat([torch.full((len(inputs), 1), 5), inputs], 1)
    mask = (torch.arange(padded.shape[1]) > 0).expand_as(padded).long()
    if model.positions.left:
        rows = model.before_head(padded, attention_mask=mask)
        torch.testing.assert_close(
            model.head(rows.flatten(0, 1)), model.logits(padded, attention_mask=mask).flatten(0, 1)
        )
    assert model.module.base_model is not model.head._given and torch.equal(model.logits(inputs), expected)


def test_edits_reach_the_head() -> None:
    model, inputs = HookedModel(build("gemma2")), inputs_for("gemma2")
    assert model.head is not None
    with model.editing({"resid_post.0": lambda x: 0.5 * x}):
        edited, rows = model.logits(inputs), model.before_head(inputs)
    assert torch.equal(model.head(rows[0]), edited[0]) and not torch.allclose(edited, model.logits(inputs))


def test_images_and_modules_of_no_kind_have_none() -> None:
    assert HookedModel(build("vit")).head is None
    assert HookedModel(torch.nn.Linear(3, 2)).head is None
