"""Token ids as text for showing one by one, also those that hold only part of a character."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTE_OF = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + i): byte for i, byte in enumerate(_OTHERS)}
"""The alphabet in which byte-level BPE vocabularies spell bytes: printable ones as themselves, then from 256."""


def token_texts(tokenizer: Any, ids: Iterable[int]) -> dict[int, str]:
    """The text of each id on its own. Part of a character reads `<0xE2><0x80>`.

    Args:
        tokenizer: has `decode(ids)`; `convert_ids_to_tokens(ids)`, if there, tells the bytes of partial
            characters, which otherwise stay replacement characters.
    """
    texts = {token: tokenizer.decode([token]) for token in map(int, ids)}
    partial = [token for token, text in texts.items() if REPLACEMENT in text]
    if partial and hasattr(tokenizer, "convert_ids_to_tokens"):
        for token, piece in zip(partial, tokenizer.convert_ids_to_tokens(partial), strict=True):
            texts[token] = _bytes_shown(piece)
    return texts


def _bytes_shown(piece: str) -> str:
    if not all(character in BYTE_OF for character in piece):
        return piece
    return "".join(f"<0x{BYTE_OF[c]:02X}>" if BYTE_OF[c] > 127 else chr(BYTE_OF[c]) for c in piece)
