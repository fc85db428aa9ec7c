"""Every command refuses bad input in one sentence, before a model is loaded, and leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monosem.lab.app import options
from monosem.lab.app.commands import COMMANDS, compare_models
from monosem.lab.models.sites import Site
from monosem.lab.streams.activation_stream import Batch
from monosem.lab.streams.store import ActivationStore
from monosem.saes.files import load
from safetensors.torch import load_file, save_file
from tiny_commands import Ended, Tiny

Command = Callable[..., Ended]

SMALL = ("--n-latents=8", "--k=2", "--rows=256")
WORDS: dict[str, tuple[str, ...]] = {
    "demo": ("demo", "{out}", "--site={site}", "--corpus={corpus}"),
    "train": ("train", "{out}", "--sites={site}", "--corpus={corpus}", *SMALL),
    "train, store": ("train", "{out}", "--sites={site}", "--store={store}", *SMALL, "--stream.batch=16",
                     "--stream.buffer=32"),
    "finetune": ("finetune", "{dictionary}", "{out}", "--corpus={corpus}"),
    "itda": ("itda", "{out}", "--sites={site}", "--corpus={corpus}"),
    "itda, store": ("itda", "{out}", "--sites={site}", "--store={store}", "--rows=64", "--stream.batch=16",
                    "--stream.buffer=32"),
    "sweep": ("sweep", "{out}", "--sites={site}", "--corpus={corpus}", *SMALL),
    "sweep, store": ("sweep", "{out}", "--sites={site}", "--store={store}", "--no-evaluate", *SMALL,
                     "--stream.batch=16", "--stream.buffer=32"),
    "eval": ("eval", "{dictionary}", "--corpus={corpus}"),
    "features": ("features", "{dictionary}", "{out}", "--corpus={corpus}"),
    "probe": ("probe", "{out}", "--data={data}", "--sites={site}"),
    "probe, dictionary": ("probe", "{out}", "--data={data}", "--dictionary={dictionary}"),
    "truth": ("truth", "{out}", "--sites={site}"),
    "truth, file": ("truth", "{out}", "--data={statements}"),
    "outliers": ("outliers", "{dictionary}", "--corpus={corpus}"),
    "outliers, file": ("outliers", "{dictionary}", "--outside", "{corpus}"),
    "geography": ("geography", "{out}", "--countries=GB", "--sites={site}"),
    "geography, dictionary": ("geography", "{out}", "--countries=GB", "--dictionary={dictionary}", "--sites={site}"),
    "compare": ("compare", "{model}", "--against=rotated", "--sites={site}", "--corpus={corpus}", "--page={out}"),
    "compare, dictionaries": ("compare", "{dictionary}", "{other}", "--corpus={corpus}", "--page={out}"),
    "atoms": ("atoms", "{out}", "--site={site}", "--corpus={corpus}"),
    "atoms, store": ("atoms", "{out}", "--site={site}", "--store={store}"),
    "atoms, dictionary": ("atoms", "{out}", "--dictionaries", "{dictionary}"),
    "fast": ("fast", "{out}", "--sites={site}", "--chat={chat}", "--corpus={corpus}"),
    "sparsity": ("sparsity", "{out}", "--layers=1", "--corpus={corpus}"),
    "harvest": ("harvest", "{out}", "--sites={site}", "--corpus={corpus}"),
    "export": ("export", "{dictionary}", "{out}"),
    "doctor": ("doctor",),
}  # fmt: skip
"""A command line of every command, with a name in braces for all that can be wrong."""
NO_MODEL = ("compare", "compare, dictionaries", "export")
"""Commands without `--model`."""


def of(place: str) -> list[str]:
    return [name for name, words in WORDS.items() if any(f"{{{place}}}" in word for word in words)]


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a model is loaded before what is cheap was checked")

    monkeypatch.setattr(options, "load_model", refuse)
    monkeypatch.setattr(compare_models, "minilm", refuse)


@pytest.fixture
def try_with(tiny: Tiny, trained: Path, monosem: Command, tmp_path: Path) -> Callable[..., str]:
    """Run a command with some of its inputs replaced; its one sentence, once it left nothing behind."""
    (dictionary,) = trained.glob("dictionaries/*")
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "the boat"}]}) + "\n")
    rows = [json.dumps({"text": f"the boat {number}", "label": number % 2}) for number in range(40)]
    (tmp_path / "labels.jsonl").write_text("\n".join(rows))
    given = {
        "out": tmp_path / "out", "site": "resid_post.1", "corpus": f"text:{tiny.text}", "model": tiny.model,
        "dictionary": dictionary, "other": trained, "chat": f"jsonl:{tmp_path}/chat.jsonl",
        "data": f"{tmp_path}/labels.jsonl#text,label",
    }  # fmt: skip

    def run(name: str, **wrong: object) -> str:
        inputs = {**given, **wrong}
        line = [word.format(**inputs) for word in WORDS[name] if "{store}" not in word or "store" in inputs]
        line += [] if name == "export" else ["--dtype=fp32", "--device=cpu"]
        line += [] if name in NO_MODEL else [f"--model={tiny.model}"]
        folders = (tmp_path, trained)
        before = [sorted(folder.rglob("*")) for folder in folders]
        ended = monosem(*line)
        assert (ended.status, ended.out) == (2, ""), ended.err
        assert "Traceback" not in ended.err and [sorted(folder.rglob("*")) for folder in folders] == before
        sentence = ended.err.splitlines()[-1]
        assert sentence.startswith("monosem: ")
        return sentence

    return run


def test_every_command_is_tried() -> None:
    assert {words[0] for words in WORDS.values()} == {name for group in COMMANDS.values() for name in group}


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("name", of("corpus"))
def test_a_missing_or_empty_text(name: str, try_with: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    assert "/nowhere" in try_with(name, corpus="text:/nowhere")
    assert "has no document with a token" in try_with(name, corpus=f"text:{tmp_path}/empty.txt")


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("place", ["dictionary", "data", "statements", "store", "chat", "other"])
def test_a_missing_file(place: str, try_with: Callable[..., str], tmp_path: Path) -> None:
    missing = {"data": f"{tmp_path}/none.jsonl#text,label", "chat": f"jsonl:{tmp_path}/none"}.get(place)
    for name in of(place):
        assert "none" in try_with(name, **{place: missing or tmp_path / "none"}), name


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("name", of("site"))
def test_a_wrong_site(name: str, try_with: Callable[..., str], tmp_path: Path, tiny: Tiny) -> None:
    if name.endswith("store"):
        store = written(tmp_path / "store")
        assert "resid_post.9" in try_with(name, site="resid_post.9", store=store)
        return
    assert "resid_post.9 is outside" in try_with(name, site="resid_post.9")
    if name.split(",")[0] in ("probe", "truth"):
        assert "'resid_pst.*'" in try_with(name, site="resid_pst.*")


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("name", of("dictionary"))
def test_a_dictionary_that_is_not_finite(
    name: str, try_with: Callable[..., str], tmp_path: Path, trained: Path
) -> None:
    (found,) = trained.glob("dictionaries/*")
    load(found).save(tmp_path / "broken")
    tensors = load_file(tmp_path / "broken" / "dictionary.safetensors")
    tensors["W_dec"][0, 0] = torch.nan
    save_file(tensors, tmp_path / "broken" / "dictionary.safetensors")
    sentence = try_with(name, dictionary=tmp_path / "broken")
    assert str(tmp_path / "broken") in sentence


def written(folder: Path, nan: bool = False) -> Path:
    """A store of `resid_post.1`, which may hold rows that are not finite."""
    rows = torch.randn(256, 32, generator=torch.Generator().manual_seed(0))
    if nan:
        rows[20] = torch.nan
    origin = torch.stack([torch.arange(256) // 16, torch.arange(256) % 16], 1)
    batches = [Batch({Site.parse("resid_post.1"): rows}, origin)]
    ActivationStore.write(batches, folder, dtype=torch.float32, progress=False)
    return folder


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("name", ["train, store", "itda, store", "sweep, store"])
def test_a_store_with_rows_that_are_not_finite(name: str, try_with: Callable[..., str], tmp_path: Path) -> None:
    assert "finite" in try_with(name, store=written(tmp_path / "store", nan=True))


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("name", [name for name in of("out") if not name.startswith("compare")])
def test_a_folder_that_cannot_be_written_or_is_taken(
    name: str, try_with: Callable[..., str], tmp_path: Path, trained: Path
) -> None:
    (tmp_path / "file").write_text("")
    given = {"statements": statements(tmp_path)} if "{statements}" in WORDS[name] or name == "truth, file" else {}
    assert "cannot write into" in try_with(name, out=tmp_path / "file" / "out", **given)
    taken = tmp_path / "taken"
    taken.mkdir()
    for file in ("config.json", "report.json", "anything"):
        (taken / file).write_text((trained / "config.json").read_text())
    if name not in ("demo", "fast"):  # which continue
        assert "taken" in try_with(name, out=taken, **given)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("name", ["compare", "compare, dictionaries"])
def test_a_page_that_cannot_be_written(name: str, try_with: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot write into" in try_with(name, out=tmp_path / "file" / "page.html")
    assert "is a folder: give a file" in try_with(name, out=tmp_path)


def statements(folder: Path) -> Path:
    """Statements in a file of the published form."""
    lines = ["statement\tobject_1\tcorrect\tnegation\treal_object"]
    lines += [f"The boat {n} is in b{n}.\tb{n}\t{n % 2 == 0}\tFalse\t{n % 3 != 0}" for n in range(40)]
    path = folder / "statements.tsv"
    path.write_text("\n".join(lines))
    return path
