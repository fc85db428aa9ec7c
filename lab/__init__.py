"""Models, sites, text, streams and runs: everything between a language model and what is trained on it.

Names are imported on first use, so that `import monosem.lab` stays quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lazy import lazily

if TYPE_CHECKING:
    from .consumers import Consumer
    from .errors import InputError
    from .evidence import Evidence
    from .loading import load_model
    from .loop import train
    from .models import HookedModel
    from .runs import Run
    from .sites import Site
    from .store import ActivationStore
    from .streams import ActivationStream, Batch, StreamConfig
    from .text import Corpus, TextConfig
    from .token_stream import TokenStream

_HOMES = {
    "ActivationStore": "store",
    "ActivationStream": "streams",
    "Batch": "streams",
    "Consumer": "consumers",
    "Corpus": "text",
    "Evidence": "evidence",
    "HookedModel": "models",
    "InputError": "errors",
    "Run": "runs",
    "Site": "sites",
    "StreamConfig": "streams",
    "TextConfig": "text",
    "TokenStream": "token_stream",
    "load_model": "loading",
    "train": "loop",
}

__all__ = [
    "ActivationStore",
    "ActivationStream",
    "Batch",
    "Consumer",
    "Corpus",
    "Evidence",
    "HookedModel",
    "InputError",
    "Run",
    "Site",
    "StreamConfig",
    "TextConfig",
    "TokenStream",
    "load_model",
    "train",
]

__getattr__ = lazily(__name__, _HOMES)
