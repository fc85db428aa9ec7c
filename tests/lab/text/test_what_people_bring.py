"""Texts and conversations as people have them: parts are joined, and the rest is one error that names the row."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny_commands
from monosem.lab.errors import InputError
from monosem.lab.text.corpus import Corpus
from monosem.lab.text.documents import content_of
from monosem.lab.text.sources import open_source
from monosem.lab.text.tokenization import TextTokenizer
from transformers import AutoTokenizer

PLAIN = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} </s>{% endfor %}"
"""Writes a list of parts as the list's text."""
STRICT = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ m['role'] + ' ' + m['content'] }} </s>{% endfor %}"
)
"""Refuses systems and two turns of one side, as Gemma's does, and adds content to text."""
TEMPLATES = {"plain": PLAIN, "strict": STRICT}
USER, ASSISTANT = {"role": "user", "content": "the boat"}, {"role": "assistant", "content": "a gull"}
FINE = [USER, ASSISTANT]


def part(text: Any, kind: str = "text") -> dict[str, Any]:
    return {"type": kind, kind: text}


@pytest.fixture(scope="module", params=TEMPLATES)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    found = AutoTokenizer.from_pretrained(tiny_commands.write_model(tmp_path_factory.mktemp("model")))
    found.chat_template = TEMPLATES[request.param]
    return found


JOINED = {
    "one part": [{"role": "user", "content": [part("the boat")]}, ASSISTANT],
    "two parts": [{"role": "user", "content": [part("the "), part("boat")]}, ASSISTANT],
    "plain strings": [{"role": "user", "content": ["the ", "boat"]}, ASSISTANT],
    "input and output text": [{"role": "user", "content": [{"type": "input_text", "text": "the boat"}]},
                              {"role": "assistant", "content": [{"type": "output_text", "text": "a gull"}]}],
    "an array from parquet": np.array([USER, {"role": "assistant", "content": np.array([part("a gull")])}]),
    "a tuple": (USER, ASSISTANT),
}  # fmt: skip


@pytest.mark.parametrize("form", JOINED)
def test_parts_of_a_message_are_its_text(form: str, tokenizer: Any) -> None:
    expected = next(Corpus([FINE], tokenizer, context=12).batches()).tokens.tolist()
    assert next(Corpus([JOINED[form]], tokenizer, context=12).batches()).tokens.tolist() == expected


def test_a_call_of_a_tool_needs_no_content() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    assert content_of([USER, call], None, "here")[1] == {**call, "content": ""}


REFUSED: dict[str, tuple[Any, str]] = {
    "an image": ([{"role": "user", "content": [part("see"), part("x.png", "image_url")]}],
                 "part 1 of message 0 of .* is of type 'image_url'"),
    "a part without text": ([{"role": "user", "content": [part(None)]}], "part 0 of message 0 of .* holds None"),
    "null content": ([USER, {"role": "assistant", "content": None}], "message 1 of .* has no content"),
    "missing content": ([USER, {"role": "assistant", "content": float("nan")}], "message 1 of .* has no content"),
    "a number": ([{"role": "user", "content": 3}], "message 0 of .* has content of type int"),
    "no role": ([{"role": None, "content": "x"}], "message 0 of .* has the role None"),
    "half a character": ([{"role": "user", "content": "boat \ud83d"}], "message 0 of .* half a character"),
    "half a character in a part": ([{"role": "user", "content": [part("\ud83d")]}], "message 0 of .* half a char"),
    "half a character in a text": ("boat \ud83d", "half a character .* at 5"),
    "a missing text": (None, "is missing"),
    "other keys": ([{"from": "human", "value": "x"}], "message 0 of .* is not a mapping with 'role' and 'content'"),
}  # fmt: skip


def as_rows(row: Any, _: Path) -> Any:
    return [FINE] * 40 + [row]


def as_file(row: Any, folder: Path) -> Any:
    key = "text" if isinstance(row, str) or row is None else "messages"
    lines = [json.dumps({"messages": FINE})] * 40 + [json.dumps({key: row})]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return f"jsonl:{folder}/rows.jsonl"


@pytest.mark.parametrize("form", REFUSED)
@pytest.mark.parametrize(("given", "row"), [(as_rows, "document 40"), (as_file, "line 41")])
def test_what_is_no_conversation_is_refused_before_anything_is_read(
    form: str, given: Callable[[Any, Path], Any], row: str, tmp_path: Path, tokenizer: Any
) -> None:
    content, message = REFUSED[form]
    corpus = Corpus(given(content, tmp_path), tokenizer, context=12)
    with pytest.raises(InputError, match=message) as refused:
        corpus.fingerprint()  # what a run begins with
    assert row in str(refused.value)


@pytest.mark.parametrize("roles", [("system", "user"), ("user", "user"), ("assistant",)])
@pytest.mark.parametrize(("given", "row"), [(as_rows, "document 40"), (as_file, "rows.jsonl:41")])
def test_roles_that_a_template_refuses_are_named_with_the_row_before_anything_is_read(
    roles: tuple[str, ...], given: Callable[[Any, Path], Any], row: str, tmp_path: Path, tokenizer: Any
) -> None:
    corpus = Corpus(given([{"role": role, "content": "the boat"} for role in roles], tmp_path), tokenizer, context=12)
    if tokenizer.chat_template == PLAIN:
        assert corpus.fingerprint()["hash"]
        return
    with pytest.raises(InputError, match=f"{row} does not fit the chat template .*: its roles are {', '.join(roles)};"):
        corpus.fingerprint()


def test_plain_texts_meet_the_template_before_anything_is_read(tokenizer: Any) -> None:
    tokenizer.chat_template, kept = "{{ raise_exception('no chats') }}", tokenizer.chat_template
    try:
        with pytest.raises(InputError, match=r"document 0 does not fit the chat template of .* \(no chats\)"):
            Corpus(["the boat"], tokenizer, context=12, chat=True).fingerprint()
    finally:
        tokenizer.chat_template = kept


def test_half_characters_are_named_wherever_texts_are_tokenised(tokenizer: Any) -> None:
    with pytest.raises(InputError, match=r"row 2 of the texts holds half a character \(a lone surrogate\) at 4"):
        TextTokenizer(tokenizer).encode(["a", "b", "boat\udc80"])
    with pytest.raises(InputError, match=r"row 1 of the texts is missing \(nan\)"):
        TextTokenizer(tokenizer).encode(["a", float("nan")])
    with pytest.raises(InputError, match=r"texts are a sequence, such as a list, got str 'boat'"):
        TextTokenizer(tokenizer).encode("boat")


def streamed(folder: Path, last: str) -> Iterator[Any]:
    folder.mkdir()
    rows = [json.dumps({"text": f"text {row}"}) for row in range(5)]
    (folder / "rows.jsonl").write_text("\n".join([*rows, last]) + "\n")
    return open_source(f"hf:{folder}").read()


def test_a_data_set_that_breaks_while_it_is_read_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"hf:.*cut breaks after \d rows \(JSON parse error"):
        list(streamed(tmp_path / "cut", '{"text": "cut'))
    with pytest.raises(InputError, match=r"cannot read hf:.*deep: "):
        list(streamed(tmp_path / "deep", '{"text": ' + "[" * 100_000 + "]" * 100_000 + "}"))
    digits = list(streamed(tmp_path / "digits", '{"text": "six", "number": ' + "1" * 5000 + "}"))
    assert digits[-1].content == "six"
    with pytest.raises(InputError, match=r"row 5 of hf:.*null is missing"):
        list(streamed(tmp_path / "null", '{"text": null}'))


def test_a_data_set_with_a_loading_script_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "old.py").write_text("import datasets\n")
    with pytest.raises(InputError, match=r"has a loading script.*name a copy of its files"):
        list(open_source(f"hf:{tmp_path}/old").read())


def test_a_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    list(streamed(tmp_path / "set", '{"text": "six"}'))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert [document.content for document in open_source("hf:~/set").read()][-1] == "six"


def test_a_table_of_conversations_is_read_row_by_row() -> None:
    table = pd.DataFrame({"messages": [FINE, FINE[:1]]}, index=[7, 0])
    assert [document.content for document in open_source(table).read()] == [FINE, FINE[:1]]
    assert [document.content for document in open_source(table["messages"]).read(1)] == [FINE[:1]]
