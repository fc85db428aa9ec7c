"""`write_figures_page`: plots and tables of one measurement on an HTML page that needs no network."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ...storage import atomic_path
from ...table import as_html
from .report import embedded_json, plotly_code
from .report_sections import asset

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


HEIGHT, LINE, ROOM = 460, 24, 6
"""Pixels of a panel and of a line in its legend, and the lines that it has room for."""


class Part(NamedTuple):
    """A heading with what is under it."""

    heading: str
    lead: str
    """A paragraph: what is shown, and what the nulls are."""
    figures: Mapping[str, Figure] = {}
    """By title."""
    table: Sequence[Sequence[str]] = ()
    """A heading and lines of cells."""
    markup: str = ""
    """HTML to stand after the table; whatever of it comes from data is escaped already."""


def write_figures_page(
    path: Path | str, title: str, facts: Mapping[str, str], parts: Sequence[Part], data: Mapping[str, Any]
) -> Path:
    """Write the page; the same input gives the same bytes. All text is escaped.

    Args:
        facts: shown under the title.
        data: JSON values that the page carries beside the figures.
    """
    figures: dict[str, Any] = {}
    body = []
    for part in parts:
        panels = []
        for heading, figure in part.figures.items():
            anchor = f"plot{len(figures)}"
            figures[anchor] = figure.to_plotly_json()
            panels.append(
                f'<figure class="panel plot"><h3>{escape(heading)}</h3>'
                f'<div id="{anchor}" style="height: {_height(figures[anchor])}px"></div></figure>'
            )
        body.append(f'<h2>{escape(part.heading)}</h2><p class="lead">{escape(part.lead)}</p>')
        body += [f'<div class="plots">{"".join(panels)}</div>'] if panels else []
        body += [f'<div class="panel"><div class="scroll">{as_html(part.table)}</div></div>'] if part.table else []
        body.append(part.markup)
    told = "".join(f"<div><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>" for key, value in facts.items())
    page = {
        "title": escape(title),
        "css": asset("report.css"),
        "facts": f'<dl class="facts">{told}</dl>',
        "sections": "",
        "body": "".join(body),
        "data": embedded_json({"figures": figures, **data}),
        "plotly": plotly_code(),
        "code": asset("figures_page.js"),
    }
    text = re.sub(r"\{\{(\w+)\}\}", lambda match: page[match[1]], asset("report.html"))
    with atomic_path(path) as beside:
        beside.write_text(text, encoding="utf-8")
    return Path(path)


def _height(figure: Mapping[str, Any]) -> int:
    """Pixels of its panel: names of traces below the plot need lines of their own."""
    below = figure["layout"].get("legend", {}).get("orientation") == "h"
    return HEIGHT + LINE * max(0, len(figure["data"]) - ROOM) * below
