"""`write_sweep_page`: a sweep on one HTML page that needs no network: scores against L0, and the table."""

from __future__ import annotations

import re
from html import escape
from pathlib import Path

from ...saes.sweeps.plot import TITLES
from ...saes.sweeps.results import SweepResult
from ...saes.sweeps.table import as_html, cells
from ..storage import atomic_path
from .report import embedded_json, plotly_code
from .report_sections import asset

LEGEND = (
    "Bars: 95 % interval over held-out documents. Wide grey line: Pareto front of all trained dictionaries. Grey open "
    "marks: nulls, which have learned nothing (untrained) or second moments only (pca, linear), or whose latents write "
    "to their own layer alone (own_layer)."
)
SEVERAL = (
    "Scores are relative to what is reconstructed: two members compare where that is the same. Those have a plot of "
    "their own below, with their front and nulls."
)


def write_sweep_page(path: Path | str, result: SweepResult) -> Path:
    """Write the page of an evaluated sweep; the same result gives the same bytes.

    Raises:
        InputError: nothing was evaluated.
    """
    figures, panels = {}, []
    several = len(result.sites()) > 1
    for site in [*([None] if several else []), *result.sites()]:
        for score in result.plotted(site):
            anchor = f"plot{len(figures)}"
            figures[anchor] = result.plot(score, site).to_plotly_json()
            title = f"{TITLES[score]}, all dictionaries" if site is None else f"{TITLES[score]} at {site}"
            panels.append(f'<figure class="panel plot tall"><h3>{escape(title)}</h3><div id="{anchor}"></div></figure>')
    lead = f"{LEGEND} {SEVERAL}" if several else LEGEND
    any_of = next(iter(result.evaluations.values()))
    facts = {"Model": any_of.model, "Sites": ", ".join(result.sites()), "Dictionaries": str(len(result.members)),
             "Held out": any_of.held_out}  # fmt: skip
    told = "".join(f"<div><dt>{key}</dt><dd>{escape(value)}</dd></div>" for key, value in facts.items())
    table = as_html(cells(result.table()))
    page = {
        "title": escape(f"Sweep of {len(result.members)} dictionaries"),
        "css": asset("report.css") + ".plot.tall > div { height: 460px; }\n",
        "facts": f'<dl class="facts">{told}</dl>',
        "sections": "",
        "body": f'<h2>Against L0</h2><p class="lead">{lead}</p><div class="plots">{"".join(panels)}</div>'
        f'<h2>Dictionaries</h2><p class="lead">Every score with its interval; more are in results.json and '
        f'results.csv.</p><div class="panel"><div class="scroll">{table}</div></div>',
        "data": embedded_json({"figures": figures, "results": result.to_json()}),
        "plotly": plotly_code(),
        "code": asset("sweep_page.js"),
    }
    text = re.sub(r"\{\{(\w+)\}\}", lambda match: page[match[1]], asset("report.html"))
    with atomic_path(path) as beside:
        beside.write_text(text, encoding="utf-8")
    return Path(path)
