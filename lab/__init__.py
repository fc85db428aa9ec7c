"""Models, sites, text, streams and runs: everything between a language model and what is trained on it.

Names are imported on first use, so that `import monosem.lab` stays quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lazy import lazily

if TYPE_CHECKING:
    from .errors import InputError as InputError
    from .evidence import Evidence as Evidence
    from .models.hooked_model import HookedModel as HookedModel
    from .models.loading import load_model as load_model
    from .models.sites import Site as Site
    from .runs.consumers import Consumer as Consumer
    from .runs.loop import train as train
    from .runs.read import read as read
    from .runs.run import Run as Run
    from .streams.activation_stream import ActivationStream as ActivationStream
    from .streams.activation_stream import Batch as Batch
    from .streams.activation_stream import StreamConfig as StreamConfig
    from .streams.store import ActivationStore as ActivationStore
    from .streams.token_stream import TokenStream as TokenStream
    from .text.corpus import Corpus as Corpus
    from .text.corpus import TextConfig as TextConfig

HINTS = {
    "HookedTransformer": "load_model opens a model, and HookedModel puts hooks on a module of yours",
    "TransformerBridge": "load_model opens a model, and HookedModel takes a bridge",
    "HookedSAETransformer": "load_model opens a model, and monosem.saes.Edit writes a dictionary into it",
    "ActivationsStore": "ActivationStream reads a model's activations, ActivationStore a folder of them",
    "ActivationBuffer": "ActivationStream reads a model's activations, ActivationStore a folder of them",
    "ActivationCache": "HookedModel.capture gives activations by site",
    "LanguageModel": "load_model opens a model",
}
"""Advice for names of other libraries: the nearest thing here."""

__getattr__, __dir__ = lazily(__name__, __file__, HINTS)
