"""Scores against L0, and their course in training, drawn with plotly: what trades off, and what was learned when."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...lab.evidence import Evidence
from ...lab.figures import COLOURS
from ..evaluation.results import Evaluation
from .grid import Member

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

SYMBOLS = {
    "untrained": "x-thin-open", "pca": "diamond-open", "neurons": "square-open", "linear": "triangle-up-open",
    "own_layer": "star-open",
}  # fmt: skip
TITLES = {
    "fvu": "fraction of variance unexplained (FVU)",
    "ce_recovered_zero": "cross-entropy recovered (0: zero ablation, 1: clean)",
    "ce_recovered_mean": "cross-entropy recovered (0: mean ablation, 1: clean)",
    "l0": "L0, active latents a token",
    "dead": "share of latents that are dead",
}


def against_l0(
    members: Sequence[Member], evaluations: Mapping[str, Evaluation], score: str, front: Sequence[str] | None
) -> Figure:
    """The figure of what reconstructs the same, or of everything.

    Args:
        members: that have the score; points of one architecture and one size are joined by a line.
        evaluations: by member name.
        score: the name of one of their scores.
        front: names of the members on the Pareto front, by rising L0. None where they reconstruct different sites:
            traces then name theirs, and nulls, which differ by site, are left out.
    """
    from plotly.graph_objects import Figure, Scatter

    figure = Figure()
    if front is not None:
        points = [(evaluations[name]["l0"].value, evaluations[name][score].value) for name in front]
        figure.add_trace(
            Scatter(
                x=[x for x, _ in points], y=[y for _, y in points], name="Pareto front", mode="lines",
                hoverinfo="skip", line={"color": "#9aa3af", "width": 8, "shape": "hv"}, opacity=0.35,
            )
        )  # fmt: skip
    traces: dict[str, list[Member]] = {}
    for member in members:
        label = member.label if front is not None else f"{member.label}, {member.site}"
        traces.setdefault(label, []).append(member)
    for colour, (label, mine) in zip(itertools.cycle(COLOURS), traces.items(), strict=False):
        figure.add_trace(Scatter(name=label, **_trace(mine, evaluations, score, colour)))
    nulls = {} if front is None else _nulls([evaluations[member.name] for member in members], score)
    for name, places in nulls.items():
        x, y = zip(*sorted(places), strict=True)
        figure.add_trace(
            Scatter(
                x=x, y=y, name=f"null: {name}", mode="markers",
                marker={"symbol": SYMBOLS.get(name, "circle-open"), "size": 9, "color": "#6b7280",
                        "line": {"width": 1.5, "color": "#6b7280"}},
                hovertemplate=f"{name}<br>L0 %{{x:.4g}}<br>{score} %{{y:.4g}}<extra></extra>",
            )
        )  # fmt: skip
    return _laid_out(figure, {"title": {"text": TITLES["l0"]}, "type": "log"}, score)


def in_training(lines: Mapping[str, Sequence[Mapping[str, Any]]], score: str) -> Figure:
    """A training metric against rows, a trace a member.

    Args:
        lines: of metrics.jsonl by member name; those without the metric are left out.
    """
    from plotly.graph_objects import Figure, Scatter

    figure = Figure()
    for colour, (name, mine) in zip(itertools.cycle(COLOURS), lines.items(), strict=False):
        shown = [line for line in mine if line.get(score) is not None]
        if not shown:
            continue
        figure.add_trace(
            Scatter(
                x=[line["rows"] for line in shown], y=[line[score] for line in shown], name=name, mode="lines+markers",
                line={"color": colour, "width": 1.5}, marker={"color": colour, "size": 4},
                hovertemplate=f"{name}<br>%{{x:,}} rows<br>{score} %{{y:.4g}}<extra></extra>",
            )
        )  # fmt: skip
    return _laid_out(figure, {"title": {"text": "rows"}}, score)


def _laid_out(figure: Figure, x: dict[str, Any], score: str) -> Figure:
    """With its axes, and the names of the traces below, where they leave the plot its width."""
    figure.update_layout(
        xaxis=x,
        yaxis={"title": {"text": TITLES.get(score, score)}, "rangemode": "tozero" if score == "dead" else "normal"},
        legend={"orientation": "h", "x": 0, "y": -0.22, "yanchor": "top"},
        template="plotly_white", margin={"l": 60, "r": 15, "t": 15, "b": 50}, hovermode="closest",
    )  # fmt: skip
    return figure


def _trace(members: Sequence[Member], evaluations: Mapping[str, Evaluation], score: str, colour: str) -> dict[str, Any]:
    """Points of one architecture by rising L0, with a break between sizes and recipes."""
    lines: dict[tuple[Any, ...], list[Member]] = {}
    for member in members:
        same = (member.site, member.n_latents, str(member.own), str(member.varied), member.training.seed)
        lines.setdefault(same, []).append(member)
    x: list[float | None] = []
    y: list[float | None] = []
    above: list[float | None] = []
    below: list[float | None] = []
    texts: list[str | None] = []
    for line in lines.values():
        for member in sorted(line, key=lambda one: evaluations[one.name]["l0"].value):
            found = evaluations[member.name][score]
            low, high = found.interval or (found.value, found.value)
            x.append(evaluations[member.name]["l0"].value)
            y.append(found.value)
            above.append(high - found.value)
            below.append(found.value - low)
            texts.append(_hover(member, evaluations[member.name]["l0"], found))
        for column in (x, y, above, below, texts):
            column.append(None)
    return {
        "x": x[:-1], "y": y[:-1], "text": texts[:-1], "mode": "lines+markers",
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {"color": colour, "size": 8}, "line": {"color": colour, "width": 1.5},
        "error_y": {"type": "data", "symmetric": False, "array": above[:-1], "arrayminus": below[:-1],
                    "thickness": 1.2, "width": 3},
    }  # fmt: skip


def _hover(member: Member, l0: Evidence, found: Evidence) -> str:
    spread = f" [{found.interval[0]:.4g}, {found.interval[1]:.4g}]" if found.interval else ""
    return f"{member.name}<br>L0 {l0.value:.4g}<br>{found.name} {found.value:.4g}{spread}"


def _nulls(evaluations: Iterable[Evaluation], score: str) -> dict[str, set[tuple[float, float]]]:
    """Where each null lies, those that several members share once; one without codes has no place on this axis."""
    found: dict[str, set[tuple[float, float]]] = {}
    for evaluation in evaluations:
        for name, value in evaluation[score].nulls.items():
            if evaluation["l0"].nulls.get(name, 0) > 0:
                found.setdefault(name, set()).add((evaluation["l0"].nulls[name], value))
    return found
