"""`monosem compare`: models and their copies, dictionaries, ITDAs, the page, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from monosem.lab.app.commands.compare_models import ModelComparer, ModelComparison
from monosem.lab.app.options import ModelText
from monosem.lab.app.pages.compare_page import panels
from monosem.lab.models.loading import load_model
from monosem.lab.streams.activation_stream import ActivationStream
from monosem.lab.text.corpus import Corpus
from monosem.saes.analysis.similarity.measures import SimilarityConfig
from monosem.saes.analysis.similarity.representations import Representations
from monosem.saes.registry import build
from monosem.saes.training.itda.growth_config import GrowthConfig
from monosem.saes.training.itda.trainer import build_itda
from tiny_commands import Ended, Tiny, write_model, write_text

torch.set_num_threads(1)

Command = Callable[..., Ended]
SMALL = (
    "--rows=900",
    "--measured=300",
    "--anchors=40",
    "--dtype=fp32",
    "--device=cpu",
    "--evidence-layers=1",
    "--ridge=1e-3",
)
MEASURES = {"cka", "cka_unbiased", "svcca", "regression", "relative", "jaccard", "jaccard_raw"}


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of another seed."""
    return write_model(tmp_path_factory.mktemp("other") / "model", seed=1)


def text(tiny: Tiny) -> str:
    return f"--corpus=text:{tiny.text}"


def itda(tiny: Tiny, folder: Path, site: str = "resid_post.1", place: Path | None = None) -> Path:
    model = load_model(tiny.model, dtype="fp32", device="cpu")
    corpus = Corpus(f"text:{place or tiny.text}", model.tokenizer, context=32, batch_rows=8)
    stream = ActivationStream(model, corpus, [site], batch=64, buffer=512, epochs=1)
    build_itda(stream, site, GrowthConfig(k=4, tau=0.2, max_atoms=400, rows=1500, warmup=0)).save(folder)
    return folder


def test_models_and_a_copy_are_compared_layer_by_layer(
    tiny: Tiny, other: Path, monosem: Command, tmp_path: Path, look: Callable[[Path], None]
) -> None:
    page = tmp_path / "page.html"
    ended = monosem("compare", tiny.model, other, "--against", "rotated", text(tiny), *SMALL, "--page", page, "--json")
    assert ended.status == 0, ended.err
    copy, strangers = ended.result["pairs"]
    assert copy["copy"] == "rotated" and strangers["copy"] is None and copy["rows"] == 900
    assert set(copy["grids"]) == set(copy["matching"]) == MEASURES
    for name, found in copy["matching"].items():
        assert found["layer_match"]["value"] == 1 and found["layer_match"]["nulls"]["chance"] == pytest.approx(1 / 3)
        grid = copy["grids"][name]
        assert grid["sites"] == [[f"resid_post.{i}" for i in range(3)]] * 2
        assert all(grid["across"][i][i] == pytest.approx(1, abs=0.02) for i in range(3))
    (scores,) = strangers["pairs"].values()
    (same,) = copy["pairs"].values()
    for name in MEASURES:
        assert scores[name]["value"] < same[name]["value"] and {"shuffled"} <= scores[name]["nulls"].keys()
        assert scores[name]["interval"][0] <= scores[name]["value"] <= scores[name]["interval"][1]
    look(page)
    content = page.read_text()
    start = content.index('id="data">') + len('id="data">')
    data = json.loads(content[start : content.index("</script>", start)])
    assert len(data["figures"]) == 2 * len(MEASURES) and "default-src 'none'" in content
    shown = next(iter(data["figures"].values()))["data"][0]
    assert shown["type"] == "heatmap" and shown["z"] == copy["grids"][next(iter(copy["grids"]))]["across"]
    assert data["result"]["pairs"] == ended.result["pairs"]


def test_dictionaries_are_matched_beside_both_nulls(
    tiny: Tiny, trained: Path, monosem: Command, tmp_path: Path
) -> None:
    second = build("topk", d_in=32, n_latents=64, k=4)
    second.W_dec.data.copy_(torch.randn(64, 32, generator=torch.Generator().manual_seed(0)))
    second.save(tmp_path / "random")
    run = (trained, tmp_path / "random", text(tiny), "--dtype=fp32", "--device=cpu", "--covariance-rows=200")
    ended = monosem("compare", *run, "--text.context=32", "--json")
    assert ended.status == 0, ended.err
    (pair,) = ended.result["pairs"]
    assert set(pair["scores"]) == {"mmcs", "mmcs_back", "one_to_one", "found"} and len(pair["grid"]) == 64
    assert set(pair["scores"]["mmcs"]["nulls"]) == {"random", "covariance"}
    assert pair["scores"]["found"]["value"] == 0 < pair["scores"]["mmcs"]["value"]
    told = monosem("compare", *run[:-1], "--covariance-rows=0")
    assert told.status == 0 and "One to one" in told.out and "covariance" not in told.out


def test_a_null_that_could_not_be_measured_is_told_everywhere(
    trained: Path, tiny: Tiny, monosem: Command, tmp_path: Path, look: Callable[[Path], None]
) -> None:
    second = build("topk", d_in=32, n_latents=64, k=4)
    second.W_dec.data.copy_(torch.randn(64, 32, generator=torch.Generator().manual_seed(0)))
    second.save(tmp_path / "random")
    page = tmp_path / "page.html"
    ended = monosem("compare", trained, tmp_path / "random", "--corpus=text:/none", "--json", "--page", page)
    assert ended.status == 2  # a text that is not there is refused at once
    few = write_text(tmp_path / "few", 1)
    ended = monosem("compare", trained, tmp_path / "random", f"--corpus=text:{few}", "--json", "--page", page)
    assert ended.status == 3
    (pair,) = ended.result["pairs"]
    reason = pair["scores"]["mmcs"]["missing"]["covariance"]
    assert set(pair["scores"]["mmcs"]["nulls"]) == {"random"} and reason
    said = f"monosem: the null covariance of mmcs, mmcs_back, one_to_one, found could not be measured: {reason}"
    assert ended.err.splitlines()[-1] == said
    look(page)
    assert "covariance not measured" in page.read_text() and "The null covariance is not measured" in page.read_text()
    ended = monosem("compare", tmp_path / "random", trained, text(tiny))
    assert ended.status == 3 and "does not name its model" in ended.err and "covariance not measured" in ended.out


def test_a_measure_that_shared_rows_are_too_few_for_is_told() -> None:
    def model(name: str, first: int) -> Representations:
        rng = torch.Generator().manual_seed(first)
        numbers = torch.arange(first, first + 120)
        acts = {f"resid_post.{layer}": torch.randn(120, 4, generator=rng) for layer in range(2)}
        return Representations(name, acts, torch.stack([numbers // 10, numbers % 10], 1), "one text")

    options = ModelComparison(rows=120, measured=40, warm_up=100, evidence_layers=1)
    comparer = ModelComparer(ModelText(), options, SimilarityConfig(anchors=8), ("cka", "jaccard"))
    pair = comparer._pair(model("one", 0), model("two", 60)).to_json()
    assert pair["rows"] == 60 and set(pair["matching"]) == {"cka"} and set(pair["missing"]) == {"jaccard"}
    assert "a warm-up of 100 rows leaves none of the 60" in pair["missing"]["jaccard"]
    (panel,) = panels({"kind": "models", "pairs": [pair], "overall": {}})[-1:]
    assert "jaccard is not measured: no ITDA of one" in panel.lead


def test_itdas_of_one_text_share_atoms_and_of_two_are_refused(tiny: Tiny, monosem: Command, tmp_path: Path) -> None:
    mine, deeper = itda(tiny, tmp_path / "a"), itda(tiny, tmp_path / "b", "resid_post.2")
    ended = monosem("compare", mine, deeper, "--covariance-rows=0", "--warm-up=256", "--json")
    assert ended.status == 0, ended.err
    scores = ended.result["pairs"][0]["scores"]
    assert 0 < scores["jaccard"]["value"] < 1 and scores["jaccard"]["nulls"]["chance"] > 0
    assert "past row 256 of" in scores["jaccard"]["note"] and "mmcs" in scores
    foreign = itda(tiny, tmp_path / "c", place=write_text(tmp_path / "text", 60))
    hashes = [json.loads((folder / "dictionary.json").read_text())["provenance"]["training"]["text"]["hash"][:16]
              for folder in (mine, foreign)]  # fmt: skip
    ended = monosem("compare", mine, foreign, "--covariance-rows=0")
    assert ended.status == 2 and all(one in ended.err for one in hashes) and hashes[0] != hashes[1]


BAD = {
    "alone": (("{model}",), "alone is no comparison"),
    "nothing": ((), "nothing to compare"),
    "twice": (("{model}", "{model}"), "is given twice"),
    "mixed": (("{model}", "{trained}"), "is a model and", "compare like with like"),
    "copies": (("{trained}", "{narrow}", "--against=rotated"), "leave it out with dictionaries"),
    "width": (("{trained}", "{narrow}", "--covariance-rows=0"), "width 32 and 16 share no space"),
    "copy": (("{model}", "--against=rotatd"), "unknown copy of a model 'rotatd': did you mean 'rotated'"),
    "measure": (("{model}", "--against=rotated", "--measures=ckaa"), "unknown measure 'ckaa': did you mean 'cka'"),
    "layer": (("{model}", "--against=rotated", "--sites=resid_post.7"), "resid_post.7 is outside"),
    "kind": (("{model}", "--against=rotated", "--sites=resid_pots"), "unknown site 'resid_pots'"),
    "model": (("{model}", "{tmp}/none"), "no such model"),
    "rows": (
        ("{model}", "--against=rotated", "--rows=200", "--measured=200"),
        "a warm-up of 256 rows leaves none of the 200",
    ),
    "every": (("{model}", "--against=rotated", "--every=0"), "every must be at least 1, got 0"),
    "measured": (("{model}", "--against=rotated", "--measured=5"), "measured=5 must be from 16 to rows=900"),
    "nan": (("{model}", "{poisoned}", "--corpus=text:{poison}"), "the model gives nan or inf at"),
    "folder": (("{model}", "--against=rotated", "--page={tmp}"), "is a folder: give a file"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(case: str, tiny: Tiny, trained: Path, monosem: Command, tmp_path: Path) -> None:
    narrow = build("topk", d_in=16, n_latents=8, k=2)
    narrow.W_dec.data.normal_()
    narrow.save(tmp_path / "narrow")
    places = {"model": tiny.model, "trained": trained, "tmp": tmp_path, "narrow": tmp_path / "narrow"}
    if case == "nan":
        places |= {"poisoned": write_model(tmp_path / "poisoned", 1, poisoned=True), "poison": tmp_path / "poison"}
        (tmp_path / "poison").mkdir()
        for number in range(60):
            (tmp_path / "poison" / f"{number}.txt").write_text("the boat finds a poison wave " * 6)
    arguments, *parts = BAD[case]
    given = [argument.format(**places) for argument in arguments]
    small = [option for option in SMALL if option.partition("=")[0] not in {one.partition("=")[0] for one in given}]
    corpus = [] if case == "nan" else [text(tiny)]
    ended = monosem("compare", *given, *corpus, *small)
    assert (ended.status, ended.out) == (2, "") and "Traceback" not in ended.err, ended.err
    assert all(part in ended.err.splitlines()[-1] for part in ("monosem: ", *parts)), ended.err
