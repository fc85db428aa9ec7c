"""The few operations of a tokenizer that a corpus needs: ids of texts, special ids, text of ids, chats."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ..errors import InputError
from ..sequences import texts_of
from .documents import Conversation
from .token_text import token_texts


class TextTokenizer:
    """A tokenizer as a corpus uses it: without adding special tokens, many texts at a time.

    Args:
        tokenizer: a Hugging Face tokenizer, or an object with `bos_token_id`, `all_special_ids`, `decode` and
            either `__call__(texts, add_special_tokens=False)["input_ids"]` or
            `encode(text, add_special_tokens=False)`.

    Raises:
        InputError: the object lacks one of these.
    """

    def __init__(self, tokenizer: Any) -> None:
        missing = [name for name in ("bos_token_id", "all_special_ids", "decode") if not hasattr(tokenizer, name)]
        self._takes_lists = callable(tokenizer)
        if not (self._takes_lists or hasattr(tokenizer, "encode")):
            missing.append("__call__ or encode")
        if missing:
            raise InputError(
                f"{type(tokenizer).__name__} is no tokenizer for a corpus, it lacks {', '.join(missing)}: "
                "give a Hugging Face one (PreTrainedTokenizerFast(tokenizer_object=...) wraps a bare one)"
            )
        self._tokenizer: Any = tokenizer

    @property
    def tokenizer(self) -> Any:
        """The tokenizer as it was given."""
        return self._tokenizer

    @property
    def bos(self) -> int | None:
        """The id that begins a row, if the tokenizer has one."""
        return self._tokenizer.bos_token_id

    @property
    def separator(self) -> int | None:
        """The id that ends a document in a packed row: EOS, or BOS where there is no EOS."""
        eos = getattr(self._tokenizer, "eos_token_id", None)
        return self.bos if eos is None else eos

    @property
    def padding(self) -> int:
        """The id written into masked cells."""
        pad = getattr(self._tokenizer, "pad_token_id", None)
        return next((i for i in (pad, self.separator) if i is not None), 0)

    @cached_property
    def special_ids(self) -> np.ndarray:
        """Sorted ids of all special tokens, `<|im_start|>` as well as the likes of `<file_sep>`."""
        added = getattr(self._tokenizer, "added_tokens_decoder", {})
        ids = {i for i, token in added.items() if getattr(token, "special", False)}
        ids.update(self._tokenizer.all_special_ids, (i for i in (self.bos, self.separator) if i is not None))
        return np.array(sorted(ids), dtype=np.int64)

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of each text (int64), with no special token added and nothing cut off.

        Raises:
            InputError: a value is no text, or holds half a character; names its row, from 0.
        """
        texts = texts_of(texts)
        if hasattr(self._tokenizer, "backend_tokenizer"):
            rows = self._tokenizer(
                texts,
                add_special_tokens=False,
                return_attention_mask=False,
                truncation=False,
                verbose=False,
            )["input_ids"]
        elif self._takes_lists:
            rows = self._tokenizer(texts, add_special_tokens=False)["input_ids"]
        else:
            rows = [self._tokenizer.encode(text, add_special_tokens=False) for text in texts]
        return [np.asarray(row, dtype=np.int64) for row in rows]

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """The text of `ids`; special tokens are part of it unless they are to be skipped."""
        special = set(self.special_ids.tolist()) if skip_special else ()
        return self._tokenizer.decode([i for i in map(int, ids) if i not in special])

    def texts(self, ids: Iterable[int]) -> dict[int, str]:
        """The text that each id adds to a row, by id; see `token_texts`."""
        return token_texts(self._tokenizer, ids)

    def strings(self, ids: Sequence[int]) -> list[str]:
        """The text that each id adds to a row, for showing tokens one by one; the strings join to the row's text."""
        texts = self.texts(set(map(int, ids)))
        return [texts[int(token)] for token in ids]

    def render(self, messages: Conversation, where: str, *, asks: bool = False) -> str:
        """A conversation through the chat template, as text; `asks` opens the assistant's next turn.

        Raises:
            InputError: the tokenizer has no chat template, or its template refuses the conversation; names `where`.
        """
        if not getattr(self._tokenizer, "chat_template", None):
            raise InputError(
                f"{where} is a conversation, but {self.label} has no chat template: give an instruct model's "
                "tokenizer or set tokenizer.chat_template"
            )
        from jinja2 import TemplateError

        try:
            return self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=asks)
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            roles = ", ".join(str(message.get("role")) for message in messages[:8]) + ", ..." * (len(messages) > 8)
            raise InputError(
                f"{where} does not fit the chat template of {self.label} ({reason}): its roles are {roles}; change "
                "them or leave the conversation out"
            ) from error

    @property
    def label(self) -> str:
        """A short name for messages and tables."""
        return getattr(self._tokenizer, "name_or_path", "") or type(self._tokenizer).__name__

    def fingerprint(self) -> dict[str, Any]:
        """Name, class and a hash over vocabulary, merges, special tokens and chat template."""
        return {"name": self.label, "class": type(self._tokenizer).__name__, "hash": self._hash}

    @cached_property
    def _hash(self) -> str:
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is not None:
            rules = backend.to_str()  # 40 ms for 49,152 tokens
            rules = rules[rules.index('"added_tokens"') :]  # before it: truncation and padding of the last call
        else:
            rules = sorted(getattr(self._tokenizer, "get_vocab", dict)().items())
        template = getattr(self._tokenizer, "chat_template", None)
        parts = [rules, self.special_ids.tolist(), template]
        return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()
