"""Lone state dicts of four releases, whose files do not tell what they are: read by the names of `released` only.

Qwen Scope        TopK, not centred; k is in the repository's name
Goodfire          ReLU, not centred
DeepSeek R1       ReLU, not centred (qresearch)
GPT-2 attention   ReLU, centred, on z (Kissane et al. 2024)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ...lab.errors import InputError
from ..dictionary import Provenance
from .losses import Losses
from .portable import IMPORTED, Portable
from .table import Key, Raw, dtypes, take
from .untrusted import read_pt

BIASES = {"b_enc": Key("b_enc", "n"), "b_dec": Key("b_dec", "d")}


class StateDict(NamedTuple):
    """One release's tensors, and what they are."""

    name: str
    architecture: str
    table: Mapping[str, Key]
    centred: bool = False

    def load(self, path: Path, config: Mapping[str, Any]) -> Raw:
        """Read the torch file, without unpickling; `config` is what the file does not say.

        Raises:
            InputError: it is damaged, needs unpickling, or holds no tensors.
        """
        state = read_pt(path)
        if odd := sorted(str(name) for name, value in state.items() if not isinstance(value, Tensor)):
            raise InputError(f"{path} is no state dict of {self.name}: {', '.join(odd)} hold no tensors")
        return Raw(path, state, dict(config))

    def parse(self, raw: Raw, losses: Losses) -> Portable:
        """In our terms; the config's entries are fields."""
        tensors = take(raw, self.table, losses)
        kept = {"format": self.name, "dtypes": dtypes(raw)}
        fields = {**raw.config, "centre_input": self.centred}
        return Portable(self.architecture, tensors, fields, Provenance(training={IMPORTED: kept}))


def _linear(suffix: str = "") -> dict[str, Key]:
    encoder, decoder = f"encoder{suffix}", f"decoder{suffix}"
    return {f"{encoder}.weight": Key("W_enc", "nd"), f"{encoder}.bias": Key("b_enc", "n"),
            f"{decoder}.weight": Key("W_dec", "dn"), f"{decoder}.bias": Key("b_dec", "d")}  # fmt: skip


QWEN = StateDict("qwen-scope", "topk", {"W_enc": Key("W_enc", "nd"), "W_dec": Key("W_dec", "dn"), **BIASES})
GOODFIRE = StateDict("goodfire", "relu", _linear("_linear"))
DEEPSEEK = StateDict("deepseek-r1", "relu", _linear())
ATTENTION = StateDict(
    "gpt2-attention", "relu", {"W_enc": Key("W_enc", "dn"), "W_dec": Key("W_dec", "nd"), **BIASES}, centred=True
)
