"""`read_prompts`: activations of a handful of prompts, in padded batches with a bar; a stream or corpus is for `read`.

    for part in read_prompts(model, ["resid_post.12"], prompts, batch=16, progress=True):
        part.chosen                 # indexes of these prompts
        part.acts[site]             # [batch, tokens, width]

Every prompt that goes through `capture` outside a stream goes through here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from tqdm import tqdm

from ..errors import InputError
from ..models.hooked_model import HookedModel
from ..models.hooks import Hook
from ..models.sites import Site
from ..text.tokenization import TextTokenizer


class Prompt(NamedTuple):
    """Token ids, a BOS included where the tokenizer has one, and the position of the marked token."""

    ids: tuple[int, ...]
    place: int = 0


class PromptBatch(NamedTuple):
    """Prompts side by side, padded at their ends."""

    tokens: Int64[Tensor, "batch tokens"]
    attention: Bool[Tensor, "batch tokens"] | None
    """None where nothing is padded."""
    marked: Bool[Tensor, "batch tokens"]
    """One position a row."""
    last: Int64[Tensor, " batch"]
    """The position whose next token the prompt asks for."""

    def own(self, begin: int) -> Bool[Tensor, "batch tokens"]:
        """True at the tokens of every prompt from position `begin` on, padding left out."""
        positions = torch.arange(self.tokens.shape[1])
        return (positions >= begin) & (positions <= self.last[:, None])


class PromptActivations(NamedTuple):
    """Activations of one batch of prompts."""

    chosen: list[int]
    """Index of every prompt of the batch."""
    batch: PromptBatch
    acts: dict[Site, Float[Tensor, "batch tokens width"]]
    """In the model's dtype and on its device, heads flattened."""

    def at_last(self, site: Site) -> Float[Tensor, "batch width"]:
        """Activations at the last token of every prompt."""
        acts = self.acts[site]
        last = self.batch.last.to(acts.device)
        return acts[torch.arange(len(last), device=last.device), last]


def mark(tokenizer: TextTokenizer, texts: Sequence[tuple[str, str]]) -> list[Prompt]:
    """One prompt for each pair (text up to and with the marked token, text after it).

    The two parts are tokenized apart, so that what follows never changes the tokens of what is marked.

    Raises:
        InputError: a first part without a token.
    """
    start = () if tokenizer.bos is None else (tokenizer.bos,)
    before, after = (tokenizer.encode(part) for part in zip(*texts, strict=True)) if texts else ((), ())
    prompts = []
    for (text, _), first, second in zip(texts, before, after, strict=True):
        if not len(first):
            raise InputError(f"the text {text!r} has no token to mark: leave it out")
        prompts.append(Prompt((*start, *first.tolist(), *second.tolist()), len(start) + len(first) - 1))
    return prompts


def pad(prompts: Sequence[Prompt], padding: int) -> PromptBatch:
    """One batch of these prompts."""
    tokens = torch.nn.utils.rnn.pad_sequence([torch.tensor(prompt.ids) for prompt in prompts], True, padding)
    places = torch.arange(tokens.shape[1])
    lengths = torch.tensor([len(prompt.ids) for prompt in prompts])
    attention = places < lengths[:, None]
    marked = places == torch.tensor([[prompt.place] for prompt in prompts])
    return PromptBatch(tokens, None if attention.all() else attention, marked, lengths - 1)


def prompt_batches(
    model: HookedModel,
    prompts: Sequence[Prompt],
    *,
    batch: int,
    by_length: bool = True,
    description: str = "read prompts",
    unit: str = "prompt",
    progress: bool = False,
) -> Iterator[tuple[list[int], PromptBatch]]:
    """Indexes of some prompts and these prompts padded, until all have passed.

    Args:
        batch: prompts a batch.
        by_length: batches hold prompts of about one length, so that little is padded; False keeps their order.
        description: names the bar, which counts in `unit`.
    """
    padding = 0 if model.tokenizer is None else TextTokenizer(model.tokenizer).padding
    order = list(range(len(prompts)))
    if by_length:
        order.sort(key=lambda i: len(prompts[i].ids))
    with tqdm(total=len(prompts), desc=description, unit=unit, disable=not progress) as bar:
        for begin in range(0, len(prompts), batch):
            chosen = order[begin : begin + batch]
            yield chosen, pad([prompts[i] for i in chosen], padding)
            bar.update(len(chosen))


def read_prompts(
    model: HookedModel,
    sites: Sequence[Site],
    prompts: Sequence[Prompt],
    *,
    batch: int,
    by_length: bool = True,
    edits: Callable[[PromptBatch], Mapping[Site, Hook]] | None = None,
    description: str = "read prompts",
    unit: str = "prompt",
    progress: bool = False,
) -> Iterator[PromptActivations]:
    """Activations of some prompts at a time, until all have been read; the model stops at its last site.

    Args:
        batch: prompts a forward pass.
        by_length: as for `prompt_batches`.
        edits: changes to make at which sites, given a batch.
        description: names the bar, which counts in `unit`.

    Raises:
        InputError: a site the model has not.
    """
    for chosen, part in prompt_batches(
        model, prompts, batch=batch, by_length=by_length, description=description, unit=unit, progress=progress
    ):
        with model.editing(edits(part) if edits else {}):
            captured = model.capture(part.tokens, sites, attention_mask=part.attention)
        yield PromptActivations(chosen, part, {site: captured[site].flatten(2) for site in sites})
