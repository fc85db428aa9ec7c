"""`monosem atoms`: files, nulls and the page from the tiny model, and what is refused without a trace."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from monosem.lab.app.cli import main
from monosem.lab.models.sites import Site
from monosem.saes.files import load
from tiny_commands import Ended, Tiny, write_model

Command = Callable[..., Ended]
SIZES = ("--tokens=200", "--sink-tokens=100", "--moment-tokens=600", "--fit-tokens=200", "--rows=128")


def command(tiny: Tiny, out: Path, *options: object) -> list[str]:
    return ["atoms", str(out), *tiny.source, *tiny.stream, *SIZES, "--n-latents=64", "--k=4", *map(str, options)]


@pytest.fixture(scope="module")
def reported(tiny: Tiny, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One report on a dictionary and on atoms trained for it."""
    folder = tmp_path_factory.mktemp("atoms") / "report"
    assert main(command(tiny, folder, "--dictionaries", trained)) == 0
    return folder


def test_the_report_holds_every_figure_beside_its_null(reported: Path) -> None:
    told = json.loads((reported / "report.json").read_text())
    names = [one["name"] for one in told["subjects"]]
    assert names[0] == "neurons" and names[2:] == ["atoms-128", "atoms-1280"] and told["site"] == "resid_post.1"
    assert told["ridge"] > 0 and told["counts"]["rows"] == told["counts"]["rows_seen"] == 200
    for one in told["subjects"]:
        for null in ("untrained", "pca", "neurons", "rotation"):
            assert one[f"r2_null_{null}"] is not None
        assert {f"q_star_null_{null}" for null in ("rotation", "random", "random_own")} <= one.keys()
        assert 0 <= one["q_star"] <= 1 and one["coherence_max"] <= 1.001 and "r2_with_sinks" in one
        assert one["coherence"]["data"].keys() == one["coherence"]["nulls"]["random"].keys()
    small, large = (load(reported / "dictionaries" / name) for name in names[2:])
    assert small.n_latents == large.n_latents == 64 and small.place.source.site == Site.parse("resid_post.1")
    assert told["subjects"][2]["trained_rows"] == 128 and told["subjects"][3]["trained_rows"] == 1280


def test_the_page_shows_all_of_it_without_a_network(reported: Path, look: Callable[[Path], None]) -> None:
    look(reported / "atoms.html")
    page = (reported / "atoms.html").read_text()
    start = page.index('id="data">') + len('id="data">')
    data = json.loads(page[start : page.index("</script>", start)])
    assert len(data["figures"]) == 2 and "src=" not in page[:start] and "default-src 'none'" in page
    traces = [trace["name"] for trace in data["figures"]["plot0"]["data"]]
    assert "neurons, random null" in traces and all(
        f'<th scope="row">{n}</th>' in page for n in ("neurons", "atoms-128")
    )


BAD = {
    "no dictionary": (("--dictionaries", "{tmp}/none"), "is not the folder of one dictionary"),
    "two sites": (("--dictionaries", "{run}", "--site", "resid_post.0"), "the report is on one site"),
    "site": (("--site", "resid_pots.1"), "unknown site 'resid_pots.1'"),
    "layer": (("--site", "resid_post.9"), "resid_post.9 is outside"),
    "k": (("--k", "65"), "k must be from 1 to n_latents"),
    "ridge": (("--ridge=-1",), "ridge is a share"),
    "too little text": (("--moment-tokens=90000000", "--site=resid_post.1"), "the training text ends after"),
    "store": (("--store", "{tmp}", "--site=resid_post.1"), "holds no activation store"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    name: str, tiny: Tiny, monosem: Command, trained: Path, tmp_path: Path
) -> None:
    options, told = BAD[name]
    ended = monosem(*command(tiny, tmp_path / "out", *(one.format(tmp=tmp_path, run=trained) for one in options)))
    assert (ended.status, ended.out) == (2, "") and "Traceback" not in ended.err
    assert told in ended.err.splitlines()[-1] and not (tmp_path / "out").exists()


def test_a_store_of_another_model_is_refused(tiny: Tiny, monosem: Command, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other", seed=1)
    harvest = ("harvest", tmp_path / "store", *tiny.source, f"--model={other}", *tiny.stream)
    assert monosem(*harvest, "--sites", "resid_post.1", "--rows=700").status == 0
    ended = monosem(*command(tiny, tmp_path / "out", "--store", tmp_path / "store", "--site=resid_post.1"))
    assert ended.status == 2 and "was harvested from" in ended.err and not (tmp_path / "out").exists()
