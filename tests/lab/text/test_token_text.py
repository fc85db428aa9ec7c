"""Texts of single tokens join to the text of their row, whatever marks a vocabulary uses for words."""

from __future__ import annotations

import pytest
from monosem.lab.text.token_text import token_texts
from monosem.lab.text.tokenization import TextTokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

TEXT = "the cat likes sparse autoencoders"


def word_piece() -> Tokenizer:
    pieces = ["[UNK]", "a", "the", "cat", "likes", "sparse", "auto", "##en", "##code", "##rs", "."]
    made = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    return made


def sentence_piece() -> Tokenizer:
    pieces = ["<unk>", "▁a", "▁the", "▁cat", "▁likes", "▁sparse", "▁auto", "en", "code", "rs", "<0xC3>", "<0xA9>"]
    made = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=0, byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return made


@pytest.mark.parametrize("make", [word_piece, sentence_piece])
def test_texts_of_tokens_join_to_the_text(make):
    tokenizer = TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=make(), unk_token=make().id_to_token(0)))
    (ids,) = tokenizer.encode([TEXT])
    strings = tokenizer.strings(ids.tolist())
    assert "".join(strings).strip() == TEXT and strings[1] == " cat" and strings[-3:] == ["en", "code", "rs"]
    assert len(ids) == len(strings) == 8


def test_bytes_of_a_character_stay_visible():
    made = sentence_piece()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")
    assert list(token_texts(tokenizer, [10, 11]).values()) == ["<0xC3>", "<0xA9>"]
