"""Commands on dictionaries of other libraries, whose files name their model in their own way or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from monosem.saes import formats, load
from tiny_commands import Ended, Tiny

Command = Callable[..., Ended]
EVALUATION = ("--tokens=1024", "--evaluation.ce-tokens=300", "--evaluation.fit-tokens=400", "--json")


@pytest.fixture(scope="module")
def written(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained dictionary in the formats of three libraries, at `resid_post.1` and of no model of ours."""
    folder = tmp_path_factory.mktemp("foreign")
    dictionary = load(trained)
    dictionary.provenance.model = {"name": "gpt2-small"}
    for name, form in (
        ("sae-lens", "sae-lens"),
        ("layers.1", "sparsify"),
        ("dictionary_learning", "dictionary-learning"),
    ):
        formats.write(dictionary, folder / name, form)
    return folder


def of_model(written: Path, name: str, folder: Path) -> Path:
    """A copy of the SAELens folder that says the name of its model, and nothing of ours."""
    shutil.copytree(written / "sae-lens", folder)
    config = json.loads((folder / "cfg.json").read_text())
    config["metadata"] = {"sae_lens_version": "6.0", "hook_name": "blocks.1.hook_resid_post", "model_name": name}
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder


def test_folders_of_three_libraries_are_evaluated(tiny: Tiny, written: Path, monosem: Command, tmp_path: Path) -> None:
    same = of_model(written, str(tiny.model), tmp_path / "same")
    fvu = []
    for place in (same, written / "layers.1", written / "dictionary_learning"):
        ended = monosem(
            "eval", place, *tiny.source, *EVALUATION, "--model-is-the-same", "--results", tmp_path / place.name
        )
        assert ended.status == 0, ended.err
        assert (tmp_path / place.name / "evaluation.json").is_file() and not (place / "evaluation.stopped").exists()
        fvu.append(ended.result["fvu"])
    assert fvu[0] < 1 and fvu == pytest.approx([fvu[0]] * 3, rel=1e-3)


def test_a_local_folder_is_taken_for_the_model_that_the_file_names_and_one_line_says_so(
    tiny: Tiny, written: Path, monosem: Command, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    llama = of_model(written, "meta-llama/Llama-3.2-1B", tmp_path / "llama")
    ended = monosem("features", llama, tmp_path / "features", *tiny.source, "--tokens=512", "--latents=8", "--json")
    assert ended.status == 0, ended.err
    lines = [line for line in caplog.messages if "is taken for it" in line]
    assert len(lines) == 1 and "'meta-llama/Llama-3.2-1B'" in lines[0] and str(tiny.model) in lines[0]


def test_another_model_is_refused_in_one_sentence_with_the_override(
    tiny: Tiny, written: Path, monosem: Command, tmp_path: Path
) -> None:
    gpt2 = of_model(written, "gpt2-small", tmp_path / "gpt2")
    ended = monosem("eval", gpt2, *tiny.source, *EVALUATION)
    assert ended.status == 2 and len(ended.err.strip().splitlines()) == 1
    for part in ("'gpt2-small'", str(tiny.model), "family", "--model-is-the-same"):
        assert part in ended.err
    ended = monosem("features", gpt2, tmp_path / "out", *tiny.source, "--tokens=512", "--latents=8",
                    "--model-is-the-same", "--json")  # fmt: skip
    assert ended.status == 0, ended.err


def test_a_place_can_be_said_where_the_file_says_none(
    tiny: Tiny, written: Path, monosem: Command, tmp_path: Path
) -> None:
    unplaced = shutil.copytree(written / "layers.1", tmp_path / "unplaced")
    ended = monosem("eval", unplaced, *tiny.source, *EVALUATION)
    assert ended.status == 2 and "--place 'resid_post" in ended.err
    ended = monosem("eval", unplaced, *tiny.source, *EVALUATION, "--place", "mlp_act.1")
    assert ended.status == 2 and "has width 56, the dictionary d_in=32" in ended.err, ended.err
    ended = monosem("eval", unplaced, *tiny.source, *EVALUATION, "--place", "blocks.1.hook_resid_post")
    assert ended.status == 0 and ended.result["fvu"] < 1


def test_foreign_dictionaries_are_compared(written: Path, monosem: Command) -> None:
    ended = monosem("compare", written / "layers.1", written / "dictionary_learning", "--covariance-rows=0", "--json")
    assert ended.status == 0, ended.err
    assert all(pair["scores"] for pair in ended.result["pairs"])
