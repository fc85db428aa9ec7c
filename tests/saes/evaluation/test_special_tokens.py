"""Sequential against block training where the truth is known, and the measures on special tokens."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_commands
import torch
from monosem.lab.app.commands.fast import FastCommand
from monosem.lab.app.options import ModelText
from monosem.lab.errors import InputError
from monosem.lab.models.loading import load_model
from monosem.lab.models.sites import Site
from monosem.lab.rng import generator
from monosem.lab.streams.activation_stream import Batch
from monosem.lab.text.corpus import Corpus, TextConfig
from monosem.saes.dictionary import Dictionary
from monosem.saes.evaluation.special_tokens import (
    SCORES,
    SETS,
    ConversationRows,
    SpecialTokens,
    TokenMeans,
    conversations,
)
from monosem.saes.registry import build_trainable
from monosem.saes.training.trainer import TrainConfig, Trainer
from torch import Tensor

SITE = Site.parse("resid_post.1")
D, ATOMS, SPECIAL, LENGTH, BLOCK = 16, 40, (0, 1), 64, 2048
TEMPLATE = torch.tensor([0, *[9] * 20, 1, 0, *[9] * 40, 1])
"""Ids of a conversation: content is 9, and it begins with a special token."""


class Planted:
    """Content is three of forty atoms, two special tokens are fixed vectors, and position 0 adds a large one."""

    def __init__(self) -> None:
        rng = generator(0, "toy")
        self.atoms = torch.nn.functional.normalize(torch.randn(ATOMS, D, generator=rng), dim=1)
        self.fixed = 2 * torch.nn.functional.normalize(torch.randn(2, D, generator=rng), dim=1)
        self.sink = 30 * torch.nn.functional.normalize(torch.randn(D, generator=rng), dim=0)

    def acts(self, tokens: Tensor, first: Tensor, rng: torch.Generator) -> Tensor:
        n = len(tokens)
        chosen = torch.rand(n, ATOMS, generator=rng).topk(3).indices
        content = (self.atoms[chosen] * (1 + torch.rand(n, 3, 1, generator=rng))).sum(1)
        x = torch.where((tokens < 2)[:, None], self.fixed[tokens.clamp(max=1)] + 0.3 * content, content)
        return x + first[:, None] * self.sink

    def rows(self, method: str, count: int, seed: int) -> ConversationRows:
        """`count` tokens read as FAST, BT(F) or BT(P) do: they differ in the tokens and in where position 0 is."""
        tokens = TEMPLATE.repeat(-(-count // LENGTH))[:count] if method != "bt-p" else torch.full((count,), 9)
        place = torch.arange(count)
        first = place % (LENGTH if method == "fast" else BLOCK) == 0
        acts = self.acts(tokens, first, generator(seed, "rows", method))
        return ConversationRows({SITE: acts}, tokens, place // LENGTH, first)


def trained(planted: Planted, method: str, rows: int = 98_304, batch: int = 512) -> Dictionary:
    dictionary = build_trainable("topk", d_in=D, n_latents=64, k=4)
    trainer = Trainer(
        dictionary,
        SITE,
        TrainConfig(rows=rows, lr=0.004, beta1=0.9, beta2=0.999, blend=0.0, precision="fp32"),
        name="toy",
    )
    read = planted.rows(method, rows, seed=1)
    order = torch.randperm(rows, generator=generator(0, "order"))
    for part in order.split(batch):
        trainer.step(Batch({SITE: read.acts[SITE][part]}, torch.zeros(len(part), 2, dtype=torch.int64)))
    return trainer.folded()


@pytest.fixture(scope="module")
def toy() -> SpecialTokens:
    planted = Planted()
    subjects = {method: trained(planted, method) for method in ("fast", "bt-f", "bt-p")}
    measured = SpecialTokens(subjects, SPECIAL)
    measured.add(planted.rows("fast", 200 * LENGTH, seed=2))
    return measured


def score(measured: SpecialTokens, method: str, name: str) -> float:
    return measured.formula(method, name)(measured.sums.total)


# the known truth: a block has one position 0 where conversations have many


def test_sequential_training_wins_on_special_tokens_by_the_sink_alone(toy):
    special = {method: score(toy, method, "mse.special") for method in toy.subjects}
    assert special["bt-p"] > 5 * special["fast"] and special["bt-f"] > 5 * special["fast"]
    without = {method: score(toy, method, "mse.special_no_first") for method in toy.subjects}
    assert abs(without["bt-f"] - without["fast"]) < 0.15 * without["fast"]
    assert without["bt-p"] > 4 * without["fast"]  # it never saw a special token


def test_content_is_learned_alike_by_all_methods(toy):
    content = [score(toy, method, "mse.content") for method in toy.subjects]
    assert max(content) < 1.1 * min(content)
    assert {score(toy, method, f"l0.{tokens}") for method in toy.subjects for tokens in SETS} == {4.0}


def test_gaps_resample_the_same_conversations_for_both(toy):
    gap = toy.gap("bt-f", "fast", "log2_mse.special")
    each = [score(toy, method, "log2_mse.special") for method in ("bt-f", "fast")]
    assert gap.value == pytest.approx(each[0] - each[1]) and gap.nulls == {"no_difference": 0.0}
    assert 0 < gap.interval[0] < gap.value < gap.interval[1]
    same = toy.gap("fast", "fast", "fvu.all")
    assert (same.value, same.interval) == (0.0, (0.0, 0.0))


# known answers


def constant(value: float) -> Dictionary:
    """A dictionary that answers the same vector to everything."""
    found = build_trainable("topk", d_in=4, n_latents=8, k=2)
    found.W_dec.data.zero_()
    found.W_enc.data.fill_(-1.0)
    found.b_dec.data.fill_(value)
    found.place = SITE
    return found


def two_conversations() -> ConversationRows:
    x = torch.randn(7, 4, generator=generator(0, "rows"))
    first = torch.tensor([1, 0, 0, 0, 0, 1, 0]).bool()
    return ConversationRows({SITE: x}, torch.tensor([0, 5, 5, 1, 5, 0, 5]), torch.tensor([3, 3, 3, 3, 3, 8, 8]), first)


def test_means_run_over_tokens_of_a_conversation_and_then_over_conversations():
    rows = two_conversations()
    measured = SpecialTokens({"mean": constant(0.5)}, SPECIAL)
    measured.add(rows)
    found = measured.evidence("mean", held_out="all of it")
    error = (rows.acts[SITE].double() - 0.5).square().mean(1).numpy()
    expected = {
        "all": (error[:5].mean() + error[5:].mean()) / 2,
        "special": (error[[0, 3]].mean() + error[5]) / 2,
        "content": (error[[1, 2, 4]].mean() + error[6]) / 2,
        "all_no_first": (error[1:5].mean() + error[6]) / 2,
        "special_no_first": error[3],  # the other conversation has no other special token
        "content_no_first": (error[[1, 2, 4]].mean() + error[6]) / 2,
    }
    assert {name: found[f"mse.{name}"].value for name in SETS} == pytest.approx(expected)
    assert found["log2_mse.special"].value == pytest.approx(math.log2(expected["special"]))
    x = rows.acts[SITE].double().numpy()[[1, 2, 3, 4, 6]]
    fvu = np.square(x - 0.5).sum() / np.square(x - x.mean(0)).sum()
    assert found["fvu.all_no_first"].value == pytest.approx(fvu)
    assert [found[f"mse.{name}"].n for name in ("special", "special_no_first")] == [2, 1]
    assert found["mse.all"].unit == "conversations" and found["mse.all"].held_out == "all of it"
    assert measured.counts() == {"conversations": 2, "all": 7, "special": 3, "content": 4,
                                 "all_no_first": 5, "special_no_first": 1, "content_no_first": 4}  # fmt: skip


def test_the_order_of_reading_does_not_matter():
    rows = two_conversations()
    measured = [SpecialTokens({"mean": constant(0.5)}, SPECIAL) for _ in range(2)]
    measured[0].add(rows)
    for part in (slice(5, 7), slice(0, 5)):
        measured[1].add(
            ConversationRows({SITE: rows.acts[SITE][part]}, rows.tokens[part], rows.doc[part], rows.first[part])
        )
    for name in (f"{kind}.{tokens}" for kind in SCORES for tokens in SETS):
        one, two = (score(each, "mean", name) for each in measured)
        assert one == pytest.approx(two, nan_ok=True)
    intervals = [each.sums.interval(each.formula("mean", "mse.all")) for each in measured]
    assert intervals[0] == pytest.approx(intervals[1]) and intervals[0][0] < intervals[0][1]


def test_token_means_know_which_token_it_is_and_position_0_and_no_more():
    rows = two_conversations()
    fixed = torch.tensor([[9.0, 0, 0, 0], [0, 5.0, 0, 0]])
    x = torch.where((rows.tokens < 2)[:, None], fixed[rows.tokens.clamp(max=1)], rows.acts[SITE])
    x[rows.first] += 100
    rows = rows._replace(acts={SITE: x})
    means = TokenMeans(SITE, SPECIAL)
    means.add(rows)
    measured = SpecialTokens({"means": means, "dictionary": constant(0.0)}, SPECIAL)
    measured.add(rows)
    found = measured.evidence("dictionary", {"token_means": "means"})
    assert found["mse.special"].nulls["token_means"] == pytest.approx(0) and not found["mse.special"].beats_nulls()
    assert found["fvu.content"].nulls["token_means"] == pytest.approx(1) and found["l0.all"].nulls["token_means"] == 1
    wider = TokenMeans(SITE, (*SPECIAL, 7))
    wider.add(rows)
    unseen = wider.measured(rows._replace(tokens=torch.full((7,), 7)))[0]
    content = x[rows.tokens == 5].double().mean(0)
    assert torch.allclose(unseen, (x.double() - content).square().sum(1))  # as any other token


# bad input


def test_what_cannot_be_measured():
    with pytest.raises(InputError, match="at least one dictionary"):
        SpecialTokens({}, SPECIAL)
    with pytest.raises(InputError, match="at least one special token id"):
        SpecialTokens({"mean": constant(0)}, ())
    nowhere = constant(0)
    nowhere.place = nowhere.config.place
    with pytest.raises(InputError, match="'mean' names no site"):
        SpecialTokens({"mean": nowhere}, SPECIAL)
    measured = SpecialTokens({"mean": constant(0)}, SPECIAL)
    with pytest.raises(InputError, match="no conversation was measured"):
        measured.evidence("mean")
    with pytest.raises(InputError, match="did you mean 'mean'"):
        measured.formula("meen", "mse.all")
    with pytest.raises(InputError, match=r"did you mean 'mse\.special'"):
        measured.formula("mean", "mse.specal")


# the command


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A tiny instruct model, conversations in a file, and plain text."""
    folder, chance = tmp_path_factory.mktemp("fast"), random.Random(3)
    model = tiny_commands.write_model(folder / "model")
    tokenizer: Any = load_model(model, dtype="fp32", device="cpu").tokenizer
    tokenizer.chat_template = "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}"
    tokenizer.save_pretrained(model)

    def turn(role: str) -> dict[str, str]:
        return {"role": role, "content": " ".join(tiny_commands.document(chance).split()[:15])}

    turns = [[turn(role) for role in ("user", "assistant")] for _ in range(60)]
    file = folder / "chats.jsonl"
    file.write_text("\n".join(json.dumps({"messages": messages}) for messages in turns))
    return model, file, tiny_commands.write_text(folder / "text")


def command(chat: tuple[Path, Path, Path], out: Path, **fields: Any) -> FastCommand:
    model, file, text = chat
    reading = TextConfig(context=48, batch_rows=8, limit=60, heldout=0.3)
    source = ModelText(str(model), "fp32", "cpu", f"text:{text}", reading)
    sizes = {"sites": ("resid_post.1",), "k": (2, 4), "rows": 1024, "batch": 64, "buffer": 256, "n_latents": 48}
    return FastCommand(out, chat=f"jsonl:{file}", source=source, **{**sizes, **fields})


def test_one_command_compares_the_methods(chat, tmp_path):
    asked = command(chat, tmp_path / "out", attention_sinks=("keep",))
    found = asked.run().values
    names = {f"{method}/keep/resid_post.1/{k}" for method in ("fast", "bt-f", "bt-p") for k in (2, 4)}
    assert set(found["scores"]) == names and set(found["gaps_to_fast"]) == {n for n in names if "fast" not in n}
    for name, scores in found["scores"].items():
        assert scores["l0.all"] <= float(name[-1]) and 0 < scores["fvu.all_no_first"] < 1.5
        assert {"fvu.all_null_untrained", "fvu.all_null_pca", "fvu.all_null_token_means"} <= scores.keys()
    assert set(found["at_one_l0"]["keep/resid_post.1/log2_mse.special"]) == {"fast", "bt-f", "bt-p"}
    assert found["counts"]["special"] == 4 * found["counts"]["conversations"] > 20
    assert json.loads((tmp_path / "out" / "fast.json").read_text()) == {
        key: value for key, value in found.items() if key not in ("out", "chart")
    }
    assert "BT(F)" in (tmp_path / "out" / "fast.html").read_text()
    with pytest.raises(InputError, match="already holds a run"):
        asked.run()


def test_options_that_cannot_be_used(chat, tmp_path):
    with pytest.raises(InputError, match=r"k=\[4, 4\] must name at least one, each once"):
        command(chat, tmp_path, k=(4, 4))
    with pytest.raises(InputError, match="special='the old boat' is 3 tokens"):
        command(chat, tmp_path, special=("the old boat",)).run()
    with pytest.raises(InputError, match="does not give whole conversations"):
        model = load_model(chat[0], dtype="fp32", device="cpu")
        conversations(model, Corpus(["the boat"], model.tokenizer), [SITE])
