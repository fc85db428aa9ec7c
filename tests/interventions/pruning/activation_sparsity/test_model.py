"""Both reports on a tiny model: masks do what the arithmetic says, nulls stand beside, decisions are read back."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_models
import torch
from monosem.interventions.pruning.activation_sparsity.cores import CoresConfig, measure_cores
from monosem.interventions.pruning.activation_sparsity.curves import CurvesConfig, measure_curves
from monosem.interventions.pruning.activation_sparsity.decision import SparsityDecision
from monosem.interventions.pruning.activation_sparsity.effect import delta_ce, losses_of, masked_positions
from monosem.interventions.pruning.activation_sparsity.masks import Fixed, Threshold, masking
from monosem.interventions.pruning.activation_sparsity.modules import (
    inputs_of,
    linear_modules,
    mlp_output,
    read_passages,
)
from monosem.interventions.pruning.activation_sparsity.tables import cores_table, curves_table, losses_table
from monosem.lab.errors import InputError
from monosem.lab.models.hooked_model import HookedModel
from monosem.lab.text.corpus import Corpus
from monosem.lab.text.packing import TokenBatch

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model() -> HookedModel:
    return HookedModel(tiny_models.build("llama"))


def passages(count: int, seed: int = 0, length: int = 16) -> TokenBatch:
    tokens = torch.randint(3, 97, (count, length), generator=torch.Generator().manual_seed(seed))
    usable = torch.ones(count, length, dtype=torch.bool)
    usable[:, 0] = False
    doc = torch.arange(count)[:, None].expand(count, length).contiguous() + 100 * seed
    return TokenBatch(tokens, torch.ones_like(usable), usable, doc, torch.arange(length).expand(count, length))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_every_linear_map_is_found_with_what_goes_in(family: str) -> None:
    model = HookedModel(tiny_models.build(family))
    modules = linear_modules(model, [1])
    batch = passages(3)
    taken = inputs_of(model, modules, batch, rows_at_once=2)
    for module in modules:
        x = taken[module.name].to(torch.float32)
        y = module.module(x)
        bias = getattr(module.module, "bias", None)
        torch.testing.assert_close(x @ module.weight.T + (0 if bias is None else bias), y, rtol=1e-4, atol=1e-4)
    down = mlp_output(model, 1)
    torch.testing.assert_close(taken[down.name], model.capture(batch.tokens, ["mlp_act.1"])["mlp_act.1"])
    with pytest.raises(InputError, match="outside"):
        linear_modules(model, [3])
    with pytest.raises(InputError, match=r"unknown linear module of layer 1 'mlp\.down': did you mean 'mlp\."):
        linear_modules(model, [1], ["mlp.down"])


def test_masks_change_masked_positions_alone_and_are_undone(model: HookedModel) -> None:
    batch, down = passages(2), mlp_output(model, 1)
    kept = torch.rand(2, 56, generator=torch.Generator().manual_seed(3)) < 0.5
    site, positions = "path:model.layers.1.mlp.down_proj", masked_positions(batch, "decode")
    clean = model.capture(batch.tokens, [site])[site].clone()
    acts = model.capture(batch.tokens, ["mlp_act.1"])["mlp_act.1"]
    with masking({down: Fixed(kept)}, positions):
        found = model.capture(batch.tokens, [site])[site].clone()
    assert torch.equal(found[~positions], clean[~positions]) and positions.sum() == 2 * 8
    wanted = (acts * kept[:, None]) @ down.weight.T
    torch.testing.assert_close(found[positions], wanted[positions], rtol=1e-4, atol=1e-4)
    assert torch.equal(model.capture(batch.tokens, [site])[site], clean)
    left, right = torch.randn(32, 3), torch.randn(3, 56)
    with masking({down: Threshold(torch.ones(56), 0.5, left, right)}, positions):
        found = model.capture(batch.tokens, [site])[site]
    big = acts.abs() > 0.5
    wanted = (acts * big) @ down.weight.T + (acts * ~big) @ right.T @ left.T
    torch.testing.assert_close(found[positions], wanted[positions], rtol=1e-3, atol=1e-3)
    with masking({down: Fixed(kept)}, positions.flip(0), first=0), pytest.raises(InputError, match="unknown split"):
        masked_positions(batch, "later")


def test_keeping_all_costs_nothing_and_dropping_all_does(model: HookedModel) -> None:
    batch, modules = passages(6), linear_modules(model, [0, 1, 2])
    every = {one: Fixed(torch.ones(1, one.weight.shape[1], dtype=torch.bool)) for one in modules}
    none = {one: Fixed(torch.zeros(1, one.weight.shape[1], dtype=torch.bool)) for one in modules}
    sums = losses_of(model, batch, {"every": every, "none": none})
    for split, predictions in {"prefill": 6 * 14, "decode": 6 * 7}.items():
        found = delta_ce(sums[split], "every", {"none": "none"})
        assert found.value == pytest.approx(0, abs=1e-5) and abs(found.nulls["none"]) > 0.01
        assert sums[split].total["predictions"] == predictions and found.n == 6
    logits = model.logits(batch.tokens).float().log_softmax(-1)
    clean = -logits[:, :-1].gather(2, batch.tokens[:, 1:, None])[..., 0]
    assert sums["prefill"].total["ce_clean"] == pytest.approx(float(clean[:, 1:].sum()), rel=1e-5)
    assert sums["decode"].total["ce_clean"] == pytest.approx(float(clean[:, 8:].sum()), rel=1e-5)


def test_curves_of_a_model_and_their_decisions(model: HookedModel, tmp_path: Path) -> None:
    config = CurvesConfig(sparsities=(0.5,), shares=(0.5,), oracle_tokens=20)
    batch = passages(6)
    modules = linear_modules(model, [0, 2], ["mlp.down_proj", "self_attn.o_proj"])
    curves = measure_curves(model, modules, passages(4, seed=1), batch, config)
    assert [one.module.name for one in curves.modules] == [one.name for one in modules]
    assert set(curves.losses) == {"layer 0", "layer 2", "all"}
    loss = curves.losses["all"]["decode"]
    assert set(loss.nulls) == {"random", "channels_only"} and loss.n == 6 and loss.interval is not None
    decision = curves.decisions[1]
    assert (decision.layer, decision.granularity, decision.budget) == (2, "token", 0.5)
    again = SparsityDecision.load(decision.save(tmp_path / "decision.json"))
    assert again == decision and again.delta_ce.value == curves.losses["layer 2"]["decode"].value
    masks = again.masks(modules)
    sums = losses_of(model, batch, {"again": masks})["decode"]
    assert delta_ce(sums, "again", {}).value == pytest.approx(decision.delta_ce.value, abs=1e-6)
    lines = curves_table(curves, 0.5), losses_table(curves.losses)
    assert [len(table) for table in lines] == [5, 4] and all(len({*map(len, table)}) == 1 for table in lines)


def test_cores_of_a_model_and_their_decisions(model: HookedModel, tmp_path: Path) -> None:
    batch = passages(6)
    embeddings = torch.nn.functional.normalize(torch.randn(6, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    config = CoresConfig(ahead=2)
    reports = measure_cores(model, [0, 2], passages(4, seed=1), batch, config, embeddings=embeddings)
    for report in reports:
        scores = report.scores
        least, _ = scores["recall"].interval
        assert scores["recall"].beats_nulls() == (least > max(scores["recall"].nulls.values()))
        assert scores["recall"].value > scores["recall"].nulls["random"] and set(scores["recall"].nulls) == {
            "global", "random"}  # fmt: skip
        assert set(scores["delta_ce_sentence"].nulls) == {"global", "random", "oracle"}
        assert scores["rel_error_sentence"].nulls["global"] == scores["rel_error_global"].value
        assert 0 < scores["stability"].value <= 1 and "core_similarity" in scores
        assert len({len(values) for values in report.drift.values()}) == 1
        sentence, whole = report.decisions
        assert (sentence.granularity, whole.granularity) == ("sentence", "global")
        assert len(sentence.mask["mlp.down_proj"]["kept_of"]) == 6
    again = SparsityDecision.load(reports[1].decisions[0].save(tmp_path / "core.json"))
    masks = again.masks([mlp_output(model, 2)], list(range(6)))
    sums = losses_of(model, batch, {"again": masks})["decode"]
    assert delta_ce(sums, "again", {}).value == pytest.approx(again.delta_ce.value, abs=1e-6)
    with pytest.raises(InputError, match="no core for document 77"):
        again.masks([mlp_output(model, 2)], [77])
    assert len(cores_table(reports)) == len(reports[0].scores) + 1
    with pytest.raises(InputError, match="prompts longer than ahead=8"):
        measure_cores(model, [0], batch, batch)


def test_passages_are_whole_rows_of_one_document(model: HookedModel) -> None:
    class Words:
        """A tokenizer of numbers."""

        bos_token_id = 1
        eos_token_id = 2
        pad_token_id = 0
        all_special_ids = (0, 1, 2)
        name_or_path = "words"

        def __call__(self, texts: list[str], **_: object) -> dict[str, list[list[int]]]:
            return {"input_ids": [[int(word) for word in text.split()] for text in texts]}

        def decode(self, ids: list[int], **_: object) -> str:
            return " ".join(map(str, ids))

    texts = [" ".join(str(3 + (i + j) % 90) for j in range(4 + 3 * (i % 5))) for i in range(40)]
    corpus = Corpus(texts, Words(), context=12, pack=False, long="truncate")
    before, after = read_passages(model, corpus, 3, 5)
    assert before.tokens.shape == (3, 12) and after.tokens.shape == (5, 12) and after.attention.all()
    docs = torch.cat([before.doc, after.doc])
    assert len(docs.max(1).values.unique()) == 8 and all(len(row[row >= 0].unique()) == 1 for row in docs)
    with pytest.raises(InputError, match="documents of at least 12 tokens, and 60 are needed"):
        read_passages(model, corpus, 30, 30)
    with pytest.raises(InputError, match="pack=False"):
        read_passages(model, Corpus(texts, Words(), context=12), 1, 1)


def test_a_decision_that_decides_nothing_is_refused(tmp_path: Path, model: HookedModel) -> None:
    down, batch = mlp_output(model, 0), passages(2)
    sums = losses_of(model, batch, {"none": {down: Fixed(torch.zeros(1, 56, dtype=torch.bool))}})
    loss = delta_ce(sums["decode"], "none", {})
    good = {"layer": 0, "criterion": "abs", "granularity": "global", "budget": 0.5, "recall_vs_oracle": None,
            "mask": {"mlp.down_proj": {"kept": [1]}}, "rel_error": loss, "delta_ce": loss}  # fmt: skip
    for change, told in (({"granularity": "tokens"}, "did you mean 'token'"), ({"budget": 2}, "from 0 to 1, got 2"),
                         ({"mask": {}}, "at least one module")):  # fmt: skip
        with pytest.raises(InputError, match=told):
            SparsityDecision(**{**good, **change})
    (tmp_path / "other.json").write_text('{"kind": "steering"}')
    with pytest.raises(InputError, match="no decision on activation sparsity"):
        SparsityDecision.load(tmp_path / "other.json")
    with pytest.raises(InputError, match="unknown linear module of layer 0"):
        SparsityDecision(**good).masks([])
