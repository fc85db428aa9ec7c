"""Order of checks: what is cheap to know is refused before a model is loaded; nothing is written then."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from monosem.lab.app import options
from monosem.lab.app.training_options import StreamOptions
from monosem.lab.errors import InputError
from monosem.lab.streams.activation_stream import StreamConfig
from tiny_commands import Ended, Tiny, write_model

Command = Callable[..., Ended]


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a model is loaded before what is cheap was checked")

    monkeypatch.setattr(options, "load_model", load)


def refused(ended: Ended, *parts: str) -> None:
    assert (ended.status, ended.out) == (2, "") and "Traceback" not in ended.err
    assert all(part in ended.err.splitlines()[-1] for part in parts), ended.err


COMMANDS = {
    "train": ["train", "{out}", "--sites={site}"],
    "harvest": ["harvest", "{out}", "--sites={site}"],
    "itda": ["itda", "{out}", "--sites={site}"],
    "sweep": ["sweep", "{out}", "--sites={site}", "--n-latents=8", "--k=2"],
    "demo": ["demo", "{out}", "--site={site}"],
    "fast": ["fast", "{out}", "--sites={site}", "--chat=jsonl:{chat}"],
    "atoms": ["atoms", "{out}", "--site={site}"],
    "eval": ["eval", "{run}"],
    "features": ["features", "{run}", "{out}"],
    "finetune": ["finetune", "{run}", "{out}"],
    "sparsity": ["sparsity", "{out}", "--layers=1"],
}
WITH_SITE = [name for name, words in COMMANDS.items() if any("{site}" in word for word in words)]


def command(
    name: str, tiny: Tiny, tmp_path: Path, run: Path, site: str = "resid_post.1", out: str = "out"
) -> list[str]:
    chat = tmp_path / "chat.jsonl"
    chat.write_text(json.dumps({"messages": [{"role": "user", "content": "the boat"}]}) + "\n")
    words = {"out": tmp_path / out, "site": site, "run": run, "chat": chat}
    return [word.format(**words) for word in COMMANDS[name]] + [f"--model={tiny.model}", "--dtype=fp32"]


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("name", COMMANDS)
def test_texts_come_before_the_model(name: str, tiny: Tiny, trained: Path, monosem: Command, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"body": "a"}\n')
    (tmp_path / "empty.txt").write_text("\n")
    words = command(name, tiny, tmp_path, trained)
    before = sorted(tmp_path.rglob("*"))
    refused(monosem(*words, f"--corpus=jsonl:{tmp_path}/rows.jsonl#txt"), "no field 'txt'", "'body'")
    refused(monosem(*words, f"--corpus=text:{tmp_path}/empty.txt"), "has no document with a token")
    refused(monosem(*words, "--corpus=text:/nowhere"), "no such file for text: /nowhere")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("name", WITH_SITE)
def test_sites_come_before_the_model(name: str, tiny: Tiny, trained: Path, monosem: Command, tmp_path: Path) -> None:
    words = command(name, tiny, tmp_path, trained, site="resid_post.3")
    refused(monosem(*words, f"--corpus=text:{tiny.text}"), "resid_post.3 is outside", "(layers 0 to 2)")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "eval"])
def test_folders_come_before_the_model(name: str, tiny: Tiny, trained: Path, monosem: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    words = command(name, tiny, tmp_path, trained, out="file/out")
    refused(monosem(*words, f"--corpus=text:{tiny.text}"), "cannot write into", "is a file; choose another folder")


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("name", ["eval", "features", "finetune"])
def test_a_dictionary_of_another_model_comes_before_it(
    name: str, tiny: Tiny, trained: Path, monosem: Command, tmp_path: Path
) -> None:
    config = json.loads((write_model(tmp_path / "other") / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    words = command(name, tiny, tmp_path, trained)
    ended = monosem(*words, f"--corpus=text:{tiny.text}", f"--model={tmp_path}/other")
    refused(ended, "was trained on", "n_layers 3", "n_layers 2", "load the model it was trained on")


def test_a_buffer_is_no_larger_than_the_rows_asked_for(tiny: Tiny, tmp_path: Path) -> None:
    reading = StreamOptions(
        options.ModelText(str(tiny.model), "fp32", "cpu", corpus=f"text:{tiny.text}"),
        stream=StreamConfig(batch=64, buffer=4096),
    )
    model = reading.source.open_model()
    sizes = [reading.open(["resid_post.1"], model, rows=rows).config.buffer for rows in (100, 1000, 4096, 10_000)]
    assert sizes == [128, 1000, 4096, 4096]
    assert reading.open(["resid_post.1"], model).config.buffer == 4096
    (tmp_path / "config.json").write_text(json.dumps({"fingerprints": {"stream": {"buffer": 4096}}}))
    assert reading.open(["resid_post.1"], model, rows=1000, out=tmp_path).config.buffer == 4096


def test_little_text_is_said(tiny: Tiny, monosem: Command, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "short.txt").write_text("the boat sees")
    options = (f"--corpus=text:{tmp_path}/short.txt", "--rows=640", "--text.heldout=0.000001")
    ended = monosem(*tiny.train(tmp_path / "run", *options))
    assert ended.status == 0 and "ends after 1 documents with 3 tokens and is read again" in caplog.text


def test_an_unknown_model_is_named(monosem: Command, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown model 'smolm2-135m'"):
        options.ModelOptions("smolm2-135m").check()


def test_a_dictionary_is_read_on_its_own_model_unless_another_is_asked_for(tiny, trained, monosem, tmp_path):
    own = [option for option in tiny.source if not option.startswith("--model")]
    ended = monosem("features", trained, tmp_path / "own", *own, "--tokens=400", "--latents=2", "--json")
    assert ended.status == 0, ended.err
    other = monosem("features", trained, tmp_path / "other", *own, "--model=no/such", "--latents=2")
    assert other.status == 2 and "no/such" in other.err and not (tmp_path / "other").exists()
