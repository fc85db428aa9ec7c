"""Prompts with one marked token, where an activation is read or changed, and texts that are read token by token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor
from tqdm import tqdm

from ..lab.errors import InputError
from ..lab.models.hooked_model import HookedModel
from ..lab.models.hooks import Hook
from ..lab.models.sites import Site
from ..lab.sequences import texts_of
from ..lab.text.tokenization import TextTokenizer


class Prompt(NamedTuple):
    """Token ids, a BOS included where the tokenizer has one, and the position of the marked token."""

    ids: tuple[int, ...]
    place: int


class PromptBatch(NamedTuple):
    """Prompts side by side, padded at their ends."""

    tokens: Int64[Tensor, "batch tokens"]
    attention: Bool[Tensor, "batch tokens"] | None
    """None where nothing is padded."""
    marked: Bool[Tensor, "batch tokens"]
    """One position a row."""
    last: Int64[Tensor, " batch"]
    """The position whose next token the prompt asks for."""


def mark(tokenizer: TextTokenizer, texts: Sequence[tuple[str, str]]) -> list[Prompt]:
    """One prompt for each pair (text up to and with what is marked, text after it); its last token is the marked one.

    The two parts are tokenized apart, so that what follows never changes the tokens of what is marked.

    Raises:
        InputError: a first part without a token.
    """
    start = () if tokenizer.bos is None else (tokenizer.bos,)
    before, after = (tokenizer.encode(part) for part in zip(*texts, strict=True)) if texts else ((), ())
    found = []
    for (text, _), first, second in zip(texts, before, after, strict=True):
        if not len(first):
            raise InputError(f"the text {text!r} has no token to mark: leave it out")
        found.append(Prompt((*start, *first.tolist(), *second.tolist()), len(start) + len(first) - 1))
    return found


def pad(prompts: Sequence[Prompt], padding: int) -> PromptBatch:
    """One batch of these prompts."""
    tokens = torch.nn.utils.rnn.pad_sequence([torch.tensor(prompt.ids) for prompt in prompts], True, padding)
    places = torch.arange(tokens.shape[1])
    lengths = torch.tensor([len(prompt.ids) for prompt in prompts])
    attention = places < lengths[:, None]
    marked = places == torch.tensor([[prompt.place] for prompt in prompts])
    return PromptBatch(tokens, None if attention.all() else attention, marked, lengths - 1)


def by_length(prompts: Sequence[Prompt], size: int) -> Iterator[list[int]]:
    """Indexes of the prompts in batches of about one length, so that little is padded."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].ids))
    yield from (order[begin : begin + size] for begin in range(0, len(order), size))


def read_prompts(
    model: HookedModel,
    sites: Sequence[Site],
    prompts: Sequence[Prompt],
    *,
    batch: int = 16,
    description: str = "read prompts",
    unit: str = "prompt",
    progress: bool = False,
    edits: Callable[[PromptBatch], Mapping[Site, Hook]] | None = None,
) -> Iterator[tuple[list[int], PromptBatch, dict[Site, Float[Tensor, "batch tokens d"]]]]:
    """Run the model over prompts, batches of about one length after another.

    Args:
        edits: from a batch to the edits in force while it runs.

    Yields:
        The numbers of the prompts of a batch, the batch, and its activations at every site, heads flattened.
    """
    padding = TextTokenizer(model.tokenizer).padding
    with tqdm(total=len(prompts), desc=description, unit=unit, disable=not progress) as bar:
        for chosen in by_length(prompts, batch):
            part = pad([prompts[i] for i in chosen], padding)
            with torch.no_grad(), model.editing(edits(part) if edits else {}):
                acts = model.capture(part.tokens, sites, attention_mask=part.attention)
            yield chosen, part, {site: acts[site].reshape(*part.tokens.shape, -1) for site in sites}
            bar.update(len(chosen))


@torch.no_grad()
def read_marked(
    model: HookedModel, site: Site, prompts: Sequence[Prompt], *, batch: int = 16, progress: bool = False
) -> Float32[Tensor, "prompts d"]:
    """Activations at the marked token of every prompt, in their order, on the CPU."""
    rows: list[Tensor] = [torch.empty(0)] * len(prompts)
    for chosen, part, acts in read_prompts(model, [site], prompts, batch=batch, progress=progress):
        at_mark = acts[site][part.marked.to(acts[site].device)].float().cpu()
        for i, row in zip(chosen, at_mark, strict=True):
            rows[i] = row
    return torch.stack(rows)


@torch.no_grad()
def read_texts(
    model: HookedModel,
    site: Site,
    texts: Sequence[str],
    *,
    tokens: int,
    norm_limit: float | None = None,
    batch: int = 16,
    progress: bool = False,
) -> tuple[Float32[Tensor, "rows d"], Int64[Tensor, " rows"]]:
    """Activations of the first `tokens` tokens of every text after a BOS, and the text of each row, on the CPU.

    Rows above the norm limit are left out, but in a text that has no others.

    Raises:
        InputError: a text without a token.
    """
    tokenizer = TextTokenizer(model.tokenizer)
    begin = 0 if tokenizer.bos is None else 1
    texts = texts_of(texts)
    prompts = [Prompt(ids[: begin + tokens], 0) for ids, _ in mark(tokenizer, [(text, "") for text in texts])]
    rows, owners = [], []
    passes = read_prompts(model, [site], prompts, batch=batch, description="read texts", unit="text", progress=progress)
    for chosen, part, captured in passes:
        acts = captured[site].float().cpu()
        places = torch.arange(part.tokens.shape[1])
        own = (places >= begin) & (places <= part.last[:, None])
        if norm_limit is not None:
            short = own & (acts.norm(dim=2) <= norm_limit)
            own = torch.where(short.any(1, keepdim=True), short, own)
        rows.append(acts[own])
        owners.append(torch.tensor(chosen)[own.nonzero()[:, 0]])
    return torch.cat(rows), torch.cat(owners)
