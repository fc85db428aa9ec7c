"""Scores against L0, and their course in training, drawn with plotly: what trades off, and what was learned when."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...lab.evidence import Evidence
from ...lab.figures import COLOURS, GREY, intervals, laid_out, log_axis, null_look, plain
from ...lab.score_names import null_label, score_title
from ..evaluation.results import Evaluation
from .grid import Member

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

TITLES = {name: score_title(name) for name in ("fvu", "ce_recovered_zero", "ce_recovered_mean", "l0")} | {
    "dead": "share of latents that are dead"
}
"""Of the scores that are drawn."""


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
                hoverinfo="skip", line={"color": GREY, "width": 8, "shape": "hv"}, opacity=0.35,
            )
        )  # fmt: skip
    traces: dict[str, list[Member]] = {}
    for member in members:
        label = member.label if front is not None else f"{member.label}, {member.site}"
        traces.setdefault(label, []).append(member)
    for colour, (label, trace) in zip(itertools.cycle(COLOURS), traces.items(), strict=False):
        figure.add_trace(Scatter(name=plain(label), **_trace(trace, evaluations, score, colour)))
    nulls = {} if front is None else _nulls([evaluations[member.name] for member in members], score)
    for number, (name, places) in enumerate(nulls.items()):
        x, y = zip(*sorted(places), strict=True)
        figure.add_trace(
            Scatter(
                x=x, y=y, name=f"null: {plain(null_label(name))}", mode="markers",
                marker=null_look(name, number).trace(9)["marker"],
                hovertemplate=f"{plain(null_label(name))}<br>L0 %{{x:.4g}}<br>{score} %{{y:.4g}}<extra></extra>",
            )
        )  # fmt: skip
    sizes = [evaluations[member.name]["l0"].value for member in members]
    sizes += [x for places in nulls.values() for x, _ in places]
    return _laid_out(figure, log_axis(TITLES["l0"], [x for x in sizes if x > 0]), score)


def in_training(lines: Mapping[str, Sequence[Mapping[str, Any]]], score: str) -> Figure:
    """A training metric against rows, a trace a member.

    Args:
        lines: of metrics.jsonl by member name; those without the metric are left out.
    """
    from plotly.graph_objects import Figure, Scatter

    figure = Figure()
    for colour, (name, course) in zip(itertools.cycle(COLOURS), lines.items(), strict=False):
        shown = [line for line in course if line.get(score) is not None]
        if not shown:
            continue
        figure.add_trace(
            Scatter(
                x=[line["rows"] for line in shown], y=[line[score] for line in shown], name=plain(name),
                mode="lines+markers",
                line={"color": colour, "width": 1.5}, marker={"color": colour, "size": 6},
                hovertemplate=f"{plain(name)}<br>%{{x:,}} rows<br>{score} %{{y:.4g}}<extra></extra>",
            )
        )  # fmt: skip
    return _laid_out(figure, {"title": {"text": "rows"}, "rangemode": "tozero"}, score)


def _laid_out(figure: Figure, x: dict[str, Any], score: str) -> Figure:
    """The figure with its axes."""
    title = TITLES.get(score) or score_title(score)
    return laid_out(figure, x, {"title": {"text": title}, "rangemode": "tozero" if score == "dead" else "normal"})


def _trace(members: Sequence[Member], evaluations: Mapping[str, Evaluation], score: str, colour: str) -> dict[str, Any]:
    """Points of one architecture by rising L0, with a break between sizes and recipes."""
    lines: dict[tuple[Any, ...], list[Member]] = {}
    for member in members:
        same = (member.site, member.n_latents, str(member.own), str(member.varied), member.training.seed)
        lines.setdefault(same, []).append(member)
    x: list[float | None] = []
    y: list[float | None] = []
    ends: list[tuple[float, float] | None] = []
    texts: list[str | None] = []
    for line in lines.values():
        for member in sorted(line, key=lambda point: evaluations[point.name]["l0"].value):
            evidence = evaluations[member.name][score]
            x.append(evaluations[member.name]["l0"].value)
            y.append(evidence.value)
            ends.append(evidence.interval)
            texts.append(_hover(member, evaluations[member.name]["l0"], evidence))
        for column in (x, y, ends, texts):
            column.append(None)
    return {
        "x": x[:-1], "y": y[:-1], "text": texts[:-1], "mode": "lines+markers",
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {"color": colour, "size": 8}, "line": {"color": colour, "width": 1.5},
        "error_y": intervals(y[:-1], ends[:-1]),
    }  # fmt: skip


def _hover(member: Member, l0: Evidence, evidence: Evidence) -> str:
    spread = f" [{evidence.interval[0]:.4g}, {evidence.interval[1]:.4g}]" if evidence.interval else ""
    return f"{plain(member.name)}<br>L0 {l0.value:.4g}<br>{evidence.name} {evidence.value:.4g}{spread}"


def _nulls(evaluations: Iterable[Evaluation], score: str) -> dict[str, set[tuple[float, float]]]:
    """Where each null lies, those that several members share once; one without codes has no place on this axis."""
    points: dict[str, set[tuple[float, float]]] = {}
    for evaluation in evaluations:
        for name, value in evaluation[score].nulls.items():
            if evaluation["l0"].nulls.get(name, 0) > 0:
                points.setdefault(name, set()).add((evaluation["l0"].nulls[name], value))
    return points
