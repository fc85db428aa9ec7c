"""`monosem finetune` on a small random model: what it writes, its nulls, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from monosem.lab.app.cli import main
from monosem.lab.models.sites import Site
from monosem.saes.files import load
from monosem.saes.registry import build
from tiny_commands import Tiny

SITE = "resid_post.1"
MEASURE = ("--tokens=300", "--evaluation.ce-tokens=200")


@pytest.fixture(scope="module")
def trained(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finetune") / "start"
    options = ("--sites", SITE, "--n-latents=64", "--k=4", "--rows=1024", *tiny.stream)
    assert main(["train", str(out), *tiny.source, *options]) == 0
    return out


def arguments(tiny: Tiny, trained: Path, out: Path, *options: str) -> list[str]:
    return ["finetune", str(trained), str(out), *tiny.source, *MEASURE, "--rows=1000", *options]


def test_both_trainings_are_measured_beside_the_start(
    tiny: Tiny, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    options = ("--loss=kl", "--local=0.2", "--downstream=0.1", "--lr=3e-3")
    assert main([*arguments(tiny, trained, out, *options), "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert json.loads((out / "finetuning.json").read_text()) == result
    assert set(result["dictionaries"]) == {"kl", "local"}
    tuned = load(Path(result["dictionaries"]["kl"]))
    assert tuned.place.source.site == Site.parse(SITE) and tuned.provenance.training["end_to_end"]["downstream"] == 0.1
    scores = result["evaluation"]
    assert scores["kl"] < scores["kl_null_before"] and "kl_null_local" in scores
    assert main(arguments(tiny, trained, out, *options)) == 2  # taken
    assert main(arguments(tiny, trained, out, *options, "--resume")) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--loss=mse"], "mse"),
        (["--local=2"], "local is a share from 0 to 1"),
        (["--log-every=0"], "log_every must be at least 1"),
    ],
)
def test_bad_options_are_one_sentence(
    tiny: Tiny, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(arguments(tiny, trained, tmp_path / "run", *options)) == 2
    assert message in capsys.readouterr().err


def test_a_dictionary_in_closed_form_is_refused(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    closed = build("pca", d_in=32, n_latents=8, k=8)
    closed.place = SITE
    closed.save(tmp_path / "pca")
    assert main(arguments(tiny, tmp_path / "pca", tmp_path / "run")) == 2
    assert "is not trained" in capsys.readouterr().err
