"""What needs a model run: bags, verdicts, and moving statements along a direction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monosem.lab.errors import InputError
from monosem.lab.models.hooked_model import HookedModel
from monosem.lab.models.loading import load_model
from monosem.lab.text.tokenization import TextTokenizer
from monosem.probes.truth.bags import BagStore, harvest_bags
from monosem.probes.truth.manipulation import Move, causal_effects, moved_verdicts
from monosem.probes.truth.prompting import answer_ids, verdict_prompts, verdicts, zero_shot
from monosem.probes.truth.statements import TRUE
from planted_bags import three_classes
from tiny_truth import write_truth_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> HookedModel:
    return load_model(write_truth_model(tmp_path_factory.mktemp("truth") / "model"), dtype="fp32", device="cpu")


TEXTS = ("The city of X is located in Y.", "True.", "The capital of X is not Y in the end.")


def test_bags_hold_what_single_statements_give(model: HookedModel, tmp_path: Path):
    sites = [model.site("resid_post.0"), model.site("z.2")]
    store = harvest_bags(model, TEXTS, sites, tmp_path / "bags", batch=3)
    assert store.lengths.tolist() == [9, 2, 11]
    tokenizer = TextTokenizer(model.tokenizer)
    for number, text in enumerate(TEXTS):
        ids = torch.from_numpy(tokenizer.encode([text])[0])
        row = torch.cat([torch.tensor([tokenizer.bos]), ids])[None]
        for site in sites:
            alone = model.capture(row, [site])[site][0, 1:].flatten(1)
            found = store.at(site, torch.tensor([number])).x
            torch.testing.assert_close(found, alone.bfloat16().float(), rtol=2e-2, atol=2e-2)
        assert store.ids[number] == ids.tolist()
    short = harvest_bags(model, TEXTS, sites, tmp_path / "short", tokens=4)
    assert short.lengths.tolist() == [4, 2, 4]
    assert torch.equal(short.at("z.2").last(), store.at("z.2").last())
    with pytest.raises(InputError, match=r"unknown harvested site 'resid_post\.1'"):
        BagStore(tmp_path / "bags").at("resid_post.1")
    with pytest.raises(InputError, match="no such store of bags"):
        BagStore(tmp_path / "none")
    with pytest.raises(InputError, match="has no token"):
        harvest_bags(model, ("The city.", ""), sites, tmp_path / "empty")
    assert not (tmp_path / "empty").exists()


def test_verdicts_are_the_models_own_logits_at_the_answer(model: HookedModel):
    tokenizer = TextTokenizer(model.tokenizer)
    prompts = verdict_prompts(tokenizer, TEXTS)
    found = verdicts(model, prompts, batch=2)
    for prompt, row in zip(prompts, found, strict=True):
        logits = model.logits(torch.tensor([prompt.ids]))[0, -1]
        torch.testing.assert_close(row, logits[answer_ids(tokenizer)], rtol=1e-4, atol=1e-4)


def test_zero_shot_fitted_gets_right_what_the_model_knows_but_does_not_say():
    _, statements = three_classes()
    logits = torch.eye(3)[torch.from_numpy(statements.labels)] + torch.tensor([5.0, 0.0, 0.0])
    logits += 0.1 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    readings = zero_shot(logits, statements, 0.1)
    right = statements.labels[statements.rows("test")]
    assert (readings["prompting"].likeliest == TRUE).all()
    assert (readings["prompting_fitted"].likeliest == right).all()


def test_moving_along_the_direction_that_writes_the_answer_moves_the_verdict(model: HookedModel):
    site = model.site("resid_post.1")
    tokenizer = TextTokenizer(model.tokenizer)
    texts = [f"The city of X is located in {name}." for name in ("Y", "the end", "capital", "city")]
    prompts = verdict_prompts(tokenizer, texts)
    still = Move(site, torch.nn.functional.normalize(torch.ones(32), dim=0), 0.0)
    torch.testing.assert_close(moved_verdicts(model, prompts, still), verdicts(model, prompts))

    # the direction along which the odds of true against false really rise, by finite differences
    basis = torch.eye(32)
    slopes = []
    for along in basis:
        up, down = (moved_verdicts(model, prompts, Move(site, along, 0.5), sign) for sign in (1.0, -1.0))
        slopes.append(float(((up - down)[:, 0] - (up - down)[:, 1]).mean()))
    towards = torch.nn.functional.normalize(torch.tensor(slopes), dim=0)
    effects = causal_effects(
        model, texts, np.array([True, False, True, False]), ["a", "b", "c", "d"], Move(site, towards, 1.0)
    )
    found = effects["indirect_effect"]
    assert found.value > 0 and found.beats_nulls() and found.n == 4
    back = causal_effects(
        model, texts, np.array([True, False, True, False]), ["a", "b", "c", "d"], Move(site, -towards, 1.0)
    )
    assert back["indirect_effect"].value < 0 and back["localised_effect_ratio"].value == 0
    assert 0 < effects["localised_effect_ratio"].value < 1 and 0 <= effects["decoherence"].value <= 1
    with pytest.raises(InputError, match="needs true and false"):
        causal_effects(model, texts, np.ones(4, bool), ["a"] * 4, Move(site, towards, 1.0))
    with pytest.raises(InputError, match=r"direction at resid_post\.1 is zero"):
        Move.between(site, torch.zeros(32), torch.ones(2, 32), torch.zeros(2, 32))


def test_a_tokenizer_that_cannot_tell_the_answers_apart_is_refused(tiny_model: HookedModel):
    with pytest.raises(InputError, match="begins two of the answers"):
        answer_ids(TextTokenizer(tiny_model.tokenizer))


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> HookedModel:
    from tiny_commands import write_model

    return load_model(write_model(tmp_path_factory.mktemp("tiny") / "model"), dtype="fp32", device="cpu")
