"""A score against L0, drawn with plotly: what trades off, where the front is, and where nothing was learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...lab.evidence import Evidence
from ..scores import Evaluation
from .grid import Member

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

COLOURS = ("#0b6bcb", "#e07a0c", "#17936a", "#b3409b", "#7b61d1", "#8a6d3b", "#c2323f", "#2a9fb0", "#6b7280", "#a3a117")
SYMBOLS = {"untrained": "x-thin-open", "pca": "diamond-open", "neurons": "square-open"}
TITLES = {
    "fvu": "fraction of variance unexplained (FVU)",
    "ce_recovered_zero": "cross-entropy recovered (0: zero ablation, 1: clean)",
    "ce_recovered_mean": "cross-entropy recovered (0: mean ablation, 1: clean)",
}


def against_l0(
    members: Sequence[Member], evaluations: Mapping[str, Evaluation], score: str, front: Sequence[str]
) -> Figure:
    """The figure of one site.

    Args:
        members: all of one site; points of one architecture and one size are joined by a line.
        evaluations: by member name.
        score: the name of one of their scores.
        front: names of the members on the Pareto front, by rising L0.
    """
    from plotly.graph_objects import Figure, Scatter

    figure = Figure()
    points = [(evaluations[name]["l0"].value, evaluations[name][score].value) for name in front]
    figure.add_trace(
        Scatter(
            x=[x for x, _ in points], y=[y for _, y in points], name="Pareto front", mode="lines", hoverinfo="skip",
            line={"color": "#9aa3af", "width": 8, "shape": "hv"}, opacity=0.35,
        )
    )  # fmt: skip
    architectures = dict.fromkeys(member.architecture for member in members)
    for colour, architecture in zip(_endless(COLOURS), architectures, strict=False):
        mine = [member for member in members if member.architecture == architecture]
        figure.add_trace(Scatter(name=architecture, **_trace(mine, evaluations, score, colour)))
    for name, places in _nulls(evaluations, score).items():
        x, y = zip(*sorted(places), strict=True)
        figure.add_trace(
            Scatter(
                x=x, y=y, name=f"null: {name}", mode="markers",
                marker={"symbol": SYMBOLS.get(name, "circle-open"), "size": 9, "color": "#6b7280",
                        "line": {"width": 1.5, "color": "#6b7280"}},
                hovertemplate=f"{name}<br>L0 %{{x:.4g}}<br>{score} %{{y:.4g}}<extra></extra>",
            )
        )  # fmt: skip
    figure.update_layout(
        xaxis={"title": {"text": "L0, active latents a token"}, "type": "log"},
        yaxis={"title": {"text": TITLES.get(score, score)}},
        template="plotly_white", margin={"l": 60, "r": 15, "t": 15, "b": 50}, hovermode="closest",
    )  # fmt: skip
    return figure


def _trace(members: Sequence[Member], evaluations: Mapping[str, Evaluation], score: str, colour: str) -> dict[str, Any]:
    """Points of one architecture by rising L0, with a break between sizes and recipes."""
    lines: dict[tuple[Any, ...], list[Member]] = {}
    for member in members:
        lines.setdefault((member.n_latents, str(member.own), str(member.varied), member.training.seed), []).append(
            member
        )
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


def _nulls(evaluations: Mapping[str, Evaluation], score: str) -> dict[str, set[tuple[float, float]]]:
    """Where each null lies, those that several members share once."""
    found: dict[str, set[tuple[float, float]]] = {}
    for evaluation in evaluations.values():
        for name, value in evaluation[score].nulls.items():
            if name in evaluation["l0"].nulls:
                found.setdefault(name, set()).add((evaluation["l0"].nulls[name], value))
    return found


def _endless(colours: Sequence[str]) -> Any:
    while True:
        yield from colours
