"""Options that several commands share, and what they open."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, TypeVar

import tyro

from ..errors import InputError
from ..loading import load_model
from ..models import HookedModel
from ..sinks import check_sink
from ..text import Corpus, TextConfig

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


def check_loop(log_every: int, checkpoint_minutes: float, sinks: tuple[str, ...]) -> None:
    """Refuse options of the training loop that it would stumble over later.

    Raises:
        InputError: no steps between lines, no time between checkpoints, or a sink that is unknown or not installed.
    """
    if log_every < 1:
        raise InputError(f"log_every must be at least 1, got {log_every}")
    if not checkpoint_minutes > 0:
        raise InputError(f"checkpoint_minutes must be above 0, got {checkpoint_minutes:g}")
    for sink in sinks:
        check_sink(sink)
