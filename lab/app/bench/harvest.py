"""`monosem bench harvest`: capturing one site beside a plain truncated forward and a TransformerBridge."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...errors import InputError
from ...models.hooked_model import HookedModel
from ...models.sites import Site
from ..options import Flat, ModelText
from .command import Bench
from .timing import interleaved, named

Forward = Callable[[Tensor], object]


def plain(model: HookedModel, site: Site) -> Forward:
    """The unhooked base model cut after the site's layer: the least a capture can cost."""
    base: Any = copy.copy(model.module.base_model)
    base._modules = dict(base._modules)
    layers = next((name for name in ("layers", "h") if name in base._modules), None)
    if layers is None or site.layer is None:
        raise InputError(f"the plain forward needs a decoder with a list of layers, and {model.name} has none")
    base._modules[layers] = torch.nn.ModuleList(list(base._modules[layers])[: site.layer + 1])

    def forward(tokens: Tensor) -> object:
        with torch.no_grad():
            return base(input_ids=tokens, use_cache=False)

    return forward


def transformer_bridge(model: HookedModel, site: Site) -> Forward:
    """TransformerLens' bridge, stopped after the site's layer, caching only the site."""
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(
        model.name, hf_model=copy.deepcopy(model.module), tokenizer=model.tokenizer, device=str(model.device)
    )
    name = site.to_transformer_lens()
    layer = site.layer

    def forward(tokens: Tensor) -> object:
        with torch.no_grad():
            _, cache = bridge.run_with_cache(tokens, names_filter=[name], stop_at_layer=(layer or 0) + 1)
        return cache[name]

    return forward


PEERS: dict[str, Callable[[HookedModel, Site], Forward]] = {"plain": plain, "transformer-bridge": transformer_bridge}


@dataclass(frozen=True)
class BenchHarvest(Bench):
    """Capture one site at several contexts, the same tokens for everyone, in turn."""

    example = "monosem bench harvest --against plain --contexts 128"

    against: str = "transformer-bridge,plain"
    """Peers, comma-separated."""
    site: str = "resid_post.12"
    """Site to capture."""
    contexts: tuple[int, ...] = (128, 512, 1024)
    """Tokens a row."""
    tokens: int = 2048
    """Tokens a forward pass."""
    rounds: int = 7
    """Timed passes of each."""
    source: Flat[ModelText] = field(default_factory=ModelText)

    def race(self) -> dict[str, Any]:
        """Race; JSON keys tokens_per_second[context][name] and ratio[context][peer]."""
        peers = named(self.against, PEERS)
        model = self.source.open_model()
        site = model.site(self.site)
        forwards: dict[str, Forward] = {"monosem": lambda tokens: model.capture(tokens, [site])}
        for name in peers:
            forwards[name] = PEERS[name](model, site)
        result: dict[str, Any] = {"site": str(site), "dtype": str(model.dtype).removeprefix("torch."),
                                  "tokens_per_second": {}, "ratio": {}, "largest_difference": {}}  # fmt: skip
        for context in self.contexts:
            rows = max(1, self.tokens // context)
            batches = self._tokens(model, context, rows, self.rounds + 1)
            result["largest_difference"][str(context)] = self._check(forwards, batches[0], site)
            turns = {n: lambda number, f=forward, given=batches: f(given[number]) for n, forward in forwards.items()}
            seconds = interleaved(turns, self.rounds, 1)
            rates = {name: rows * context / value for name, value in seconds.items()}
            result["tokens_per_second"][str(context)] = rates
            result["ratio"][str(context)] = {name: rates["monosem"] / rates[name] for name in peers}
        return result

    # bare loops: a forward pass is timed, and `read` would add its own work to it
    def _tokens(self, model: HookedModel, context: int, rows: int, batches: int) -> list[Tensor]:
        corpus = self.source.open_corpus(model, context=context, batch_rows=rows)
        found = [batch.tokens.to(model.device) for batch, _ in zip(corpus, range(batches), strict=False)]
        if len(found) < batches:
            raise InputError(f"{self.source.corpus} holds fewer than {batches} batches of {rows} x {context} tokens")
        return found

    def _check(self, forwards: dict[str, Forward], tokens: Tensor, site: Site) -> dict[str, float]:
        """Relative difference of the bridge's activations to ours: both measure the same thing."""
        ours: Any = forwards["monosem"](tokens)
        mine = ours[site]
        return {
            name: float((forward(tokens) - mine).norm() / mine.norm())  # type: ignore[operator]
            for name, forward in forwards.items()
            if name == "transformer-bridge"
        }
