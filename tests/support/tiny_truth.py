"""A tiny model whose tokenizer knows the words of statements and of questions about them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny_models
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

TEXT = (
    "<unk> The city of is not located in the . , ? : capital Statement Is statement true false or neither Answer "
    "X Y end True United Republic Islands City New South"
)
WORDS = TEXT.split()


def write_truth_model(folder: Path) -> Path:
    """A random Llama of 3 layers and width 32; every name that is no word above is one unknown token."""
    model: Any = tiny_models.build("llama")
    vocabulary = {word: number for number, word in enumerate(["<pad>", "<s>", "</s>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder
