"""`monosem probe` and `monosem bench layer-sweep` from end to end on a tiny model; what they refuse."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_commands
from monosem.lab.storage import read_json
from monosem.probes.files import load
from tiny_commands import Ended, Tiny

Monosem = Callable[..., Ended]
ROWS = [
    (f"the {adjective} {noun} near a boat", topic, noun)
    for topic in ("sea", "kitchen")
    for noun in tiny_commands.TOPICS[topic][:6]
    for adjective in tiny_commands.ADJECTIVES[:4]
]
QUICK = ("--repeats", "1", "--resamples", "20", "--dtype=fp32", "--device=cpu")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    named = {"sea": "sea", "kitchen": "<b>kitchen"}
    lines = [{"text": text, "label": named[topic], "noun": noun, "size": len(noun)} for text, topic, noun in ROWS]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("words", "topic"), *((text, topic) for text, topic, _ in ROWS)])
    return folder


def test_a_run_writes_results_probes_and_one_page_and_resumes(
    monosem: Monosem, tiny: Tiny, texts: Path, tmp_path: Path, look: Callable[[Path], None]
) -> None:
    command = ("probe", tmp_path / "run", "--data", f"{texts}/rows.jsonl#text,label,noun", f"--model={tiny.model}",
               "--kinds", "ridge", "logistic", "attention", "--pooling=mean", "--fit.attention.epochs=3",
               "--sites", "resid_post.[12]", *QUICK)  # fmt: skip
    ended = monosem(*command, "--json")
    assert ended.status == 0, ended.err
    result = ended.result
    assert set(result["probes"]) == {"resid_post.1", "resid_post.2"} and result["texts"] == 48
    found = result["probes"]["resid_post.1"]["ridge"]["auc"]
    assert set(found["nulls"]) == {"shuffled_labels", "token_count", "random_features"} and found["interval"]
    assert set(result["calibration"]) == {"ridge", "logistic"} and result["best"]["ridge"].startswith("resid_post")
    assert result["groups"] == 12
    probe = load(tmp_path / "run" / "probes" / "resid_post.1.ridge")
    assert probe.classes == ("<b>kitchen", "sea") and probe.source.pooling == "mean"
    look(tmp_path / "run" / "probe.html")
    page = (tmp_path / "run" / "probe.html").read_text().partition("<script")[0]
    assert "&lt;b&gt;kitchen" in page and "<b>" not in page
    for part in ("Against the layer", "Best of each kind", "Read-outs", "Token scores", "Worst errors"):
        assert part in page

    again = monosem(*command)
    assert again.status == 2 and "already holds a run" in again.err
    resumed = monosem(*command, "--resume", "--json")
    timeless = lambda one: {key: value for key, value in one.items() if key != "seconds"}  # noqa: E731
    assert resumed.status == 0 and timeless(resumed.result) == timeless(result)
    other = monosem(*command, "--resume", "--text.context=9")
    assert other.status == 2 and "read.tokens = 128" in other.err


def test_codes_of_a_dictionary_and_numbers_are_probed(
    monosem: Monosem, tiny: Tiny, trained: Path, texts: Path, tmp_path: Path
) -> None:
    shared = (f"--model={tiny.model}", *QUICK, "--examples=2")
    ended = monosem("probe", tmp_path / "codes", "--data", f"{texts}/rows.csv#words,topic", "--dictionary", trained,
                    "--kinds", "k_sparse", "mean_difference", *shared)  # fmt: skip
    assert ended.status == 0, ended.err
    results = read_json(tmp_path / "codes" / "results.json")
    assert set(results["probes"]) == {"resid_post.1", "resid_post.1 latents"}
    table = [re.split(r"\s{2,}", line) for line in ended.out.splitlines()]
    for kind in ("k_sparse", "mean_difference"):
        (told,) = [cells for cells in table if cells[0] == kind and "AUC" in cells]
        auc = results["probes"][results["best"][kind]][kind]["auc"]
        assert told[1:4] == [results["best"][kind], "AUC", f"{auc['value']:.3f}"] and auc["value"] == 1
    assert load(tmp_path / "codes" / "probes" / "resid_post.1_latents.k_sparse").source.dictionary
    numbers = monosem("probe", tmp_path / "numbers", "--data", f"{texts}/rows.jsonl#text,size", "--numbers",
                      "--kinds", "ridge", "--sites", "resid_post.0", *shared, "--json")  # fmt: skip
    assert numbers.status == 0, numbers.err
    r2 = numbers.result["probes"]["resid_post.0"]["ridge"]["r2"]  # a noun's length is told by the noun
    assert 0.8 < r2["value"] < 1 and set(r2["nulls"]) == {"shuffled_labels", "token_count", "random_features"}
    assert max(r2["nulls"].values()) < 0.1 and r2["interval"][0] < r2["value"] < r2["interval"][1]


def test_lines_without_a_label_are_left_out_and_counted(
    monosem: Monosem, tiny: Tiny, texts: Path, tmp_path: Path
) -> None:
    lines = (texts / "rows.jsonl").read_text().splitlines()
    lines[3:3] = [json.dumps({"text": "the boat", "label": None}), '{"text": "the oven", "label": NaN}']
    (tmp_path / "holes.jsonl").write_text("\n".join(lines))
    command = ("probe", tmp_path / "run", f"--data={tmp_path}/holes.jsonl", f"--model={tiny.model}", "--kinds", "ridge",
               "--sites", "resid_post.1", *QUICK)  # fmt: skip
    refused = monosem(*command)
    assert refused.status == 2 and "line 4 of" in refused.err and "--drop-missing" in refused.err
    ended = monosem(*command, "--drop-missing", "--json")
    assert ended.status == 0 and ended.result["dropped"] == 2 and ended.result["texts"] == 48
    assert "48 (2 without a label left out)" in (tmp_path / "run" / "probe.html").read_text()


def test_bad_input_is_one_sentence_and_leaves_nothing(
    monosem: Monosem, tiny: Tiny, texts: Path, trained: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "broken.jsonl").write_text('{"text": "the boat", "label": 1}\n{"text"')
    (tmp_path / "blank.jsonl").write_text('{"text": "  ", "label": 1}\n')
    (tmp_path / "one.jsonl").write_text("".join(f'{{"text": "the boat {i}", "label": "x"}}\n' for i in range(20)))
    (tmp_path / "nan.jsonl").write_text('{"text": "the boat", "label": NaN}\n')
    rows = f"{texts}/rows.jsonl#text,label"
    bad = {
        ("--data", f"{tmp_path}/none.jsonl"): "no such file of labelled texts",
        ("--data", "wikipedia"): "unknown form of labelled texts 'wikipedia'",
        ("--data", "sae-probes:105_clickbait"): "did you mean '105_click_bait'",
        ("--data", f"{tmp_path}/empty.jsonl"): "holds no text",
        ("--data", f"{tmp_path}/broken.jsonl"): "is not valid JSON",
        ("--data", f"{tmp_path}/blank.jsonl"): "line 1 of",
        ("--data", f"{tmp_path}/one.jsonl"): "every unit is labelled x",
        ("--data", f"{tmp_path}/nan.jsonl"): "has the label nan",
        ("--data", f"{texts}/rows.jsonl#text,topic"): "has no field 'topic'",
        ("--data", f"{texts}/rows.jsonl#text,label,label"): "too few for a split",
        ("--data", f"{texts}/rows.jsonl#text,label", "--numbers"): "cannot predict numbers",
        ("--data", rows, "--sites", "resid_post.9"): "did you mean resid_post.2",
        ("--data", rows, "--sites", "resid_pots.*"): "unknown pattern of sites",
        ("--data", rows, "--sites", "pattern.1"): "pattern has no fixed width",
        ("--data", rows, "--kinds", "logistics"): "did you mean 'logistic'",
        ("--data", rows, "--test-share", "0.9"): "test_share is a share",
        ("--data", rows, "--fit.k", "0"): "k must be at least 1",
        ("--data", rows, "--dictionary", str(tmp_path)): "is not the folder of one dictionary",
        ("--data", rows, "--texts", "1"): "more than 1 texts",
    }
    for options, message in bad.items():
        ended = monosem("probe", tmp_path / "out", f"--model={tiny.model}", *QUICK, *options)
        assert ended.status == 2 and message in ended.err, (options, ended.err)
        told = [line for line in ended.err.replace("\r", "\n").splitlines() if line.strip() and "%|" not in line]
        assert len(told) == 1 and told[0].startswith("monosem: "), (options, told)  # bars aside
        assert not (tmp_path / "out").exists(), options


def test_the_bench_times_a_sweep_and_compares_live_with_stored(monosem: Monosem, tiny: Tiny, texts: Path) -> None:
    ended = monosem("bench", "layer-sweep", "--data", f"{texts}/rows.jsonl#text,label", f"--model={tiny.model}",
                    "--dtype=fp32", "--kinds", "logistic", "lda", "--stored-texts=48", "--repeats=1",
                    "--resamples=20", "--json")  # fmt: skip
    assert ended.status == 0, ended.err
    assert ended.result["live_equals_stored"] == {"logistic": True, "lda": True}
    best = ended.result["best"]["lda"]
    assert set(best) == {"place", "auc", "accuracy"} and "other test units" in best["auc"]["note"]
    best = ended.result["best"]["lda"]
    assert set(best) == {"place", "auc", "accuracy"} and "other test units" in best["auc"]["note"]
    assert ended.result["probes"] == 6 and ended.result["seconds"]["total"] > 0
