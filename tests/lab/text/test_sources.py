"""Text sources: the same documents every time, from anywhere, and a clear sentence for what is no source."""

from __future__ import annotations

import itertools
import json
import os
import time
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from monosem.lab.errors import InputError
from monosem.lab.text.docs import PACKAGES, DocsSource, docstrings, prose
from monosem.lab.text.documents import Source, content_of, is_heldout
from monosem.lab.text.sources import open_source


def contents(source: Source, start: int = 0) -> list:
    return [document.content for document in source.read(start)]


def write_rows(path: Path, rows: list) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


# docs:


def test_docs_starts_fast_and_gives_the_same_documents_from_anywhere():
    began = time.perf_counter()
    first = list(itertools.islice(DocsSource().read(), 24))
    assert time.perf_counter() - began < 10  # about 1 s on an idle machine
    again = list(itertools.islice(DocsSource().read(first[16].id), 8))
    assert again == first[16:]
    assert [d.id for d in first] == sorted({d.id for d in first})
    assert all(len(d.content) >= 200 for d in first)


def test_docs_is_large_mixed_and_identified():
    source = DocsSource()
    sample = list(itertools.takewhile(lambda d: d.id < 120, source.read()))
    fingerprint = source.fingerprint()
    characters = sum(len(d.content) for d in sample) / 120 * fingerprint["files"]
    assert characters / 4 > 3_000_000  # at most 4 characters make a token of technical English
    assert len({d.name.split("/")[0] for d in sample}) >= 8
    assert {"numpy", "torch"} <= set(fingerprint["packages"])
    assert fingerprint == DocsSource().fingerprint()
    assert fingerprint["hash"] != DocsSource("numpy").fingerprint()["hash"]


def test_docs_of_one_package_are_only_its_own():
    names = [d.name for d in itertools.islice(DocsSource("networkx").read(), 10)]
    assert all(name.startswith("networkx/") and "tests" not in name for name in names)


def test_docs_refuses_packages_it_does_not_read():
    with pytest.raises(InputError, match=r"'nunpy': did you mean 'numpy'"):
        open_source("docs:nunpy")
    assert "numpy" in PACKAGES


def test_docstrings_of_a_module_known_answer():
    long = "This sentence is long enough to count as a docstring, because it has more than eighty characters. "
    module = f'''
"""Module. {long}"""
add_doc("name", "Call. {long}")
class A:
    """Class. {long}"""
    def f(self):
        """Short."""
        def g():
            """Inner. {long}"""
    # Copied from elsewhere
    def h(self):
        """Copy. {long}"""
def again():
    """Module. {long}"""
text = """Not a docstring. {long}"""
'''
    found = docstrings(module.encode()).split("\n\n")
    assert [text.split(".")[0] for text in found] == ["Module", "Call", "Class", "Inner"]
    assert docstrings(b'"""{{ template """ %% not Python') == ""
    assert docstrings(b"# This file was automatically generated from x\n" + module.encode()) == ""


def test_prose_keeps_sentences_and_leaves_tables_out(tmp_path):
    words, table = tmp_path / "a.rst", tmp_path / "b.txt"
    words.write_text("Plain sentences about data sets, with a number or two (12, 13).")
    table.write_text("1.0, 2.0, 3.0\n4.0, 5.0, 6.0\n")
    assert prose(words).startswith("Plain")
    assert prose(table) == ""


# files


def test_text_folder_is_a_document_per_file_in_path_order(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.txt", "a.md", "sub/c.txt", "ignored.py"):
        (tmp_path / name).write_text(f"content of {name}")
    source = open_source(f"text:{tmp_path}")
    assert contents(source) == ["content of a.md", "content of b.txt", "content of sub/c.txt"]
    assert contents(source, 2) == ["content of sub/c.txt"]


def test_jsonl_reads_fields_and_conversations_and_skips_blank_lines(tmp_path):
    chat = [{"role": "user", "content": "Hi"}]
    path = write_rows(tmp_path / "rows.jsonl", [{"text": "one", "body": "uno"}, "", {"messages": chat}])
    source = open_source(f"jsonl:{path}")
    assert [(d.id, d.content) for d in source.read()] == [(0, "one"), (2, chat)]
    assert contents(open_source(f"jsonl:{write_rows(path, [{'body': 'uno'}])}#body")) == ["uno"]


def test_jsonl_seeks_to_any_line_past_its_marks(tmp_path, monkeypatch):
    monkeypatch.setattr("monosem.lab.text.files.MARK_EVERY", 4)
    path = write_rows(tmp_path / "rows.jsonl", [{"text": "x" * i} for i in range(1, 40)])
    source = open_source(f"jsonl:{path}")
    everything = contents(source)
    for start in (0, 3, 4, 17, 38, 39):
        assert contents(source, start) == everything[start:]
        assert contents(open_source(f"jsonl:{path}"), start) == everything[start:]


def test_content_hash_follows_every_byte(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [{"text": "one"}])
    before = open_source(f"jsonl:{path}").fingerprint()
    assert before == open_source(f"jsonl:{path}").fingerprint()
    write_rows(path, [{"text": "two"}])
    assert before["hash"] != open_source(f"jsonl:{path}").fingerprint()["hash"]
    assert open_source(["a", "b"]).fingerprint()["hash"] != open_source(["ab"]).fingerprint()["hash"]


# hub and Python values


def test_hub_form_reads_a_local_data_set_streamed(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    write_rows(folder / "train.jsonl", [{"text": f"train {i}", "body": "b"} for i in range(5)])
    write_rows(folder / "test.jsonl", [{"text": "test 0", "body": "b"}])
    source = open_source(f"hf:{folder}")
    assert contents(source) == [f"train {i}" for i in range(5)]
    assert [(d.id, d.content) for d in source.read(3)] == [(3, "train 3"), (4, "train 4")]
    assert contents(open_source(f"hf:{folder}::test#body")) == ["b"]
    assert source.fingerprint()["hash"] != open_source(f"hf:{folder}::test").fingerprint()["hash"]
    with pytest.raises(InputError, match=r"Available splits: \['train', 'test'\]"):
        contents(open_source(f"hf:{folder}::dev"))
    with pytest.raises(InputError, match="has no field 'title': the fields there are 'text', 'body'"):
        contents(open_source(f"hf:{folder}#title"))


def test_rows_take_texts_conversations_mappings_and_one_shot_iterators():
    chat = [{"role": "user", "content": "Hi"}]
    source = open_source(row for row in ("a", chat, {"text": "b"}))
    assert contents(source) == contents(source) == ["a", chat, "b"]
    assert open_source(source) is source


def test_the_side_of_a_document_depends_on_its_text_only():
    texts = [f"document number {i}" for i in range(4000)]
    held = {text for text in texts if is_heldout(text, 0.05)}
    assert 130 < len(held) < 270  # binomial, mean 200, sd 14
    assert held <= {text for text in texts if is_heldout(text, 0.2)}
    assert all(is_heldout(f"  {text}\n", 0.05) for text in held)


# what is no source


@pytest.mark.parametrize(
    ("form", "says"),
    [
        ("tetx:a.txt", "unknown text source 'tetx:': did you mean 'text:'"),
        ("a.txt", "write text:a.txt for a file"),
        (Path("a.txt"), "write 'text:a.txt'"),
        ("text:/nowhere/a.txt", "no such file for text: /nowhere/a.txt"),
        ("jsonl:", "no such file for jsonl: .empty path."),
        ("hf:", "hf: names no data set"),
        ("hf:a:b:c:d", "too many parts"),
        (3, "int is no text source"),
        ({"text": "a"}, "dict is no text source"),
    ],
)
def test_forms_that_are_no_source(form, says):
    with pytest.raises(InputError, match=says):
        open_source(form)


def test_unreachable_data_set_is_one_sentence():
    with pytest.raises(InputError, match=r"cannot read hf:nobody/nothing: .*hf:NAME\[:config\]"):
        contents(open_source("hf:nobody/nothing"))


def test_files_that_are_not_what_they_say(tmp_path):
    binary, nul, folder = tmp_path / "b.txt", tmp_path / "n.txt", tmp_path / "empty"
    binary.write_bytes(b"abc\xff\xfe\x00")
    nul.write_bytes(b"abc\x00def")
    folder.mkdir()
    with pytest.raises(InputError, match=r"b.txt is not UTF-8 text \(byte 3\)"):
        contents(open_source(f"text:{binary}"))
    with pytest.raises(InputError, match=r"n.txt is not text: it holds NUL"):
        contents(open_source(f"text:{nul}"))
    with pytest.raises(InputError, match=r"holds no .txt or .md file"):
        open_source(f"text:{folder}")
    with pytest.raises(InputError, match=r"jsonl: needs a file"):
        open_source(f"jsonl:{folder}")


def test_rows_that_are_not_what_they_say(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [{"text": "one"}, "{broken", {"title": "x", "id": 3}])
    with pytest.raises(InputError, match=r"line 2 of .*rows.jsonl is not valid JSON"):
        contents(open_source(f"jsonl:{path}"))
    with pytest.raises(InputError, match=r"line 3 .* no field 'text': the fields there are 'title', 'id'"):
        contents(open_source(f"jsonl:{path}"), 2)
    with pytest.raises(InputError, match=r"field 'id' of line 3 .* holds int, not text"):
        contents(open_source(f"jsonl:{path}#id"), 2)
    with pytest.raises(InputError, match="document 0 holds int"):
        contents(open_source([1]))
    with pytest.raises(InputError, match="message 1 of here is not a mapping with 'role'"):
        content_of([{"role": "user", "content": ""}, {"role": "user"}], None, "here")
    with pytest.raises(InputError, match="empty conversation"):
        content_of({"messages": []}, None, "here")
