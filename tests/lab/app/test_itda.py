"""`monosem itda` from end to end: what it makes, what it says to bad input, and that other commands take the result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from monosem.lab.models.sites import Site
from monosem.saes.architectures.itda.dictionary import ITDA
from monosem.saes.files import load
from tiny_commands import Ended, Tiny, results

Command = Callable[..., Ended]
GROWTH = ("--rows=2000", "--max-atoms=90", "--k=4", "--tau=0.05")


def build(tiny: Tiny, out: Path, *options: str) -> list[str]:
    sites = ("--sites", "resid_post.0", "resid_post.1")
    return ["itda", str(out), *tiny.source, *sites, *GROWTH, *tiny.stream, "--json", *options]


@pytest.fixture(scope="module")
def run(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from monosem.lab.app.cli import main

    folder = tmp_path_factory.mktemp("itda") / "run"
    assert main(build(tiny, folder)) == 0
    return folder


def test_one_for_each_site(tiny: Tiny, monosem: Command, run: Path, tmp_path: Path) -> None:
    ended = monosem(*build(tiny, tmp_path / "run"))
    assert ended.status == 0 and len(ended.out.splitlines()) == 1 and "tok/s" in ended.err
    built = ended.result["built"]
    assert set(built) == {"itda-resid_post.0", "itda-resid_post.1"}
    for name, told in built.items():
        itda = load(ended.result["dictionaries"][name])
        assert isinstance(itda, ITDA) and itda.n_latents == told["atoms"] <= 90 and itda.warmup_atoms == 32
        assert itda.text_hash == told["text_hash"] and itda.place.source.site == Site.parse(name.removeprefix("itda-"))
        assert itda.source(itda.n_latents - 1).token
    assert results(tmp_path / "run") == results(run)
    again = monosem(*build(tiny, tmp_path / "run", "--resume"))
    assert again.status == 0 and results(tmp_path / "run") == results(run)


def test_other_commands_take_it(tiny: Tiny, monosem: Command, run: Path, tmp_path: Path) -> None:
    itda = run / "dictionaries" / "itda-resid_post.1"
    options = ("--tokens=500", "--evaluation.ce-tokens=100", "--evaluation.fit-tokens=300")
    found = monosem("eval", itda, *tiny.source, *options, "--json").result
    assert found["fvu"] < found["fvu_null_untrained"] and found["l0"] <= 4
    collected = monosem("features", itda, tmp_path / "features", "--tokens=500", "--latents=20", *tiny.source, "--json")
    assert collected.status == 0 and collected.result["tokens"] >= 500


@pytest.mark.parametrize(
    ("options", "words"),
    (
        (("--sites", "resid_post.9"), "resid_post.9"),
        (("--tau", "0"), "tau is a share of |x|^2 or 1 - cos"),
        (("--criterion", "paper_code", "--paper-tau", "0.5"), "paper_tau=0.5 can never be exceeded at width 32"),
        (("--store", "nowhere"), "nowhere holds no activation store"),
    ),
)
def test_bad_input_leaves_nothing(
    tiny: Tiny, monosem: Command, tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    ended = monosem(*build(tiny, tmp_path / "run", *options))
    assert (ended.status, ended.out) == (2, "") and words in ended.err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_not_overwritten(tiny: Tiny, monosem: Command, run: Path) -> None:
    before = results(run)
    assert "already holds a run" in monosem(*build(tiny, run)).err
    ended = monosem(*build(tiny, run, "--resume", "--tau=0.1"))
    assert ended.status == 2 and "tau" in ended.err.splitlines()[-1] and results(run) == before


def test_bench(tiny: Tiny, monosem: Command, tmp_path: Path) -> None:
    sizes = (
        "--n-latents=48",
        "--itda-rows=600",
        "--sae-rows=1200",
        "--ks",
        "4",
        "--batch=64",
        "--buffer=256",
        "--tau=0.02",
    )
    measured = ("--tokens=200", "--evaluation.ce-tokens=30", "--evaluation.fit-tokens=100", "--rounds=1")
    kept = ("--keep", tmp_path / "kept")
    found = monosem("bench", "itda", "--site=resid_post.1", *sizes, *measured, *kept, *tiny.source, "--json").result
    assert found["atoms"] == 48 and found["stopped"] == "max_atoms" and found["sae_rows"] >= 1200
    assert all(value > 0 for value in (*found["ratio"].values(), found["forward_seconds_a_row"]))
    names = {"itda_4", "sae_4"}
    assert set(found["encode"]["microseconds_a_token"]) == names and set(found["encode"]["ratio"]) == {"4"}
    nulls = {"random_rows_4", "random_directions_4"}
    assert set(found["scores"]) == names | nulls
    one = found["scores"]["itda_4"]
    assert one["l0"]["value"] <= 4 and set(one["ce_recovered_zero"]["nulls"]) >= {"untrained", "pca"}
    assert one["fvu"]["value"] < found["scores"]["random_directions_4"]["fvu"]["value"]
    assert {path.name for path in (tmp_path / "kept").iterdir()} == names
    refused = monosem("bench", "itda", "--ks", "0", *tiny.source)
    assert refused.status == 2 and "ks are from 1" in refused.err


def test_bench_charges_a_row_that_is_served_again_one_forward_pass(
    tiny: Tiny, monosem: Command, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    harvested = monosem("harvest", store, "--sites", "resid_post.1", *tiny.source, "--rows=600", "--json").result
    rows = harvested["rows"]
    sizes = ("--n-latents=48", "--itda-rows=300", "--sae-rows=1800", "--ks", "4", "--batch=64", "--buffer=256",
             "--forward-rows=64")  # fmt: skip
    measured = ("--tokens=100", "--evaluation.ce-tokens=20", "--evaluation.fit-tokens=100", "--rounds=1")
    found = monosem(
        "bench", "itda", "--site=resid_post.1", *sizes, *measured, f"--store={store}", *tiny.source, "--json"
    ).result
    assert found["forward_rows"] == {"itda": found["itda_rows"], "sae": rows} and rows < 1800 <= found["sae_rows"]
    seconds, forward = found["seconds"], found["forward_seconds_a_row"]
    ours = seconds["itda"] + found["itda_rows"] * forward
    assert found["ratio"]["wall"] == pytest.approx(ours / (seconds["sae_4"] + rows * forward))
