"""One reader of text files: the same texts by every way in, and a line number for what cannot be read."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from monosem.lab.errors import InputError
from monosem.lab.text.corpus import Corpus
from monosem.lab.text.files import read_records
from monosem.lab.text.sources import open_source
from monosem.probes.labelled_files import open_texts
from monosem.probes.truth.published import COLUMNS, load_published
from tiny_models import Letters

HARD = {
    "line separator": "one\u2028two",
    "next line": "one\u0085two",
    "file separator": "one\x1ctwo",
    "vertical tab and form feed": "one\x0b\x0ctwo",
    "long field": "word " * 30_000,  # over the 131,072 characters that `csv` allows by itself
    "quotes and commas": "one, \"two\", 'three'",
}


def by_corpus(path: Path, _: list[str]) -> list[str]:
    return [document.content for document in open_source(f"jsonl:{path}").read()]


def by_probe(path: Path, _: list[str]) -> list[str]:
    return open_texts(str(path)).texts


def by_truth(path: Path, _: list[str]) -> list[str]:
    return list(load_published("x", path).texts)


def rows_of(texts: list[str]) -> list[dict[str, object]]:
    """Rows that serve as text, as labelled text and as statements."""
    shared = {"correct": True, "negation": False, "real_object": True}
    return [
        {"text": text, "label": "ab"[i % 2], "statement": text, "object_1": f"e{i}", **shared}
        for i, text in enumerate(texts)
    ]


def write_lines(path: Path, texts: list[str]) -> Path:
    lines = [json.dumps(row, ensure_ascii=False) for row in rows_of(texts)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_table(path: Path, texts: list[str]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = rows_of(texts)
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    return path


WAYS = [
    pytest.param(by_corpus, write_lines, "jsonl", id="corpus jsonl"),
    *(pytest.param(by_probe, write, kind, id=f"probe {kind}")
      for write, kind in ((write_lines, "jsonl"), (write_table, "csv"), (write_table, "tsv"))),
    *(pytest.param(by_truth, write, kind, id=f"truth {kind}")
      for write, kind in ((write_lines, "jsonl"), (write_table, "csv"), (write_table, "tsv"))),
]  # fmt: skip
Way = Callable[[Path, list[str]], list[str]]


def plain_texts() -> list[str]:
    return [f"text number {number}" for number in range(12)]


@pytest.mark.parametrize(("read", "write", "kind"), WAYS)
@pytest.mark.parametrize("name", HARD)
def test_every_reader_gives_texts_as_they_are(read: Way, write: Callable, kind: str, name: str, tmp_path: Path) -> None:
    texts = [f"{HARD[name]} {text}" for text in plain_texts()]
    assert read(write(tmp_path / f"rows.{kind}", texts), texts) == texts


@pytest.mark.parametrize(("read", "write", "kind"), WAYS)
def test_marks_homes_and_hashes_are_no_obstacle(
    read: Way, write: Callable, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = plain_texts()
    folder = tmp_path / "run #3"
    folder.mkdir()
    path = write(folder / f"a#b.{kind}", texts)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read(path, texts) == texts
    monkeypatch.setenv("HOME", str(folder))
    assert read(Path(f"~/a#b.{kind}"), texts) == texts


def test_fields_can_be_named_after_a_path_with_a_hash(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a#b.jsonl", plain_texts())
    assert open_texts(f"{path}#statement,label,object_1").texts == plain_texts()
    assert [document.content for document in open_source(f"jsonl:{path}#statement").read()] == plain_texts()


def test_a_control_character_that_json_forbids_is_let_through(tmp_path: Path) -> None:
    path = tmp_path / "raw.jsonl"
    path.write_bytes(b'{"text": "one\x1ctwo\tthree"}\n')
    assert [document.content for document in open_source(f"jsonl:{path}").read()] == ["one\x1ctwo\tthree"]


def test_the_limit_of_fields_stays_what_it_was(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    list(read_records(write_table(tmp_path / "a.csv", [HARD["long field"]])))
    (tmp_path / "bad.csv").write_text('text,label\n"never closed,a\n')
    with pytest.raises(InputError, match=r"line 2 of .*bad.csv is no row of a table"):
        read_records(tmp_path / "bad.csv")
    assert csv.field_size_limit() == before


BAD = {
    '{"text": ' + "1" * 5000 + "}": "Exceeds the limit",
    '{"text": ' + "[" * 100_000 + "]" * 100_000 + "}": "nested too deeply",
    '{"text": "cut': "not valid JSON",
    "caf\udce9": "not UTF-8",
    '{"text": "half \\ud83d"}': "lone surrogate",
    '["a"]': None,
    "3": None,
}


@pytest.mark.parametrize("line", BAD, ids=lambda line: line[:12])
@pytest.mark.parametrize("read", [by_corpus, by_probe, by_truth])
def test_a_line_that_cannot_be_read_is_named(read: Way, line: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", plain_texts())
    if "text" in line:  # the same field, whatever it is called
        fields = '"label": "a", "object_1": "x", "correct": true, "negation": false, "real_object": true, "statement": '
        line = line.replace('"text":', fields + ("" if read is by_truth else '"x", "text":'))
    path.write_bytes(path.read_bytes() + line.encode(errors="surrogateescape") + b"\n")
    with pytest.raises(InputError, match=f"line 13 of .*rows.jsonl(.|\n)*{BAD.get(line) or ''}"):
        read(path, [])


def test_a_corpus_knows_a_bad_line_before_anything_is_trained(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", ["text enough for a row"] * 300)
    path.write_text(path.read_text() + '{"text": null}\n')
    corpus = Corpus(f"jsonl:{path}", Letters(), context=8)
    with pytest.raises(InputError, match=r"field 'text' of line 301 of .* is missing"):
        corpus.fingerprint()
    assert Corpus(f"jsonl:{path}", Letters(), context=8, limit=300).fingerprint()["files"] == 1


def test_tables_whose_rows_do_not_fit_their_names_are_refused(tmp_path: Path) -> None:
    (tmp_path / "wide.csv").write_text("text,label\nsea, sun,a\n")
    with pytest.raises(InputError, match=r"line 2 of .*wide.csv has 3 fields and the first row names 2"):
        read_records(tmp_path / "wide.csv")
    (tmp_path / "twice.csv").write_text("text,text\na,b\n")
    with pytest.raises(InputError, match=r"two columns of .* are called 'text'"):
        read_records(tmp_path / "twice.csv")
    with pytest.raises(InputError, match=r"unknown kind of file 'a.parquet'"):
        (tmp_path / "a.parquet").write_bytes(b"PAR1")
        read_records(tmp_path / "a.parquet")
    assert set(COLUMNS) <= set(next(read_records(write_table(tmp_path / "ok.csv", ["a"]))).value)
