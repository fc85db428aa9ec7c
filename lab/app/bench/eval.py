"""`monosem bench eval`: the core suite beside plain forward passes over as many tokens, in one process.

Reconstruction needs activations alone, so its passes end at the site; spliced losses need logits and are measured on
fewer tokens. So the suite is raced against two things: `forward`, the whole model over all tokens, and `as_far`, passes
that end at the site over all tokens and at the logits over the tokens of the losses.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....saes.dictionary import Dictionary
from ....saes.evaluation.evaluate import EvaluationConfig, evaluate
from ....saes.place import Place, Port
from ....saes.registry import build_trainable
from ....saes.training.initialise import initialise
from ...errors import InputError
from ...models.hooked_model import HookedModel
from ...rng import generator
from ...runs.first_rows import FirstRows
from ...runs.read import read
from ...streams.token_stream import TokenStream
from ..options import Flat, ModelText
from ..used_dictionaries import UsedDictionaries
from .command import Bench
from .timing import interleaved

ROWS = 4096
"""Activations that a dictionary made for the race starts from."""


@dataclass(frozen=True)
class BenchEval(Bench):
    """Evaluate a dictionary and run the unhooked model over the same number of tokens, in turn.

    Once to its logits for all tokens, and once only as far as the evaluation has to read.
    """

    example = "monosem bench eval --tokens 2048"

    dictionary: Path | None = None
    """Folder of a dictionary or run; by default one with random directions at `site`, which costs the same."""
    site: str = "resid_post.12"
    """Where a dictionary is made for, if none is given."""
    n_latents: int = 9216
    """Its latents."""
    k: int = 32
    """Its codes a row."""
    rounds: int = 1
    """Evaluations, and forward passes over all the tokens; medians are compared."""
    source: Flat[ModelText] = field(default_factory=ModelText)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    use: Flat[UsedDictionaries] = field(default_factory=UsedDictionaries)

    def race(self) -> dict[str, Any]:
        """JSON keys `seconds` and `cpu_seconds` by name, and `ratio` of the evaluation to each forward in both.

        `tokens`, `loss_tokens` and `layers` say how many tokens each kind of pass read, and through how many layers.
        """
        if self.rounds < 1:
            raise InputError(f"rounds must be at least 1, got {self.rounds}")
        given = [] if self.dictionary is None else [self.use.read(self.dictionary)[1]]
        model = self.use.open_model(self.source, given)
        dictionary = given[0] if given else self._made(model)
        corpus = self.source.open_corpus(model, split="heldout")
        batches = self._tokens(model)
        sites = [str(site) for site in dictionary.place.sites]
        losses = first_tokens(batches, self.evaluation.ce_tokens)
        used: dict[str, float] = {}
        turns: dict[str, Callable[[int], object]] = {
            "eval": lambda number: evaluate(model, corpus, dictionary, self.evaluation, progress=False),
            "forward": lambda number: forward(model, batches),
            "as_far": lambda number: (capture(model, batches, sites), forward(model, losses)),
        }
        seconds = interleaved({name: _counted(used, name, call) for name, call in turns.items()}, self.rounds, 0)
        cpu = {name: value / self.rounds for name, value in used.items()}
        return {
            "model": model.name,
            "dictionary": repr(dictionary),
            "tokens": sum(batch.numel() for batch in batches),
            "loss_tokens": sum(batch.numel() for batch in losses),
            "layers": {"sites": sites, "model": model.n_layers},
            "seconds": seconds,
            "cpu_seconds": cpu,
            "ratio": {
                kind: {name: spent["eval"] / spent[name] for name in ("forward", "as_far")}
                for kind, spent in (("seconds", seconds), ("cpu_seconds", cpu))
            },
        }

    def _made(self, model: HookedModel) -> Dictionary:
        site = model.site(self.site)
        first = FirstRows(site, ROWS, whole=True)
        read(TokenStream.reading(model, self.source.open_corpus(model, split="train"), site), first, description="rows")
        rows = first.acts.float().cpu()
        norms = rows.norm(dim=1)
        limit = 10 * float(norms.median())
        found = build_trainable("topk", d_in=rows.shape[1], n_latents=self.n_latents, k=self.k)
        initialise(found, rows[norms <= limit], generator(0, "bench eval"), blend=0)
        found.place = Place((Port(site, norm_limit=limit),))
        return found.to(model.device)

    def _tokens(self, model: HookedModel) -> list[Tensor]:
        """Token batches of the held-out text, about as many tokens as the evaluation measures."""
        found, count = [], 0  # a bare loop: the plain forward pass that these go through is what is raced against
        for batch, _ in self.source.open_corpus(model, split="heldout").iterate():
            found.append(batch.tokens)
            count += batch.tokens.numel()
            if count >= self.evaluation.tokens:
                return found
        raise InputError(f"{self.source.corpus} ends after {count} tokens: give fewer with --tokens")


def forward(model: HookedModel, batches: list[Tensor]) -> None:
    """The unhooked model over token batches, to its logits."""
    with torch.no_grad():
        for tokens in batches:
            model.module(input_ids=tokens.to(model.device), use_cache=False)


def capture(model: HookedModel, batches: list[Tensor], sites: list[str]) -> None:
    """The model over token batches, as far as the last of the sites."""
    with torch.no_grad():
        for tokens in batches:
            model.capture(tokens.to(model.device), sites)


def first_tokens(batches: list[Tensor], count: int) -> list[Tensor]:
    """The first batches, until they hold `count` tokens."""
    ends = torch.tensor([batch.numel() for batch in batches]).cumsum(0)
    return batches[: int((ends < count).sum()) + 1]


def _counted(used: dict[str, float], name: str, call: Callable[[int], object]) -> Callable[[int], object]:
    """`call`, with the processor seconds of all threads added to `used`."""

    def counted(number: int) -> object:
        start = time.process_time()
        done = call(number)
        used[name] = used.get(name, 0.0) + time.process_time() - start
        return done

    return counted
