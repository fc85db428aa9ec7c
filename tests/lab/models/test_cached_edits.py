"""Edits under a cached `generate` are given the columns they act on, and write where a pass without cache writes."""

from __future__ import annotations

import pytest
import torch
from monosem.lab.models.hooked_model import HookedModel
from tiny_models import build, inputs_for

KEPT = 9
"""The column that is edited: the third that is generated."""


def edited(seen: list[list[int]]):
    def edit(x: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        seen.append(columns.tolist())
        return torch.where((columns == KEPT)[None, :, None], x + 50 * torch.linspace(-1, 1, x.shape[-1]).sin(), x)

    return edit


def generated(model: HookedModel, tokens: torch.Tensor, **options: bool) -> torch.Tensor:
    fixed = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    return model.module.generate(tokens, attention_mask=torch.ones_like(tokens), **fixed, **options)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_an_edit_of_one_column_gives_the_same_text_with_and_without_a_cache(name: str) -> None:
    model, tokens, texts = HookedModel(build(name)), inputs_for(name), {}
    for cached in (True, False):
        seen: list[list[int]] = []
        with model.editing({"resid_post.1": edited(seen)}):
            options = {
                "max_new_tokens": 6,
                "do_sample": False,
                "use_cache": cached,
                "pad_token_id": 0,
                "eos_token_id": None,
            }
            texts[cached] = model.module.generate(tokens, attention_mask=torch.ones_like(tokens), **options)
        assert seen[0] == list(range(7)) and seen[-1] == ([11] if cached else list(range(12)))
    plain = generated(model, tokens)
    assert torch.equal(texts[True], texts[False]) and torch.equal(texts[True][:, :10], plain[:, :10])
    assert not torch.equal(texts[True], plain)


def test_columns_of_whole_passes_and_of_nested_edits_count_from_zero() -> None:
    model, tokens, seen = HookedModel(build("llama")), inputs_for("llama"), []
    with model.editing({"resid_post.0": edited(seen)}), model.editing({"resid_post.0": lambda x: x}):
        model.logits(tokens)
        model.capture(tokens[:, :3], ["resid_post.0"])
    assert seen == [list(range(7)), list(range(3))]
    seen.clear()
    model.logits(tokens)
    assert not seen and not model.module._forward_pre_hooks
