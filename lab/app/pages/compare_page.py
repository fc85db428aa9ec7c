"""Tables and heat maps of a comparison, from its plain values; on one HTML page that needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ...evidence import mark
from ...figures import laid_out
from ...score_names import null_label, score_label
from .figures_page import FigureSection, write_figures_page

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

LAYERS = (
    "Entry i, j is how alike layer i of the first (upwards) and layer j of the second are; for regression, how well i "
    "predicts j. In brackets 95 % intervals, in parentheses nulls, where nothing or little is shared."
)
LATENTS = (
    "In brackets 95 % intervals over latents. The heat map has some matched pairs of latents, best first: where "
    "dictionaries agree, only its diagonal stands out."
)
MATCHING = {
    "layer_match": "Share of layers whose most similar layer is the same one",
    "layer_match_with_self": "The same, each model also matched with itself",
    "depth_agreement": "Rank correlation of a layer's depth and its match's",
}
"""Scores of whole grids, with what they are."""


class Heat(NamedTuple):
    """One heat map."""

    title: str
    values: list[list[float]]
    """First row first."""
    rows: Sequence[str]
    columns: Sequence[str]

    def figure(self) -> Figure:
        """The first row stands below, as depth grows upwards."""
        from plotly import graph_objects as go

        trace = go.Heatmap(
            z=self.values, x=list(self.columns), y=list(self.rows), colorscale="Viridis",
            hovertemplate="%{y} ~ %{x}: %{z:.3f}<extra></extra>",
        )  # fmt: skip
        return laid_out(go.Figure([trace]), {"type": "category"}, {"type": "category"})


class Panel(NamedTuple):
    """A table under a title, with the heat maps that belong to it."""

    title: str
    lead: str
    table: list[list[str]]
    heats: Sequence[Heat] = ()


def write_compare_page(path: Path | str, title: str, result: dict[str, Any]) -> Path:
    """Write the page of a result; the same result gives the same bytes."""
    parts = [
        FigureSection(panel.title, panel.lead, {heat.title: heat.figure() for heat in panel.heats}, panel.table)
        for panel in panels(result)
    ]
    return write_figures_page(path, f"Comparison of {title}", {}, parts, {"result": result})


def panels(result: dict[str, Any]) -> list[Panel]:
    """Tables and heat maps of a result, from its plain values alone."""
    if result["kind"] == "dictionaries":
        return [_dictionary_panel(pair) for pair in result["pairs"]]
    return [*_matching_panels(result), *map(_model_panel, result["pairs"])]


class _Column(NamedTuple):
    heading: str
    matching: dict[str, Any]


def _matching_panels(result: dict[str, Any]) -> list[Panel]:
    """A table of all pairs for each score: how many layers find their like, beside chance."""
    columns = [_Column(pair["copy"] or " ~ ".join(pair["models"]), pair["matching"]) for pair in result["pairs"]]
    if result["overall"]:
        columns.append(_Column("all models", result["overall"]))
    panels = []
    for score, title in MATCHING.items():
        shown = [c for c in columns if any(score in scores_of for scores_of in c.matching.values())]
        if shown:
            measures = dict.fromkeys(name for c in shown for name in c.matching)
            cells = {name: [c.matching.get(name, {}).get(score) for c in shown] for name in measures}
            nulls = {str(cell["nulls"]) for line in cells.values() for cell in line if cell}
            alike = next(cell["nulls"] for line in cells.values() for cell in line if cell)
            listed = ", ".join(f"{null_label(name)} {value:.3g}" for name, value in alike.items())
            lead = f"Null: {listed}." if len(nulls) == 1 else "In parentheses the null."
            table = [["measure", *(c.heading for c in shown)]]
            for name, line in cells.items():
                table.append([score_label(name), *(_cell(cell, nulls=len(nulls) > 1) for cell in line)])
            panels.append(Panel(title, lead, table))
    return panels


def _model_panel(pair: dict[str, Any]) -> Panel:
    """The scores of equal layers beside their nulls, and a heat map of every measure."""
    a, b = pair["models"]
    heats = [Heat(score_label(name), grid["across"], *grid["sites"]) for name, grid in pair["grids"].items()]
    title = f"{a} and {b}, {pair['rows']} rows"
    names = dict.fromkeys(name for scores in pair["pairs"].values() for name in scores)
    table = [["measure", *pair["pairs"]]]
    for name in names:
        table.append([score_label(name), *(_cell(scores.get(name), nulls=True) for scores in pair["pairs"].values())])
    missing = [f"{name} is not measured: {reason}." for name, reason in pair.get("missing", {}).items()]
    return Panel(title, " ".join([LAYERS, *missing]), table, heats)


def _dictionary_panel(pair: dict[str, Any]) -> Panel:
    table = [["score", "value", "nulls", "n"]]
    for name, score in pair["scores"].items():
        table.append([score_label(name), _cell(score), _nulls(score), f"{score['n']} {score['unit']}"])
    reasons = dict.fromkeys(
        f"The null {null_label(null)} is not measured: {reason}."
        for score in pair["scores"].values() for null, reason in score.get("missing", {}).items()
    )  # fmt: skip
    heats = []
    if "grid" in pair:
        places = [str(i) for i in range(len(pair["grid"]))]
        heats = [Heat("|cosine| of matched latents, best first", pair["grid"], places, places)]
    return Panel(" and ".join(pair["dictionaries"]), " ".join([LATENTS, *reasons]), table, heats)


def _cell(score: dict[str, Any] | None, *, nulls: bool = False) -> str:
    if score is None:
        return ""
    spread = f" [{score['interval'][0]:.3g}, {score['interval'][1]:.3g}]" if score["interval"] else ""
    null_values = _nulls(score) if nulls else ""
    marked = mark(score["value"], score["nulls"], score.get("better", "higher"), score["interval"])
    return f"{score['value']:.3g}{spread}" + (f" ({null_values})" if null_values else "") + marked


def _nulls(score: dict[str, Any]) -> str:
    """The nulls of a score beside their names, with those that could not be measured."""
    known = [f"{null_label(name)} {value:.3g}" for name, value in score["nulls"].items()]
    return ", ".join([*known, *(f"{null_label(name)} not measured" for name in score.get("missing", {}))])
