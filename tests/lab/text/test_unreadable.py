"""Documents that cannot be read end a run before it begins, or are left out and counted on request."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from monosem.lab.errors import InputError
from monosem.lab.text.corpus import Corpus
from tiny_models import Letters

LINES = ['{"text": "abc"}', '{"text": null}', '{"text": "cab"', '{"other": "a"}', '{"text": "bca"}']


def texts(corpus: Corpus) -> list[str]:
    return [str(document.content) for document in corpus.source.read()]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "rows.jsonl").write_text("\n".join(LINES))
    return tmp_path / "rows.jsonl"


def test_a_record_that_cannot_be_read_is_refused_with_the_option(file: Path) -> None:
    with pytest.raises(InputError, match="line 2 of") as refused:
        Corpus(f"jsonl:{file}", Letters()).fingerprint()
    assert "--text.skip-unreadable" in refused.value.__notes__[0]


def test_on_request_they_are_left_out_counted_and_told(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    corpus = Corpus(f"jsonl:{file}", Letters(), skip_unreadable=True)
    with caplog.at_level("WARNING"):
        told = corpus.fingerprint()
    assert texts(corpus) == ["abc", "bca"] and corpus.unreadable == told["unreadable"] == 3
    assert "3 documents of jsonl:" in caplog.text and "line 2 of" in caplog.text.partition("The first: ")[2]
    assert [document.id for document in corpus.source.read(1)] == [4]
    assert "unreadable, left out so far" in corpus._repr_html_()


def test_files_and_values_too(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abc")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\xfa")
    files = Corpus(f"text:{tmp_path}", Letters(), skip_unreadable=True)
    assert texts(files) == ["abc"] and files.unreadable == 1
    values = Corpus(["abc", None, "cab"], Letters(), skip_unreadable=True)
    assert texts(values) == ["abc", "cab"] and values.unreadable == 1
    with pytest.raises(InputError, match="skip_unreadable is for documents in files or in memory, not for docs:"):
        Corpus("docs:", Letters(), skip_unreadable=True)


def test_runs_of_before_know_nothing_of_the_option() -> None:
    settings: Callable[..., dict] = lambda **more: Corpus(["abc"], Letters(), **more).fingerprint()["settings"]  # noqa: E731
    assert "skip_unreadable" not in settings() and settings(skip_unreadable=True)["skip_unreadable"] is True
    json.dumps(settings())
