"""Reading ends where it was told to, and a damaged archive ends it in one sentence."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import tiny_commands
from monosem.lab.errors import InputError
from monosem.lab.text.corpus import Corpus
from monosem.lab.text.sources import open_source
from transformers import AutoTokenizer


def test_a_bad_row_right_after_the_limit_does_not_matter(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_commands.write_model(tmp_path / "model"))
    corpus = Corpus(["the old boat", "a wave", None], tokenizer, pack=False, batch_rows=1, limit=2)
    corpus.check()
    batches = list(corpus.iterate(epochs=2))
    assert len(batches) == 4
    assert len([*corpus.iterate(batches[0][1], epochs=2)]) == 3


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_damaged_archive_of_a_data_set_is_one_sentence(tmp_path: Path, damage: str) -> None:
    packed = bytearray(gzip.compress(b'{"text": "one"}\n' * 1000))
    packed = packed[: len(packed) // 2] if damage == "cut" else packed[:10] + b"\xff" * 20 + packed[30:]
    (folder := tmp_path / "set").mkdir()
    (folder / "train.jsonl.gz").write_bytes(packed)
    with pytest.raises(InputError, match=r"hf:\S+set"):
        list(open_source(f"hf:{folder}").read())
