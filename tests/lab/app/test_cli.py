"""The command line from end to end on a tiny model, and what it says to bad input."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from monosem.lab.runs.run import Run
from monosem.lab.streams.store import ActivationStore
from monosem.lab.text.documents import is_heldout
from monosem.saes.features.feature_set import Features
from monosem.saes.files import load
from tiny_commands import POISON, Ended, Tiny, results, write_model

Command = Callable[..., Ended]
EVALUATION = ("--tokens=1500", "--evaluation.ce-tokens=300", "--evaluation.fit-tokens=400")


def refused(ended: Ended, *parts: str) -> None:
    """Status 2, nothing on stdout, and one sentence as the last line of stderr with all of `parts` in it."""
    assert (ended.status, ended.out) == (2, "")
    assert "Traceback" not in ended.err and ended.err.count("monosem:") == 1
    last = ended.err.splitlines()[-1]
    assert last.startswith("monosem: ")
    for part in parts:
        assert part in last


def test_train_ends_in_a_run(tiny: Tiny, monosem: Command, tmp_path: Path) -> None:
    ended = monosem(*tiny.train(tmp_path / "run"), "--json")
    assert ended.status == 0 and len(ended.out.splitlines()) == 1
    assert "tok/s" in ended.err
    result = ended.result
    assert result["rows"] == 63 * 64 and result["tokens"] >= result["rows"] and result["tokens_per_second"] > 0
    (name, folder), *others = result["dictionaries"].items()
    dictionary = load(folder)
    assert not others and (dictionary.d_in, dictionary.n_latents) == (32, 64)
    assert result["last"][name]["l0"] == 4 and result["last"][name]["fvu"] < 0.5
    manifest = Run.open(tmp_path / "run").manifest
    assert manifest is not None and manifest["status"] == "complete"


def test_without_json_it_is_for_people(tiny: Tiny, monosem: Command, tmp_path: Path) -> None:
    out = monosem(*tiny.train(tmp_path / "run", "--rows=640")).out
    assert out.startswith(f"run: {tmp_path / 'run'}\n") and "\nrows: 640\n" in out and "{" not in out


def test_eval_stands_beside_its_nulls(tiny: Tiny, trained: Path, monosem: Command) -> None:
    ended = monosem("eval", trained, *tiny.source, *EVALUATION, "--json")
    result = ended.result
    assert ended.status == 0 and len(ended.out.splitlines()) == 1
    assert result["fvu_low"] < result["fvu"] < result["fvu_high"]
    assert result["fvu"] < result["fvu_null_untrained"] and result["count_rows"] == 1500
    assert result["l0"] == 4 and "held-out documents" in result["held_out"]
    (saved,) = trained.glob("dictionaries/*/evaluation.json")
    assert json.loads(saved.read_text()) == result


def test_features_are_saved(tiny: Tiny, trained: Path, monosem: Command, tmp_path: Path) -> None:
    arguments = (tmp_path / "features", "--latents=8", "--json")
    result = monosem("features", trained, *arguments, *tiny.source, "--tokens=2000").result
    assert result["tokens"] == 2000
    features = Features.load(tmp_path / "features")
    assert len(features.latents) == 8 and features.measured == 2000 and len(features.dead) == result["dead"]
    everything = monosem("features", trained, *arguments, *tiny.source, "--tokens=1000000").result
    assert 10_000 < everything["tokens"] < 30_000  # what was read, not what was asked for


def demo(tiny: Tiny, out: Path, *options: str) -> list[object]:
    sizes = ("--rows=4000", "--features=16", "--feature-tokens=1500", "--evaluation.spliced", "untrained")
    where = ("demo", out, "--site=resid_post.1", *tiny.source, *tiny.dictionary, *tiny.stream)
    return [*where, *EVALUATION, *sizes, *options]


def test_demo_is_the_whole_path(tiny: Tiny, monosem: Command, tmp_path: Path, look: Callable[[Path], None]) -> None:
    ended = monosem(*demo(tiny, tmp_path / "demo"))
    assert ended.status == 0 and len(ended.out.splitlines()) == 1
    summary = ended.result
    assert summary["fvu"] < summary["nulls"]["fvu"]["untrained"] and summary["l0"] == 4
    assert summary["intervals"]["fvu"][0] < summary["fvu"] < summary["intervals"]["fvu"][1]
    assert isinstance(summary["ce_recovered_zero"], float) and summary["nulls"]["ce_recovered_zero"]
    (folder,) = (tmp_path / "demo").glob("dictionaries/*")
    assert summary["dead_fraction"] == pytest.approx(load(folder).provenance.training["dead_fraction"])
    assert summary["rows"] == 63 * 64 and summary["tokens"] == 2048  # each row is served several times
    assert summary["tokens_per_second"] > summary["rows"] / summary["seconds"]  # training is a part of the whole
    look(Path(summary["report"]))
    page = Path(summary["report"]).read_text()
    assert page.startswith("<!doctype html>") or page.startswith("<!DOCTYPE html>")
    assert f"{summary['fvu']:.4g}" in page
    kept = {path: path.read_bytes() for path in (tmp_path / "demo").glob("dictionaries/*/dictionary.*")}
    again = monosem(*demo(tiny, tmp_path / "demo"))
    assert again.status == 0 and kept and all(path.read_bytes() == content for path, content in kept.items())
    same = ("fvu", "l0", "ce_recovered_zero", "ce_recovered_mean", "nulls", "intervals", "tokens", "rows")
    assert [again.result[key] for key in same] == [summary[key] for key in same]


def test_harvest_then_train_from_the_store(tiny: Tiny, trained: Path, monosem: Command, tmp_path: Path) -> None:
    sites = ("--sites", "resid_post.1", "mlp_out.1")
    harvested = monosem("harvest", tmp_path / "store", *tiny.source, *tiny.stream, *sites,
                        "--rows=3000", "--shard-rows=1000", "--json").result  # fmt: skip
    assert harvested["rows"] == 3000 and harvested["sites"] == {"resid_post.1": 32, "mlp_out.1": 32}
    assert harvested["bytes"] > 3000 * 2 * 32 * 2 and ActivationStore.open(tmp_path / "store").rows == 3000
    options = ("--store", tmp_path / "store", "--model=none", "--corpus=text:none", "--rows=2560", "--json")
    ended = monosem(*tiny.train(tmp_path / "run"), *options)  # neither model nor text is touched
    assert ended.status == 0 and ended.result["rows"] == 2560
    (folder,) = ended.result["dictionaries"].values()
    (of_model,) = trained.glob("dictionaries/*")
    assert load(folder).provenance.model == load(of_model).provenance.model
    evaluated = monosem("eval", tmp_path / "run", *tiny.source, *EVALUATION, "--json").result
    assert evaluated["fvu"] < evaluated["fvu_null_untrained"]


def test_two_sites_by_any_name(tiny: Tiny, monosem: Command, tmp_path: Path) -> None:
    sites = ("--sites", "blocks.0.hook_resid_post", "mlp_out.1", "--rows=640", "--json")
    result = monosem(*tiny.train(tmp_path / "run"), *sites).result
    assert set(result["dictionaries"]) == {"topk-resid_post.0", "topk-mlp_out.1"}
    refused(monosem("eval", tmp_path / "run", *tiny.source), "is not the folder of one dictionary", "topk-mlp_out.1")


FILES = {"empty": b"\n", "binary": bytes(range(256)), "nul": b"a\0b", "lines": b'{"text": "a"}\n{'}
BAD = {
    "model path": ("--model=/nowhere/model", "no such model: /nowhere/model"),
    "model name": ("--model=smolm2-135m", "unknown model 'smolm2-135m'", "did you mean 'smollm2-135m'?"),
    "model folder": ("--model={tmp}", "is not a model folder: it has no config.json"),
    "site kind": ("--sites=resid_pots.1", "unknown site 'resid_pots.1'", "did you mean 'resid_post.1'"),
    "layer": ("--sites=resid_post.3", "resid_post.3 is outside", "(layers 0 to 2)", "resid_post.2"),
    "hook": ("--sites=blocks.1.hook_resid_pots", "unknown hook", "did you mean 'blocks.1.hook_resid_post'"),
    "module": ("--sites=path:model.nrom", "unknown module path 'model.nrom'", "did you mean 'model.norm'"),
    "scheme": ("--corpus=txt:here", "unknown text source 'txt:'", "did you mean 'text:'?"),
    "no scheme": ("--corpus={tmp}", "names no text source: write text:"),
    "text path": ("--corpus=text:/nowhere", "no such file for text: /nowhere", "existing path"),
    "empty folder": ("--corpus=text:{tmp}", "holds no .txt or .md file"),
    "empty file": ("--corpus=text:{tmp}/empty", "has no document with a token: give a source with text"),
    "binary": ("--corpus=text:{tmp}/binary", "is not UTF-8 text (byte 128): convert it"),
    "NUL": ("--corpus=text:{tmp}/nul", "holds NUL bytes; give a text file"),
    "JSON lines": ("--corpus=jsonl:{tmp}/lines", "line 2 of", "is not valid JSON"),
    "architecture": ("--architecture=topkk", "unknown architecture 'topkk'", "did you mean 'topk'"),
    "a null as architecture": ("--architecture=pca", "'pca' cannot be trained: give abstopk or batchtopk"),
    "k": ("--k=65", "k must be from 1 to n_latents=64, got 65"),
    "n_latents": ("--n-latents=0", "n_latents must be at least 1, got 0"),
    "rows": ("--rows=0", "rows must be a whole number from 1, got 0"),
    "beta": ("--training.beta2=1", "beta2 must be at least 0 and below 1, got 1.0"),
    "aid": ("--training.aux-k=-3", "aux_k must be at least 0 (no aid), got -3"),
    "context": ("--text.context=1", "context=1 is not possible: give a whole number of at least 2"),
    "buffer": ("--stream.buffer=64", "a buffer of 64 rows cannot shuffle batches of 64", "raise buffer="),
    "buffer device": ("--stream.buffer-device=gpu", "unknown buffer_device 'gpu': use cpu, cuda or cuda:N"),
    "dtype": ("--dtype=f32", "unknown dtype 'f32'", "did you mean 'fp32'"),
    "device": ("--device=gpu", "unknown device 'gpu': use cpu, cuda or cuda:N"),
    "log": ("--log-every=0", "log_every must be at least 1, got 0"),
    "sink": ("--trackers=wandbb", "unknown tracker 'wandbb': did you mean 'wandb'?"),
    "store": ("--store={tmp}", "holds no activation store (no manifest.json): write one with", "'monosem harvest'"),
    "out": ("--out={tmp}/empty", "cannot write", "empty"),
}


@pytest.mark.parametrize("option", BAD)
def test_bad_options_leave_nothing_behind(option: str, tiny: Tiny, monosem: Command, tmp_path: Path) -> None:
    for name, content in {
        "empty": b"\n",
        "binary": bytes(range(256)),
        "nul": b"a\0b",
        "lines": b'{"text": "a"}\n{',
    }.items():
        (tmp_path / name).write_bytes(content)
    given, *parts = BAD[option]
    flag, value = given.format(tmp=tmp_path).split("=", 1)
    out, flags = (Path(value), []) if flag == "--out" else (tmp_path / "run", [flag, value])
    before = sorted(tmp_path.rglob("*"))
    refused(monosem(*tiny.train(out, *flags)), *parts)
    assert sorted(tmp_path.rglob("*")) == before


def test_misspelt_options_are_told_the_right_spelling(tiny: Tiny, monosem: Command, tmp_path: Path) -> None:
    for arguments, told in {
        ("train", tmp_path / "run", "--n-latent=5"): "no option --n-latent: did you mean --n-latents?",
        ("train", tmp_path / "run", "--penalty=tanh"): "did you mean --dictionary.penalty?",
        ("train", tmp_path / "run", "--training.rows=5"): "--training.rows of monosem train is called --rows now",
        ("train", tmp_path / "run", "--sinks=wandb"): "is called --trackers now",
        ("fast", tmp_path / "run", "--sinks=drop"): "is called --attention-sinks now",
        ("features", tmp_path / "run", tmp_path / "x", "--max-atoms=5"): "monosem features has no option --max-atoms",
        ("demo", "--out", "x"): "has no option --out: write its value without --out, as in: monosem demo OUT",
        ("features", "a", "--out=x"): "without --out, as in: monosem features DICTIONARY OUT",
        ("compare", "a", "b", "--out=x"): "the option --out of monosem compare is called --page now",
        ("train", tmp_path / "run", "more"): "has no place for 'more'",
        ("trian",): "unknown command 'trian': did you mean 'train'",
        ("bench", "stepp"): "unknown benchmark 'stepp': did you mean 'step'",
        ("train",): "monosem train needs OUT, as in: monosem train runs/first",
        ("train", tmp_path / "run", "--k=many"): "'many'",
    }.items():
        refused(monosem(*arguments), told)
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_overwritten(tiny: Tiny, trained: Path, monosem: Command, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    refused(monosem(*tiny.train(trained)), f"{trained} already holds a run: resume it", "--resume", "another folder")
    refused(monosem(*tiny.train(trained, "--resume", "--k=5")), "config.dictionary.k = 4 and this one 5")
    other = write_model(tmp_path / "other", seed=1)
    refused(monosem(*tiny.train(trained, "--resume", "--model", str(other))), "fingerprints.model", str(other))
    seed = monosem(*tiny.train(trained, "--resume", "--stream.seed=3"))
    refused(seed, "fingerprints.stream.seed = 0 and this one 3: resume with the same value, or choose another folder")
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before


def test_a_dictionary_is_used_on_its_own_model(tiny: Tiny, trained: Path, monosem: Command, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other", seed=1)
    wrong = (*tiny.source, "--model", other)
    refused(monosem("eval", trained, *wrong), "trained on", str(tiny.model), str(other), "load the model it was")
    refused(monosem("features", trained, tmp_path / "out", *wrong), "load the model it was trained on")
    refused(monosem("eval", tmp_path, *tiny.source), f"{tmp_path} is not the folder of one dictionary: none inside")
    too_many = monosem("features", trained, tmp_path / "out", *tiny.source, "--latents=65")
    refused(too_many, "latents=65 cannot be drawn: give 1 to 64")
    refused(monosem("eval", trained, *tiny.source), "ends after", "fitting the nulls takes 8192", "fit_tokens")
    assert not (tmp_path / "out").exists() and not list(trained.glob("dictionaries/*/.*"))


def test_a_dictionary_of_another_width(tiny: Tiny, trained: Path, monosem: Command, tmp_path: Path) -> None:
    (folder,) = trained.glob("dictionaries/*")
    shutil.copytree(folder, tmp_path / "moved")
    description = tmp_path / "moved" / "dictionary.json"
    record = json.loads(description.read_text())
    record["place"]["sources"][0]["site"] = "mlp_act.1"
    description.write_text(json.dumps(record))
    refused(monosem("eval", tmp_path / "moved", *tiny.source), "mlp_act.1", "has width 56, the dictionary d_in=32")


def test_an_unfinished_store_is_not_read(tiny: Tiny, monosem: Command, tmp_path: Path) -> None:
    (tmp_path / "store" / ".progress").mkdir(parents=True)
    ended = monosem(*tiny.train(tmp_path / "run", "--store", str(tmp_path / "store")))
    refused(ended, "is an unfinished activation store", "run the same harvest into it again")
    assert not (tmp_path / "run").exists()


def poisoned(tiny: Tiny, folder: Path) -> list[str]:
    """Options for a model that gives NaN on a word of document 200, the last one, on the training side."""
    shutil.copytree(tiny.text, folder / "text")
    texts = (f"the boat {'sees ' * n}the {POISON} ." for n in range(10, 100))  # two more: the, boat
    (folder / "text" / "999.txt").write_text(next(text for text in texts if not is_heldout(text, 0.2)))
    return ["--model", str(write_model(folder / "model", poisoned=True)), f"--corpus=text:{folder / 'text'}"]


def test_nan_is_traced_to_its_document(tiny: Tiny, monosem: Command, tmp_path: Path) -> None:
    options = poisoned(tiny, tmp_path)
    endless = ("--rows=1000000", "--checkpoint-minutes=0.0001")
    told = ("nan or inf at resid_post.1 for document 200, offset ", "leave that document out")
    refused(monosem(*tiny.train(tmp_path / "run", *options, *endless)), *told)
    run = Run.open(tmp_path / "run")
    state = run.latest()
    assert state is not None and run.manifest is None and not run.dictionaries
    weights: Any = state["consumers"]["topk-resid_post.1"]["dictionary"]["W_dec"]
    assert state["step"] > 50 and weights.isfinite().all()
    refused(monosem(*tiny.train(tmp_path / "run", *options, *endless, "--resume")), *told)  # it was a valid state
    at_once = monosem(*tiny.train(tmp_path / "early", *options, "--text.batch-rows=1000"))
    refused(at_once, *told)
    assert not (tmp_path / "early").exists()


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """A file system of that size; skips where none may be mounted."""
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting takes root")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.skipif(shutil.which("mount") is None, reason="no mount")
def test_a_full_disk_keeps_the_checkpoint(tiny: Tiny, monosem: Command, tmp_path: Path) -> None:
    """Room for one checkpoint and not for two; with more room the run ends in the bytes it would have had."""
    folder = tmp_path / "disk"
    with small_disk(folder, "240k"):
        refused(monosem(*tiny.train(folder / "run", "--checkpoint-minutes=1e-9")), "no space left to write", "--resume")
        run = Run.open(folder / "run")
        state = run.latest()
        assert state is not None and state["step"] == 1 and run.manifest is None
        assert not list(run.folder.rglob("*.tmp"))
        subprocess.run(["mount", "-o", "remount,size=8m", folder], check=True)
        assert monosem(*tiny.train(folder / "run", "--resume")).status == 0
        assert monosem(*tiny.train(tmp_path / "run")).status == 0
        assert results(folder / "run") == results(tmp_path / "run")


def test_a_file_that_may_not_grow(tiny: Tiny, trained: Path, monosem: Command, tmp_path: Path) -> None:
    """No file may grow beyond 20 kB: config and metrics fit, a checkpoint does not."""
    assert trained.exists()  # what is compiled and cached on first use is there
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        full = monosem(*tiny.train(tmp_path / "run", "--checkpoint-minutes=1e-9"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    refused(full, "no space left to write", "run again with --resume")
    run = Run.open(tmp_path / "run")
    assert run.latest() is None and run.manifest is None and not run.dictionaries
    assert not list(run.folder.rglob("*.tmp"))
