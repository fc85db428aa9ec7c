"""Suites of metrics: the table, groups by name, groups that cannot be measured, and the file that documents it all."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from monosem.lab.app.bench import eval as bench_eval
from monosem.lab.app.commands.suites import GROUPS, SUITES, described
from monosem.lab.evidence import Evidence
from tiny_commands import Tiny, clocked

EVALUATION = ("--tokens=700", "--evaluation.ce-tokens=80", "--evaluation.fit-tokens=200")
DETECTION = ("--detection.tokens=2500", "--detection.length=8", "--detection.shown=3", "--detection.scored=3",
             "--detection.latents=4", "--detection.judges", "rule")  # fmt: skip
META = ("--meta.steps=20", "--meta.batch=32")


def test_the_table() -> None:
    assert SUITES["core"] == ("core",) and SUITES["full"] == tuple(GROUPS)
    assert set(GROUPS) == {"core", "probing", "absorption", "tpp", "scr", "ravel", "detection", "meta"}
    assert all(group.about and "\n" not in group.about for group in GROUPS.values())


def test_scores_are_described_by_their_groups() -> None:
    found = described(["detection_rule", "detection_auc_rule", "detection_similar_embedding", "x"], GROUPS["detection"])
    assert found["detection_rule"].startswith("balanced accuracy over windows in which the latent fires and windows")
    assert found["detection_auc_rule"].startswith("the same windows without a threshold")
    assert found["detection_similar_embedding"].startswith("balanced accuracy where each silent window")
    assert found["x"] == GROUPS["detection"].about
    found = described(["fvu", "fvu_resid_post.1"], GROUPS["core"])
    assert found == {"fvu": "fraction of variance unexplained", "fvu_resid_post.1": "the FVU of one of several sites"}


def test_some_groups_are_measured_documented_and_saved(tiny: Tiny, trained: Path, monosem) -> None:
    only = ("--only", "core", "detection", "meta")
    result = monosem("eval", trained, *tiny.source, *EVALUATION, *DETECTION, *META, *only, "--json").result
    assert result["schema"] == 1 and result["groups"] == ["core", "detection", "meta"] and result["skipped"] == {}
    scores = set(result["about"])
    assert "l0" not in result["unbeaten"] and "dead" not in result["unbeaten"]  # sizes are not judged
    assert {"fvu", "ce_recovered_zero", "detection_rule", "detection_auc_rule", "meta_explained_variance"} < scores
    for name in scores:
        assert result["about"][name] and {name, f"{name}_low", f"{name}_high", f"{name}_n"} <= set(result), name
        assert any(key.startswith(f"{name}_null_") for key in result), name
    vague = [name for name, text in result["about"].items() if text in {group.about for group in GROUPS.values()}]
    assert not vague
    (folder,) = trained.glob("dictionaries/*")
    assert json.loads((folder / "evaluation.json").read_text()) == result
    details = json.loads((folder / "detection.json").read_text())
    assert details["schema"] == 1 and len(details["latents"]) == result["detection_rule_n"]
    assert Evidence(**details["scores"]["detection_rule"]).value == result["detection_rule"]


def test_a_group_that_cannot_be_measured_is_skipped_with_its_reason(
    tiny: Tiny, trained: Path, monosem, caplog: pytest.LogCaptureFixture
) -> None:
    groups = ("--only", "detection", "meta")
    ended = monosem("eval", trained, *tiny.source, *DETECTION, "--detection.scored=400", *META, *groups, "--json")
    assert ended.status == 3 and set(ended.result["skipped"]) == {"detection"}
    assert re.match(r"monosem: detection could not be measured: \d+ latents fire in 400", ended.err.splitlines()[-1])
    assert "latents fire in 400 windows of each half" in ended.result["skipped"]["detection"]
    assert "detection is skipped: " in caplog.text and "fvu" not in ended.result
    assert 0 < ended.result["meta_explained_variance"] <= 1
    (folder,) = trained.glob("dictionaries/*")
    before = (folder / "evaluation.json").read_text()
    ended = monosem("eval", trained, *tiny.source, *DETECTION, "--detection.scored=400", "--only", "detection")
    assert ended.status == 2 and re.search(r"nothing could be measured. detection: \d+ latents fire in 400", ended.err)
    assert (folder / "evaluation.json").read_text() == before and not (folder / "evaluation.stopped").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--only", "detections"), "unknown group of metrics 'detections': did you mean 'detection'?"),
        (("--only", "core", "probing", "--probing.datasets", "96_spam"), "did you mean '96_spam_is'"),
        (("--only", "meta", "--meta.width=2"), "width is a share of the latents"),
    ],
)
def test_what_is_misspelt_is_refused_before_anything_is_measured(
    tiny: Tiny, trained: Path, monosem, options: tuple[str, ...], said: str
) -> None:
    ended = monosem("eval", trained, *tiny.source, *options)
    assert ended.status == 2 and said in ended.err


def test_the_cost_beside_a_plain_forward(tiny: Tiny, monosem, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock by which an evaluation takes 0.6 s, a forward 0.2 s and one as far as needed 0.3 s; on the processor
    every look at the clock is a second later."""
    clocked(monkeypatch, bench_eval, 0.6, 0.2, 0.3)
    looks = itertools.count()
    monkeypatch.setattr(bench_eval, "time", SimpleNamespace(process_time=lambda: float(next(looks))))
    made = ("--site=resid_post.1", "--n-latents=64", "--k=4", "--rounds=2")
    result = monosem("bench", "eval", *tiny.source, *EVALUATION, *made, "--json").result
    assert 700 <= result["tokens"] < 700 + 8 * 32
    assert 80 <= result["loss_tokens"] < 80 + 8 * 32 and result["layers"] == {"sites": ["resid_post.1"], "model": 3}
    assert result["seconds"] == {"eval": 0.6, "forward": 0.2, "as_far": 0.3}
    assert result["cpu_seconds"] == {"eval": 1, "forward": 1, "as_far": 1}  # of two rounds each the mean
    assert result["ratio"]["seconds"] == pytest.approx({"forward": 3, "as_far": 2})
    assert result["ratio"]["cpu_seconds"] == {"forward": 1, "as_far": 1}
