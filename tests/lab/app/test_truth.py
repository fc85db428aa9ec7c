"""`monosem truth` on a tiny model: results, the page, resuming, and bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from monosem.lab.app.cli import main
from tiny_commands import Ended
from tiny_truth import write_truth_model

SMALL = ("--sites", "resid_post.[01]", "--statements=360", "--truth.methods", "sawmil", "svm_last",
         "--truth.fit.strengths", "0.1", "1", "--truth.resamples=20", "--truth.fit.sawmil.steps=25",
         "--causal.statements=6", "--dtype=fp32", "--device=cpu")  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_truth_model(tmp_path_factory.mktemp("truth") / "model")


@pytest.fixture(scope="module")
def run(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "truth"
    assert main(["truth", str(folder), f"--model={model}", *SMALL]) == 0
    return folder


def test_every_site_method_and_criterion_is_measured(run: Path):
    result = json.loads((run / "truth.json").read_text())
    assert list(result["sites"]) == ["resid_post.0", "resid_post.1"]
    for found in result["sites"].values():
        assert set(found) == {"sawmil", "svm_last"}
        for one in found.values():
            assert set(one["scores"]["mcc"]["nulls"]) == {"shuffled_labels", "random_direction", "token_count"}
            assert one["geometry"]["cosine_of_orthogonal_signals"] < 0
    best = max(result["sites"], key=lambda site: result["sites"][site]["sawmil"]["selection"])
    assert result["best"] == best
    assert set(result["criteria"]) == {"correlation", "generalisation", "selectivity", "manipulation", "locality"}
    assert {"mcc_affirmed_to_negated", "mcc_to_capitals"} <= set(result["criteria"]["generalisation"])
    assert set(result["prompting"]) == {"prompting", "prompting_fitted"}
    assert json.loads((run / "manifest.json").read_text())["sites"] == 2


def test_the_page_needs_no_network_and_shows_tokens(run: Path, look: Callable[[Path], None]):
    look(run / "truth.html")
    page = (run / "truth.html").read_text()
    assert "default-src 'none'" in page and "Worst errors" in page
    assert page.count('class="tok on"') > 50 and "Five criteria" in page


def test_a_probe_of_every_site_can_be_read_back(run: Path):
    from monosem.probes.files import load

    probe = load(run / "probes" / "resid_post.1.sawmil")
    assert probe.classes == ("true", "false", "neither") and probe.source.site == "resid_post.1"
    assert probe.directions.norm(dim=1).tolist() == pytest.approx([1, 1, 1], abs=1e-5)


def test_resuming_does_nothing_twice_and_ends_the_same(run: Path, model: Path, monosem: Callable[..., Ended]):
    before = (run / "truth.json").read_bytes()
    (run / "sites" / "resid_post.1.json").unlink()
    told = monosem("truth", run, f"--model={model}", *SMALL, "--resume", "--json")
    assert told.status == 0
    old, new = json.loads(before), told.result
    assert {**old, "seconds": 0} == {**new, "seconds": 0}
    other = monosem("truth", run, f"--model={model}", *SMALL, "--resume", "--seed=1")
    assert other.status == 2 and "config.seed = 0" in other.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--sites", "resid_post.9"), "outside"),
        (("--sites", "resid_past.*"), "unknown pattern of sites"),
        (("--statements=3",), "at least 36"),
        (("--data=nothing.tsv",), "no such data 'nothing.tsv'"),
        (("--truth.alpha=0.01",), "calibration points"),
        (("--truth.methods", "svn"), "unknown method 'svn'"),
    ],
)
def test_bad_input_is_one_sentence(options, message, model: Path, tmp_path: Path, monosem: Callable[..., Ended]):
    told = monosem("truth", tmp_path / "out", f"--model={model}", *SMALL, *options)
    assert told.status == 2, told.err
    last = told.err.strip().splitlines()[-1]
    assert last.startswith("monosem: ") and message in last
    assert not (tmp_path / "out" / "truth.json").exists()
