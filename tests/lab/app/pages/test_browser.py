"""Pages in a real browser: nothing is cut, plots stay in the window. Other tests look at the pages that they make."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import Browser, why_not
from monosem.lab.app.pages.figures_page import FigureSection, write_figures_page
from monosem.lab.app.pages.report import write_report
from monosem.lab.evidence import MARK, Evidence
from monosem.lab.figures import COLOURS, GREY, laid_out, log_axis, null_look, plain
from monosem.saes.evaluation.results import Evaluation

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
LONG = "jumprelu-/a/folder/with/a-very-long-name/resid_mid.12-to-mlp_out.12-n16384-k64-seed0"
BROKEN = (
    "<style>.plot > div { width: 700px } .facts { overflow: hidden; white-space: nowrap }"
    "thead th { position: static !important }</style></head>"
)
EVIL = "<b>bold</b> & %{x} </script>"


def wide_page(path: Path) -> Path:
    """Long names, many columns, long titles of axes, a null beside its score, and markup in every name."""
    from plotly.graph_objects import Figure, Heatmap, Scatter

    figure = Figure()
    for number, name in enumerate((LONG, EVIL, "third")):
        x = [3 * number + 3, 40, 250]
        figure.add_trace(Scatter(x=x, y=[0.2, 0.5, 0.9], name=plain(name), line={"color": COLOURS[number]}))
    figure.add_trace(Scatter(x=[9], y=[0.7], name="null: untrained", mode="markers", **null_look("untrained").trace()))
    figure.add_trace(Scatter(x=[3, 250], y=[1, 1], name="clean", mode="lines", line={"color": GREY, "dash": "dash"}))
    title = "cross-entropy recovered; 0 is zero ablation, 1 the clean model, and more than 1 is better than the model"
    laid_out(figure, log_axis(f"{title}, on the other axis", [3, 250]), title)
    names = [f"/some/folder/{i}/model layer {i}" for i in range(4)]
    heat = laid_out(Figure([Heatmap(z=[[0.1, 0.2, 0.3, 0.4]] * 4, x=names, y=names)]), {"type": "category"})
    table = [
        ["name", *(f"column_{i}" for i in range(14))],
        [LONG, *["0.123 [0.1, 0.2]"] * 13, f"0.5{MARK}"],
        [EVIL, *["1"] * 14],
    ]
    parts = [FigureSection(LONG, EVIL, {LONG: figure, "Heat": heat}, table)]
    return write_figures_page(path, LONG, {LONG: LONG, "Empty": "", EVIL: EVIL}, parts, {})


def wide_report(path: Path) -> Path:
    """A report with scores that do not beat their nulls, and with one log point."""
    nulls = {"untrained": 0.2, "pca": 0.123456789, "a_null_with_a_long_name": 0.5, LONG: 0.4}
    scores = {
        name: Evidence(name, 0.3, (0.29, 0.31), nulls, 120_000, "documents", LONG)
        for name in ("fvu", "mse_dimension", "ce_recovered_zero", "unheard_of_score_with_a_long_name")
    }
    metrics = [{"rows": 64, "consumer": "sae", "fvu": 0.9, "l0": 4.0, "dead": 0.0, "lr": 1e-3}]
    evaluation = Evaluation(LONG, LONG, "resid_post.1", LONG, scores)
    return write_report(path, title=LONG, evaluation=evaluation, metrics=metrics, notes=[LONG, EVIL])


@pytest.mark.parametrize("make", [wide_page, wide_report])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_cut_at_any_width(make, scheme: str, browser: Browser, tmp_path: Path) -> None:
    assert browser.look(make(tmp_path / "page.html"), scheme=scheme) == {}


def test_a_fault_is_seen(browser: Browser, tmp_path: Path) -> None:
    page = wide_page(tmp_path / "page.html")
    text = page.read_text(encoding="utf-8")
    page.write_text(text.replace("</head>", BROKEN), encoding="utf-8")
    faults = browser.look(page, (420,))[420]
    for kind in ("the document is", "cut: dl.facts", "scrolls away: thead", "outside: "):
        assert any(fault.startswith(kind) for fault in faults), (kind, faults)


def test_names_from_data_stand_as_they_are(browser: Browser, tmp_path: Path) -> None:
    page = wide_page(tmp_path / "page.html")
    keys = browser.texts(page, ".keys button")
    assert keys[:3] == [LONG, EVIL, "third"] and len(keys) == 5
    assert browser.texts(page, "b") == []
