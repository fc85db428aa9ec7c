"""Options that several commands share, and what they open."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, TypeVar

import tyro

from ..models.hooked_model import HookedModel
from ..models.loading import load_model
from ..text.corpus import Corpus, TextConfig

T = TypeVar("T")
Flat = Annotated[T, tyro.conf.arg(name="")]
"""A group of options whose flags carry no prefix."""


@dataclass(frozen=True)
class ModelText:
    """The model and the text it reads."""

    model: str = "smollm2-135m"
    """Registry name, hub name, folder with a checkpoint, or .gguf file."""
    corpus: str = "docs:"
    """`docs:` (prose of the installed Python packages), `text:PATH`, `jsonl:PATH[#field]` or
    `hf:NAME[:config][:split][#field]`."""
    dtype: str | None = None
    """bf16, fp16 or fp32; by default bf16 where the hardware multiplies it."""
    device: str | None = None
    """cpu, cuda, cuda:1, ...; by default a GPU if there is one."""
    text: TextConfig = field(default_factory=TextConfig)
    """How documents are cut into rows."""

    def open_model(self) -> HookedModel:
        """Load the model."""
        return load_model(self.model, dtype=self.dtype, device=self.device)

    def open_corpus(self, model: HookedModel, **fields: Any) -> Corpus:
        """The corpus through the model's tokenizer; `fields` override the text options."""
        return Corpus(self.corpus, model.tokenizer, replace(self.text, **fields))
