"""Two models that read the same tokens, as one model with the sites of both: `a:resid_post.6`, `b:resid_post.6`.

stream = ActivationStream(ModelPair(base, tuned), corpus, ["a:resid_post.6", "b:resid_post.6"])

Row i of a batch is then the same token in both models: what a crosscoder that compares them trains on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from jaxtyping import Bool, Int
from torch import Tensor

from ..errors import InputError
from .hooked_model import Activations, HookedModel
from .sites import Site


class ModelPair:
    """Two models that read the same tokens, served to a stream as one: sites are marked `a:` and `b:`.

    Args:
        a: the model whose dtype and device tokens and rows are handed over in.
        b: one with the same tokenizer; it may be on another device.

    Raises:
        InputError: the vocabularies of the tokenizers differ, or where those are not known, their sizes.
    """

    def __init__(self, a: HookedModel, b: HookedModel) -> None:
        hashes = [_vocabulary_hash(model) for model in (a, b)]
        if None not in hashes and hashes[0] != hashes[1]:
            raise InputError(
                f"{a.name} and {b.name} have different tokenizers (vocabularies {hashes[0]} and {hashes[1]}): "
                "no token of one is a token of the other, so compare models with one tokenizer"
            )
        if a.vocab_size != b.vocab_size and None in hashes:
            raise InputError(
                f"{a.name} has {a.vocab_size} tokens and {b.name} {b.vocab_size}: compare models with one vocabulary"
            )
        self.models = {"a": a, "b": b}
        self.name = f"{a.name} | {b.name}"
        self.device, self.dtype = a.device, a.dtype

    def site(self, text: str | Site) -> Site:
        """Parse a site and check that the model it names has it.

        Raises:
            InputError: it names no model, or one that has no such site.
        """
        site = Site.parse(text)
        if not site.model:
            raise InputError(f"{site} could be of either model: write a:{site} ({self.models['a'].name}) or b:{site}")
        self.models[site.model].site(replace(site, model=""))
        return site

    def width(self, site: str | Site) -> int:
        """Size of the site's last dimension, heads flattened."""
        site = self.site(site)
        return self.models[site.model].width(replace(site, model=""))

    def capture(
        self,
        inputs: Int[Tensor, "batch tokens"],
        sites: Iterable[str | Site],
        *,
        attention_mask: Int[Tensor, "batch tokens"] | Bool[Tensor, "batch tokens"] | None = None,
    ) -> Activations:
        """Run both models, each up to the last of its sites, on the same tokens."""
        tensors: dict[Site, Tensor] = {}
        wanted = [self.site(site) for site in sites]
        for name, model in self.models.items():
            own = [replace(site, model="") for site in wanted if site.model == name]
            if own:
                mask = None if attention_mask is None else attention_mask.to(model.device)
                captured = model.capture(inputs.to(model.device), own, attention_mask=mask)
                tensors |= {replace(site, model=name): tensor for site, tensor in captured.items()}
        return Activations((site, tensors[site]) for site in wanted)

    def fingerprint(self) -> dict[str, Any]:
        """JSON values that identify both models."""
        each = {name: model.fingerprint() for name, model in self.models.items()}
        joined = "".join(fingerprint["parameters"] for fingerprint in each.values())
        return {"name": self.name, "parameters": hashlib.sha256(joined.encode()).hexdigest(), **each}

    def __repr__(self) -> str:
        return f"ModelPair(a={self.models['a']!r}, b={self.models['b']!r})"


def _vocabulary_hash(model: HookedModel) -> str | None:
    """Of every token and its id; a chat template, which a base model lacks and its tuned self has, plays no part."""
    if not hasattr(model.tokenizer, "get_vocab"):
        return None
    entries = sorted(model.tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()[:16]
