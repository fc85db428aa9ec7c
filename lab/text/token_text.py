"""Token ids as text for showing one by one, also those that hold only part of a character.

The text of a token is what it adds behind a letter, so that the texts of a row join to the row's text: a token that
begins a word brings its space (SentencePiece drops it at the start of a text), and one that continues a word no sign of
that (`##` of WordPiece).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTE_OF = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + i): byte for i, byte in enumerate(_OTHERS)}
"""The alphabet in which byte-level BPE vocabularies spell bytes: printable ones as themselves, then from 256."""


def token_texts(tokenizer: Any, ids: Iterable[int]) -> dict[int, str]:
    """The text that each id adds to a row. Part of a character reads `<0xE2><0x80>`.

    Args:
        tokenizer: a `TextTokenizer`, or an object that has `decode(ids)`. `encode(text)`, if there, gives a letter to
            stand before the token, without which texts are those of the tokens alone; `convert_ids_to_tokens(ids)`
            tells the bytes of partial characters, which otherwise stay replacement characters.
    """
    letter = _letter(tokenizer := getattr(tokenizer, "tokenizer", tokenizer))
    before = tokenizer.decode(letter) if letter else ""
    texts = {}
    for token in map(int, ids):
        both = tokenizer.decode([*letter, token])
        texts[token] = both[len(before) :] if both.startswith(before) else tokenizer.decode([token])
    partial = [token for token, text in texts.items() if REPLACEMENT in text]
    if partial and hasattr(tokenizer, "convert_ids_to_tokens"):
        for token, piece in zip(partial, tokenizer.convert_ids_to_tokens(partial), strict=True):
            texts[token] = _bytes_shown(piece)
    return texts


def _letter(tokenizer: Any) -> list[int]:
    """One token that is a letter, or none."""
    try:
        ids = tokenizer.encode("a", add_special_tokens=False) if hasattr(tokenizer, "encode") else []
    except (KeyError, ValueError):  # a vocabulary of one's own may have no letters
        return []
    letter = [int(token) for token in ids][-1:]
    return letter if letter and tokenizer.decode(letter).strip() == "a" else []


def _bytes_shown(piece: str) -> str:
    if not all(character in BYTE_OF for character in piece):
        return piece
    return "".join(f"<0x{BYTE_OF[c]:02X}>" if BYTE_OF[c] > 127 else chr(BYTE_OF[c]) for c in piece)
