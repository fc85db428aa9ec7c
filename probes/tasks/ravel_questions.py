"""Questions that a model answers rightly: its answers to questions about entities, with nothing changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from tqdm import tqdm

from ...lab.errors import InputError
from ...lab.models.hooked_model import HookedModel
from ...lab.runs.prompts import Prompt, PromptBatch, mark, prompt_batches
from ...lab.text.tokenization import TextTokenizer
from ..cities import Facts


@dataclass(frozen=True)
class Questions:
    """Every question about the entities a model knows: attribute by template by entity, one prompt each.

    An answer is the first token of a value, chosen among those of its attribute; values of one attribute that begin
    with the same token count as one.
    """

    attributes: list[str]
    entities: list[str]
    """Entities whose every attribute the model answers rightly, by at least one template."""
    prompts: list[Prompt]
    """Marked at the entity's last token."""
    attribute: Int64[Tensor, " prompts"]
    template: Int64[Tensor, " prompts"]
    """Number of the template among all of all attributes."""
    entity: Int64[Tensor, " prompts"]
    right: Bool[Tensor, " prompts"]
    """True where the model's answer is the value."""
    value: Int64[Tensor, "entities attributes"]
    """The column of `tokens` that is right."""
    tokens: Int64[Tensor, " answers"]
    """Token ids of all answers, attribute after attribute."""
    allowed: Bool[Tensor, "attributes answers"]
    """Answers that belong to each attribute."""


def ask(model: HookedModel, facts: Facts, *, batch: int = 16, progress: bool = False) -> Questions:
    """Ask for every attribute in turn, of the entities that are still known.

    Raises:
        InputError: no entity is known.
    """
    tokenizer = TextTokenizer(model.tokenizer)
    tokens, allowed, value = _answers(tokenizer, facts)
    attributes, known = list(facts.values), torch.arange(len(facts.entities))
    asked: list[tuple[list[Prompt], Bool[Tensor, "templates entities"], Int64[Tensor, " entities"]]] = []
    for number, attribute in enumerate(tqdm(attributes, desc="ask", unit="attribute", disable=not progress)):
        texts = [
            (begin + name, end)
            for begin, end in (template.split("{}") for template in facts.templates[attribute])
            for name in _named(facts, known)
        ]
        prompts = mark(tokenizer, texts)
        told = _told(model, prompts, tokens, allowed[number], batch)
        right = told.view(-1, len(known)) == value[known, number]
        asked.append((prompts, right, known))
        known = known[right.any(0)]
    if not len(known):
        raise InputError(
            f"{model.name} knows {', '.join(attributes)} of none of {len(facts.entities)} entities: give a larger model"
        )
    return _gathered(attributes, facts, asked, known, value, tokens, allowed)


def answer_logits(
    model: HookedModel, batch: PromptBatch, tokens: Int64[Tensor, " answers"], *, grad: bool = False
) -> Float[Tensor, "batch answers"]:
    """Logits of the answers at the end of every prompt, with the edits in force, fp32 on the CPU."""
    logits = model.logits(batch.tokens, attention_mask=batch.attention, grad=grad)
    at = batch.last.to(logits.device)
    return logits[torch.arange(len(at), device=at.device), at][:, tokens.to(at.device)].float().cpu()


def _answers(tokenizer: TextTokenizer, facts: Facts) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids [answers], which attribute owns them [attributes, answers], right ones [entities, attributes]."""
    tokens: list[int] = []
    owner: list[int] = []
    columns = []
    for number, values in enumerate(facts.values.values()):
        first = [int(ids[0]) for ids in tokenizer.encode([f" {value}" for value in values])]
        mine = sorted(set(first))
        columns.append(torch.tensor([len(tokens) + mine.index(token) for token in first]))
        tokens += mine
        owner += [number] * len(mine)
    allowed = torch.tensor(owner) == torch.arange(len(facts.values))[:, None]
    return torch.tensor(tokens), allowed, torch.stack(columns, 1)


@torch.no_grad()
def _told(
    model: HookedModel, prompts: Sequence[Prompt], tokens: Tensor, allowed: Tensor, size: int
) -> Int64[Tensor, " prompts"]:
    """The column of the answer that the model gives to each prompt."""
    told = torch.zeros(len(prompts), dtype=torch.int64)
    for chosen, part in prompt_batches(model, prompts, batch=size):
        logits = answer_logits(model, part, tokens)
        told[chosen] = logits.masked_fill(~allowed, -torch.inf).argmax(1)
    return told


def _gathered(
    attributes: list[str],
    facts: Facts,
    asked: Sequence[tuple[list[Prompt], Tensor, Tensor]],
    known: Tensor,
    value: Tensor,
    tokens: Tensor,
    allowed: Tensor,
) -> Questions:
    """The questions about entities that stayed known to the end."""
    prompts, attribute, template, right = [], [], [], []
    for number, (mine, told, of) in enumerate(asked):
        kept = torch.isin(of, known).nonzero()[:, 0]
        for own, row in enumerate(told[:, kept]):
            prompts += [mine[own * len(of) + i] for i in kept.tolist()]
            attribute += [number] * len(known)
            template += [len(right)] * len(known)
            right.append(row)
    return Questions(
        attributes,
        _named(facts, known),
        prompts,
        torch.tensor(attribute),
        torch.tensor(template),
        torch.arange(len(known)).repeat(len(right)),
        torch.cat(right),
        value[known],
        tokens,
        allowed,
    )


def _named(facts: Facts, entities: Int64[Tensor, " some"]) -> list[str]:
    return [facts.entities[int(i)] for i in entities]
