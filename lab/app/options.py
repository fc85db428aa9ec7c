"""Options that several commands share, and what they open."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Self, TypeVar

import tyro

from ..errors import unknown
from ..models.hooked_model import HookedModel
from ..models.loading import ATTENTION, DTYPES, device_named, load_model, outline
from ..text.corpus import Corpus, TextConfig
from .checks import check_text, check_trained_on

log = logging.getLogger(__name__)

T = TypeVar("T")
Flat = Annotated[T, tyro.conf.arg(name="")]
"""A group of options whose flags carry no prefix."""


@dataclass(frozen=True)
class ModelOptions:
    """The model, and how it is loaded."""

    model: str = "smollm2-135m"
    """Registry name, hub name, short name (`gpt2-small`), folder with a checkpoint, or .gguf file; by default the
    model that a dictionary was trained on."""
    dtype: str | None = None
    """bf16, fp16 or fp32; by default bf16 where the hardware multiplies it."""
    device: str | None = None
    """cpu, cuda, cuda:1, ...; by default a GPU if there is one."""

    attention: str | None = field(default=None, kw_only=True)
    """sdpa, eager, flash_attention_2, flash_attention_3 or flex_attention; by default SDPA where the model has it."""

    def open_model(self) -> HookedModel:
        """Load the model."""
        return load_model(self.model, dtype=self.dtype, device=self.device, attn=self.attention)

    def of(self, dictionaries: Sequence[Any]) -> Self:
        """The same options with the model that all dictionaries were trained on, unless another model is asked for."""
        names = {dictionary.provenance.model.get("name") for dictionary in dictionaries}
        if len(names) != 1 or names <= {None, self.model} or self.model != ModelOptions.model:
            return self
        (name,) = names
        log.info("%s is loaded, on which the dictionary was trained", name)
        return replace(self, model=name)

    def check(self, sites: Sequence[Any] = (), dictionaries: Sequence[Any] = ()) -> HookedModel:
        """Refuse what can be refused before the model is loaded.

        Args:
            sites: names that the model must have; patterns are left to the caller.
            dictionaries: dictionaries that are to be used on it.

        Returns:
            The outline of the model: its sites and widths, without its weights.

        Raises:
            InputError: an unknown model, dtype, device or site, or the dictionary of another model.
        """
        device_named(self.device)
        if self.dtype is not None and self.dtype not in DTYPES:
            raise unknown("dtype", self.dtype, DTYPES)
        if self.attention is not None and self.attention not in ATTENTION:
            raise unknown("attention implementation", self.attention, ATTENTION)
        model = outline(self.model)
        for dictionary in dictionaries:
            check_trained_on(dictionary.provenance.model, model)
        for site in sites:
            if not any(sign in str(site) for sign in "*?["):
                model.site(site)
        return model


@dataclass(frozen=True)
class ModelText(ModelOptions):
    """The model and the text it reads."""

    corpus: str = "docs:"
    """`docs:` (prose of the installed Python packages), `text:PATH`, `jsonl:PATH[#field]` or
    `hf:NAME[:config][:split][#field]`."""
    text: TextConfig = field(default_factory=TextConfig)
    """How documents are cut into rows."""

    def check(self, sites: Sequence[Any] = (), dictionaries: Sequence[Any] = ()) -> HookedModel:
        """Refuse what can be refused before the model is loaded: as `ModelOptions.check`, and the text.

        Raises:
            InputError: as there, or a text source that is unknown, missing, empty or without the field.
        """
        check_text(self.corpus)
        return super().check(sites, dictionaries)

    def open_corpus(self, model: HookedModel, **fields: Any) -> Corpus:
        """The corpus through the model's tokenizer; `fields` override the text options."""
        return Corpus(self.corpus, model.tokenizer, replace(self.text, **fields))
