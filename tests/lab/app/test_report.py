"""The report page: numbers in, the same numbers out, no markup from data and no network."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from monosem.lab.app.pages.page import embedded_json
from monosem.lab.app.pages.report import write_report
from monosem.lab.evidence import Evidence
from monosem.saes.evaluation.results import Evaluation
from monosem.saes.features.blocks import Windows
from monosem.saes.features.collect import Features, Logits
from monosem.saes.features.examples import BINS_PER_OCTAVE, OCTAVES, ExampleTable, bin_of

EVIL = "</script><b onmouseover=alert(1)>&\"'{{css}}"


def features() -> Features:
    """Three latents over 1,000 tokens: one that fires, one without examples, one dead."""
    bins = np.zeros((3, OCTAVES * BINS_PER_OCTAVE), np.int32)
    values = np.float32([6, 2.5])
    bins[0, bin_of(values)] = [40, 10]
    bins[1, 80] = 3
    windows = Windows(
        value=values,
        doc=np.array([7, 8]),
        offset=np.array([70, 80]),
        tokens=np.array([[-1, 1, 2, 3], [1, 2, 0, 1]], np.int32),
        acts=np.float32([[np.nan, 0.123456, 6, np.nan], [0, 0, 2.5, 0]]),
    )
    strongest = ExampleTable(np.zeros(2, np.int64), np.zeros(2, np.int64), np.array([1, 5]), windows)
    random = ExampleTable(np.zeros(1, np.int64), np.array([1]), np.array([1]), windows.take(np.array([1])))
    pairs = np.array([[0, 1], [2, 3], [3, 0]], np.int32), np.float32([[2, 1], [3, 2], [1, 0.5]])
    return Features(
        source={"model": EVIL, "site": "resid_post.1", "dictionary": "TopK", "context": [2, 1]},
        measured=1000,
        count=np.array([50, 3, 0]),
        maximum=np.float32([6, 1, 0]),
        bins=bins,
        l0=np.array([0, 900, 100]),
        latents=np.array([0, 2]),
        strongest=strongest,
        random=random,
        logits=Logits(pairs[0][[0, 2]], pairs[1][[0, 2]], pairs[0][[1, 2]], -pairs[1][[1, 2]]),
        texts={0: "\n", 1: " one", 2: EVIL, 3: "\N{SNOWMAN}"},
    )


def evaluation() -> Evaluation:
    fvu = Evidence("fvu", 0.2125, (0.2, 0.23), {"untrained": 0.98, EVIL: 0.41}, 120, "documents", "documents kept out")
    dead = Evidence("dead", 0.125, n=1000, unit="tokens")
    broken = Evidence("kl", float("nan"), nulls={"untrained": float("inf")}, n=3)
    return Evaluation("TopK(d_in=4)", EVIL, "resid_post.1", "documents kept out",
                      {"fvu": fvu, "dead": dead, "kl": broken})  # fmt: skip


METRICS = [
    {"step": 10, "rows": 100, "consumer": "sae", "fvu": 0.9, "l0": 32.0, "dead": 0.0, "lr": 1e-3},
    {"step": 10, "rows": 100, "consumer": "stream", "dropped": 3},
    {"step": 20, "rows": 200, "consumer": "sae", "fvu": None, "l0": 32.0, "dead": 0.25, "lr": 5e-4},
]


def everything(path: Path) -> Path:
    return write_report(
        path, title=f"Run {EVIL}", evaluation=evaluation(), metrics=METRICS, features=features(),
        manifest={"rows": 200, "finished": "2026-01-02T03:04:05+00:00", "note": EVIL},
        summary={"seconds": 300.0, "tokens": 12345}, notes=[f"Kept 10 % {EVIL}"],
    )  # fmt: skip


class Page(HTMLParser):
    """Tags, the text outside scripts, and what scripts hold."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        tag, attributes = self.tags[-1] if self.tags else ("", {})
        if tag == "script" and data.strip():
            self.scripts.append((attributes, data))
        elif data.strip():
            self.text.append(data)

    @property
    def data(self) -> dict:
        (found,) = [json.loads(text) for attributes, text in self.scripts if attributes.get("id") == "data"]
        return found

    @property
    def ids(self) -> set[str | None]:
        return {attributes["id"] for _, attributes in self.tags if "id" in attributes}


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return everything(tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture(scope="module")
def page(path) -> Page:
    return Page(path)


def test_scores_stand_beside_their_nulls_in_the_data_and_in_the_markup(page):
    fvu = page.data["scores"][0]
    assert (fvu["value"], fvu["low"], fvu["high"], fvu["n"]) == (0.2125, 0.2, 0.23, 120)
    assert fvu["nulls"] == [{"name": "untrained", "value": 0.98}, {"name": EVIL, "value": 0.41}]
    cells = page.text
    for shown in ("0.2125", "0.2 to 0.23", "120 documents", "0.98", "0.41"):
        assert shown in cells
    assert "documents kept out" in cells


def test_numbers_that_are_not_finite_become_null(page):
    kl = page.data["scores"][2]
    assert (kl["value"], kl["nulls"][0]["value"]) == (None, None)


def test_curves_are_columns_by_consumer(page):
    assert page.data["curves"] == {
        "sae": {"rows": [100, 200], "fvu": [0.9, None], "l0": [32, 32], "dead": [0, 0.25], "lr": [1e-3, 5e-4]}
    }


def test_cards_hold_what_the_features_say(page):
    shown, made = page.data["features"], features()
    card, dead = shown["cards"]
    assert (card["latent"], card["count"], card["density"], card["maximum"]) == (
        0,
        50,
        pytest.approx(0.05),
        6,
    )
    assert [e["value"] for e in card["examples"]] == [6, 2.5]
    assert card["examples"][0]["acts"] == [0.1235, 6, None]  # the window starts where the document does
    assert card["examples"][0]["focus"] == 1
    assert card["examples"][1]["copies"] == 5
    for example, original in zip(card["examples"], made.examples(0), strict=True):
        assert tuple(shown["texts"][str(token)] for token in example["tokens"]) == original.strings
    assert card["logits"] == {"top": [["\n", 2], [" one", 1]], "bottom": [[EVIL, -3], ["\N{SNOWMAN}", -2]]}
    assert sum(card["histogram"]["counts"]) == 50
    assert (dead["latent"], dead["count"], dead["examples"]) == (2, 0, [])


def test_histograms_count_every_live_latent_and_every_token(page):
    latents = page.data["latents"]
    assert (latents["total"], latents["dead"], sum(latents["density"]["counts"])) == (3, 1, 2)
    edges, counts = latents["density"]["edges"], latents["density"]["counts"]
    for density in (0.05, 0.003):
        (at,) = [i for i in range(len(counts)) if edges[i] <= np.log10(density) < edges[i + 1]]
        assert counts[at] == 1
    assert latents["l0"] == {"first": 1, "counts": [900, 100]}


def test_no_text_from_data_becomes_markup(page, path):
    assert not [tag for tag, _ in page.tags if tag == "b"]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert sum(tag == "script" for tag, _ in page.tags) == 3
    assert page.data["title"] == f"Run {EVIL}"
    assert f"Run {EVIL}" in page.text
    assert f"Kept 10 % {EVIL}" in page.text
    assert path.read_text(encoding="utf-8").count("--paper: #fbfbfa") == 1  # a placeholder in data stays text


def test_embedded_json_round_trips_and_holds_no_markup():
    value = {"a": [EVIL, "<!--<script>", "\u2028", "\ud800", 0.1, None]}
    assert json.loads(embedded_json(value)) == value
    assert not set("<>&\u2028") & set(embedded_json(value))


def test_the_page_asks_for_nothing(page, path):
    links = [v for _, attributes in page.tags for k, v in attributes.items() if k in ("src", "href", "action", "data")]
    assert links
    assert all(link.startswith("#") or link == "data:," for link in links if link)
    (policy,) = [a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    styles = path.read_text(encoding="utf-8").split("<style>")[1].split("</style>")[0]
    assert not re.search(r"url\(|@import|https?:", styles)
    assert path.stat().st_size < 6 << 20


def test_every_element_the_scripts_look_for_is_there(page):
    ours = page.scripts[-1][1]
    wanted = set(re.findall(r'getElementById\("([\w-]+)"\)|control\("([\w-]+)"\)', ours))
    assert {name for pair in wanted for name in pair if name} <= page.ids


def test_the_same_input_gives_the_same_bytes(path, tmp_path):
    assert everything(tmp_path / "again.html").read_bytes() == path.read_bytes()


def test_a_page_without_anything_still_stands(tmp_path):
    page = Page(write_report(tmp_path / "bare.html", title="bare"))
    assert (page.data["scores"], page.data["curves"], page.data["features"]) == ([], {}, None)
    assert not page.ids & {"curves", "density", "features", "scores"}


def test_more_latents_than_cards_are_drawn_from_the_live_ones(tmp_path):
    page = Page(write_report(tmp_path / "few.html", title="few", features=features(), cards=1))
    assert [card["latent"] for card in page.data["features"]["cards"]] == [0]
    assert page.data["features"]["collected"] == 2


def test_an_interrupted_write_leaves_the_old_page(path, tmp_path):
    kept = tmp_path / "kept.html"
    kept.write_text("old")
    with pytest.raises(TypeError):
        write_report(kept, title="new", manifest={"not JSON": object()})
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("kept.html", "old")]
