"""Activations of prompts at their marked token, and of texts token by token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from ..lab.models.hooked_model import HookedModel
from ..lab.models.sites import Site
from ..lab.runs.prompts import Prompt, mark, read_prompts
from ..lab.sequences import texts_of
from ..lab.text.tokenization import TextTokenizer


@torch.no_grad()
def read_marked(
    model: HookedModel, site: Site, prompts: Sequence[Prompt], *, batch: int = 16, progress: bool = False
) -> Float32[Tensor, "prompts d"]:
    """Activations at the marked token of every prompt, in their order, on the CPU."""
    rows: list[Tensor] = [torch.empty(0)] * len(prompts)
    for part in read_prompts(model, [site], prompts, batch=batch, progress=progress):
        acts = part.acts[site]
        for i, row in zip(part.chosen, acts[part.batch.marked.to(acts.device)].float().cpu(), strict=True):
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
    prompts = [Prompt(ids[: begin + tokens]) for ids, _ in mark(tokenizer, [(text, "") for text in texts])]
    rows, owners = [], []
    for part in read_prompts(
        model, [site], prompts, batch=batch, description="read texts", unit="text", progress=progress
    ):
        acts, own = part.acts[site].float().cpu(), part.batch.own(begin)
        if norm_limit is not None:
            short = own & (acts.norm(dim=2) <= norm_limit)
            own = torch.where(short.any(1, keepdim=True), short, own)
        rows.append(acts[own])
        owners.append(torch.tensor(part.chosen)[own.nonzero()[:, 0]])
    return torch.cat(rows), torch.cat(owners)
