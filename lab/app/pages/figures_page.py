"""`write_figures_page`: plots and tables of one measurement on an HTML page that needs no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ...markup import Markup, element, joined
from ...table import as_html
from .page import write_page

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


class FigureSection(NamedTuple):
    """A heading with what is under it."""

    heading: str
    lead: str
    """A paragraph: what is shown, and what the nulls are."""
    figures: Mapping[str, Figure] = {}
    """By title."""
    table: Sequence[Sequence[str]] = ()
    """A heading and lines of cells."""
    markup: Markup = Markup()
    """HTML to stand after the table (see `monosem.lab.markup`)."""


def write_figures_page(
    path: Path | str, title: str, facts: Mapping[str, str], parts: Sequence[FigureSection], data: Mapping[str, Any]
) -> Path:
    """Write the page; the same input gives the same bytes. All text is escaped.

    Args:
        facts: shown under the title.
        data: JSON values that the page carries beside the figures.
    """
    figures: dict[str, Any] = {}
    body: list[Markup] = []
    for part in parts:
        panels = []
        for heading, figure in part.figures.items():
            anchor = f"plot{len(figures)}"
            figures[anchor] = figure.to_plotly_json()
            panels.append(element("figure", element("h3", heading), element("div", id=anchor), class_="panel plot"))
        body += [element("h2", part.heading), element("p", part.lead, class_="lead")]
        body += [element("div", *panels, class_="plots large")] if panels else []
        body += [element("div", scrolling(as_html(part.table)), class_="panel")] if part.table else []
        body.append(part.markup)
    embedded = {"figures": figures, **data}
    return write_page(path, title=title, facts=facts, body=joined(body), data=embedded, code=("figures_page.js",))


def scrolling(table: Markup) -> Markup:
    """A table in a box of its own, which scrolls where the window is narrower; its heading and first column stay."""
    return element("div", table, class_="scroll", tabindex=0, role="region", aria_label="Table")
