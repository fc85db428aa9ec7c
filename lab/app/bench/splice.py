"""`monosem bench splice`: what spliced losses cost beside plain forward passes to the logits, by size of vocabulary.

Clean, zero, mean, a dictionary and an untrained one are five variants, and a splice with no cost of its own takes five
forward passes. Contestants take turns on the same token batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ....saes.dictionary import Dictionary
from ....saes.evaluation.splicing import splice
from ....saes.registry import build_trainable
from ....saes.training.initialise import initialise
from ...errors import InputError
from ...models.hooked_model import HookedModel
from ...rng import generator
from ...table import aligned
from ...text.packing import TokenBatch
from ..options import Flat, ModelText
from .command import Bench
from .eval import forward
from .timing import interleaved

VARIANTS = 5
"""Clean, zero, mean and two dictionaries."""
WIDE_CONFIG: dict[str, Any] = {
    "hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18, "num_attention_heads": 4,
    "num_key_value_heads": 1, "head_dim": 256, "max_position_embeddings": 1024,
}  # fmt: skip
"""The shape of Gemma 3 270M, with random weights."""


@dataclass(frozen=True)
class BenchSplice(Bench):
    """Splice two dictionaries into a model, and run the model over the same tokens, in turn.

    The model is measured as it is, then a Gemma 3 of random weights at each of some sizes of vocabulary.
    """

    example = "monosem bench splice --rows 8 --rounds 1 --vocabularies 1024"

    vocabularies: tuple[int, ...] = (262_144,)
    """Sizes of vocabulary of the Gemma 3."""
    rows: int = 16
    """Rows of tokens in a batch."""
    rounds: int = 3
    """Batches; medians are compared."""
    layer: int = 12
    """Layer after which dictionaries are spliced in."""
    n_latents: int = 9216
    """Latents of each dictionary."""
    k: int = 32
    """Codes a row."""
    source: Flat[ModelText] = field(default_factory=ModelText)

    def __post_init__(self) -> None:
        if min(self.rows, self.rounds, *self.vocabularies, self.layer) < 1:
            raise InputError("rows, rounds, vocabularies and layer must be at least 1, got "
                             f"{self.rows}, {self.rounds}, {self.vocabularies}, {self.layer}")  # fmt: skip

    def race(self) -> dict[str, Any]:
        """One line for each model.

        Returns:
            JSON key `lines`; a line has `model`, `vocabulary`, seconds of `forward` and of `splice` (medians), and
            `ratio`: a splice over `VARIANTS` forward passes.
        """
        model = self.source.open_model()
        context = self.source.text.context
        lines = [self._line(model, context)]
        for size in self.vocabularies:
            lines.append(self._line(self._wide(size, model.dtype), context))
        return {"variants": VARIANTS, "tokens": self.rows * context, "lines": lines}

    def _wide(self, vocabulary: int, dtype: torch.dtype) -> HookedModel:
        """A Gemma 3 of random weights."""
        from transformers import Gemma3ForCausalLM, Gemma3TextConfig

        torch.manual_seed(0)
        module: Any = Gemma3ForCausalLM(Gemma3TextConfig(vocab_size=vocabulary, **WIDE_CONFIG))
        return HookedModel(module.to(dtype), name="gemma-3 of random weights")

    def _line(self, model: HookedModel, context: int) -> dict[str, Any]:
        vocabulary, layer = model.vocab_size or 1, min(self.layer, model.n_layers - 1)
        site, g = model.site(f"resid_post.{layer}"), generator(0, "bench splice")
        batches = [torch.randint(0, vocabulary, (self.rows, context), generator=g) for _ in range(self.rounds + 1)]
        acts = model.capture(batches[0], [site])[site].float().flatten(0, 1)
        dictionaries = {name: self._made(acts, name) for name in ("one", "other")}
        turns: dict[str, Callable[[int], object]] = {
            "forward": lambda number: forward(model, [batches[number]]),
            "splice": lambda number: splice(
                model, [_whole(batches[number])], site, dictionaries, acts.mean(0), tokens=self.rows * context
            ),
        }
        seconds = interleaved(turns, self.rounds, 1)
        ratio = seconds["splice"] / (VARIANTS * seconds["forward"])
        return {"model": model.name, "vocabulary": vocabulary, "dtype": str(model.dtype), **seconds, "ratio": ratio}

    def _made(self, acts: Tensor, name: str) -> Dictionary:
        """A dictionary with random directions."""
        found = build_trainable("topk", d_in=acts.shape[1], n_latents=self.n_latents, k=self.k)
        initialise(found, acts.cpu(), generator(0, "bench splice", name), blend=0)
        return found.to(acts.device)

    def as_text(self, result: Mapping[str, Any]) -> str:
        """A table: a line for each model."""
        rows = [["model", "vocabulary", "forward, s", "splice, s", f"splice / {VARIANTS} forwards"]]
        for line in result["lines"]:
            rows.append([line["model"], f"{line['vocabulary']:,}", f"{line['forward']:.2f}", f"{line['splice']:.2f}",
                         f"{line['ratio']:.2f}"])  # fmt: skip
        return aligned(rows)


def _whole(tokens: Tensor) -> TokenBatch:
    """Every row one document, every token but the first usable."""
    rows, length = tokens.shape
    usable = (torch.arange(length) > 0).expand(rows, length)
    documents = torch.arange(rows)[:, None].expand(rows, length)
    offsets = torch.arange(length).expand(rows, length)
    return TokenBatch(tokens, torch.ones_like(usable), usable, documents, offsets)
