"""Activation sparsity drawn with plotly: error against sparsity, and recall against distance from the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ....lab.figures import COLOURS, intervals, laid_out, null_look
from .cores import GLOBAL, RANDOM, SENTENCE, LayerCores
from .curves import LOW_RANK, ORACLE, RANK_AWARE, ModuleCurves
from .curves import RANDOM as RANDOM_CHANNELS

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

NULLS = {RANDOM_CHANNELS: null_look("random"), LOW_RANK: null_look("low_rank")}
LINES = {("abs", 1.0): ("|x|", "solid"), (RANK_AWARE, 1.0): ("|x| |w|", "solid"), (ORACLE, 1.0): ("oracle", "dash"),
         (RANDOM_CHANNELS, 1.0): ("null: random", "dot"), (LOW_RANK, 0.0): ("null: low rank alone", "dot")}  # fmt: skip


def curves_figure(curves: ModuleCurves) -> Figure:
    """One map: relative error against the share of weights that are not read; the front over shares as marks."""
    from plotly.graph_objects import Figure, Scatter

    figure = Figure()
    colours = iter(COLOURS)
    for (criterion, share), (title, dash) in LINES.items():
        points = [p for p in curves.points if (p.criterion, p.share) == (criterion, share)]
        measured = {"line": {"dash": dash, "width": 1.7}, "marker": {"size": 6}}
        look = NULLS[criterion].trace() if criterion in NULLS else measured
        if criterion not in NULLS:
            look["line"]["color"] = look["marker"]["color"] = next(colours)
        figure.add_trace(
            Scatter(
                x=[p.sparsity for p in points], y=[p.error.value for p in points], name=title, mode="lines+markers",
                error_y=intervals([p.error.value for p in points], [p.error.interval for p in points]), **look,
            )
        )  # fmt: skip
    front = [p for p in curves.front() if p.share < 1]
    figure.add_trace(
        Scatter(
            x=[p.sparsity for p in front], y=[p.error.value for p in front], name="front over shares", mode="markers",
            marker={"symbol": "diamond", "size": 10, "color": COLOURS[3]}, text=[f"share {p.share:g}" for p in front],
            hovertemplate="%{text}<br>%{y:.4g}<extra></extra>",
        )
    )  # fmt: skip
    return laid_out(
        figure, {"title": {"text": "sparsity (share of weights not read)"}, "range": [0, 1]},
        {"title": {"text": "relative output error"}, "rangemode": "tozero"},
    )  # fmt: skip


def drift_figure(reports: Sequence[LayerCores]) -> Figure:
    """Recall of later token cores by the prompt's core, the global one (dashed) and a random one (dotted)."""
    from plotly.graph_objects import Figure, Scatter

    figure = Figure()
    for colour, report in zip(COLOURS, reports, strict=False):
        for name, dash in {SENTENCE: "solid", GLOBAL: "dash", RANDOM: "dot"}.items():
            figure.add_trace(
                Scatter(
                    x=report.drift["distance"], y=report.drift[name], name=f"layer {report.layer}, {name} core",
                    mode="lines+markers", line={"color": colour, "dash": dash, "width": 1.7},
                )
            )  # fmt: skip
    return laid_out(
        figure, "tokens after the prompt", {"title": {"text": "share of token cores inside"}, "range": [0, 1.02]}
    )
