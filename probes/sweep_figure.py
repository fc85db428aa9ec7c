"""A score of probes against the layer, with intervals and nulls, drawn with plotly."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..lab.errors import unknown
from ..lab.evidence import Evidence
from ..lab.figures import COLOURS, intervals, laid_out, null_look, plain
from ..lab.models.sites import PATH, Site
from ..lab.score_names import null_label

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from .layer_sweep import ProbeSweep

TITLES = {
    "auc": "AUC on test units",
    "accuracy": "balanced accuracy on test units",
    "r2": "explained variance of test units (R²)",
}
LABELLED = 8
"""Layers that are each named on the axis; more of them leave the choice of ticks to plotly."""
Series = dict[str, list[tuple[float, str, Evidence]]]
"""From the name of a line to its points: where on the axis, the place's name, the score."""


def sweep_figure(sweep: ProbeSweep, score: str | None = None) -> Figure:
    """One line for each kind of probe and kind of site; grey lines are its nulls, worst case over the kinds of probe.

    Places with a layer lie by it; others (heads too) side by side.

    Raises:
        InputError: an unknown score.
    """
    from plotly.graph_objects import Figure, Scatter

    if score is not None and score not in sweep.scores:
        raise unknown("score of probes", score, sweep.scores)
    name = score or sweep.scores[0]
    lines, by_layer = _series(sweep, name)
    figure = Figure()
    for colour, (label, points) in zip(itertools.cycle(COLOURS), lines.items(), strict=False):
        figure.add_trace(Scatter(name=plain(label), **_line(points, colour)))
    for number, (null, points) in enumerate(_nulls(lines).items()):
        figure.add_trace(
            Scatter(
                x=[x for x, _ in points], y=[y for _, y in points], name=f"null: {null_label(null)}",
                mode="lines+markers",
                hovertemplate=f"{null_label(null)}<br>%{{y:.4g}}<extra></extra>", **null_look(null, number).trace(),
            )
        )  # fmt: skip
    drawn = sorted({x for points in lines.values() for x, _, _ in points})
    axis: dict[str, Any] = {"title": {"text": "layer" if by_layer else "place"}}
    if len(drawn) <= LABELLED:
        axis["tickvals"], axis["ticktext"] = drawn, [str(x) for x in drawn]
    axis |= {} if by_layer else {"showticklabels": False}
    return laid_out(figure, axis, TITLES.get(name, name))


def _series(sweep: ProbeSweep, score: str) -> tuple[Series, bool]:
    """The lines, and whether their axis is the layer."""
    sites = {place: Site.parse(next(iter(kinds.values())).probe.source.site) for place, kinds in sweep.measured.items()}
    plain = all(next(iter(kinds.values())).probe.source.head is None for kinds in sweep.measured.values())
    by_layer = plain and all(site.kind != PATH for site in sites.values())
    several = len({_family(place, site) for place, site in sites.items()}) > 1
    lines: Series = {}
    for number, (place, kinds) in enumerate(sweep.measured.items()):
        x = sites[place].layer if by_layer else number
        for kind, scores in kinds.items():
            label = f"{kind}, {_family(place, sites[place])}" if several else kind
            lines.setdefault(label, []).append((x, place, scores[score]))
    return {label: sorted(points, key=lambda point: point[0]) for label, points in lines.items()}, by_layer


def _family(place: str, site: Site) -> str:
    """The key that places of other layers share: the kind of site, and whether they are codes."""
    return site.kind + (" latents" if place.endswith(" latents") else "")


def _line(points: Sequence[tuple[float, str, Evidence]], colour: str) -> dict[str, Any]:
    scores = [evidence for _, _, evidence in points]
    return {
        "x": [x for x, _, _ in points], "y": [score.value for score in scores], "mode": "lines+markers",
        "text": [f"{plain(place)}<br>{score}" for _, place, score in points], "hovertemplate": "%{text}<extra></extra>",
        "marker": {"color": colour, "size": 7}, "line": {"color": colour, "width": 1.8},
        "error_y": intervals([score.value for score in scores], [score.interval for score in scores]),
    }  # fmt: skip


def _nulls(lines: Mapping[str, Sequence[tuple[float, str, Evidence]]]) -> dict[str, list[tuple[float, float]]]:
    """Every null at its highest over the lines."""
    highest: dict[str, dict[float, float]] = {}
    for points in lines.values():
        for x, _, evidence in points:
            for null, value in evidence.nulls.items():
                held = highest.setdefault(null, {})
                held[x] = max(value, held.get(x, value))
    return {null: sorted(held.items()) for null, held in highest.items()}
