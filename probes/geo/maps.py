"""Maps of one unit in plotly: its values in classes, and where they cluster.

Plain axes in degrees: a page with them needs no tiles and no network. A degree east is drawn as long as it is at the
middle latitude of the places.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float64, Int8, Int64

from ...lab.figures import GREY, laid_out, plain
from ...lab.sequences import flags_of, integers_of, numbers_of
from .places import Places
from .statistics import QUADRANTS

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

CLASSES = 9
SEQUENTIAL = ("#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#e8c21c")
CLUSTERS = {"HH": "#d7191c", "HL": "#f0913a", "LH": "#7fb8e0", "LL": "#2155a8"}
MEANINGS = {"HH": "high among high", "HL": "high among low", "LH": "low among high", "LL": "low among low"}


def quantile_classes(
    values: Float64[np.ndarray, " places"], classes: int = CLASSES
) -> tuple[Int64[np.ndarray, " places"], Float64[np.ndarray, " edges"]]:
    """The class of every value, from 0, and the edges between them, both ends included; all about as large.

    Equal values share a class, so there are fewer where many are equal, as where a latent is silent.
    """
    values = numbers_of(values, "values")
    edges = np.unique(np.quantile(values, np.linspace(0, 1, classes + 1)))
    if len(edges) == 1:
        edges = np.repeat(edges, 2)
    return np.searchsorted(edges[1:-1], values, side="right"), edges


def value_map(places: Places, values: Float64[np.ndarray, " places"]) -> Figure:
    """One point a place, coloured by the class of its value."""
    values = numbers_of(values, "values")
    number, edges = quantile_classes(values)
    last = len(edges) - 2
    traces = []
    for step in range(last + 1):
        colour = SEQUENTIAL[round(step * (CLASSES - 1) / max(last, 1))]
        name = f"{edges[step]:.3g} to {edges[step + 1]:.3g}"
        traces.append(_points(places, np.flatnonzero(number == step), values, name, colour))
    return _figure(places, traces)


def cluster_map(
    places: Places,
    values: Float64[np.ndarray, " places"],
    quadrant: Int8[np.ndarray, " places"],
    significant: Bool[np.ndarray, " places"],
) -> Figure:
    """One point a place; those whose local Moran is significant are coloured by their quadrant."""
    values, significant = numbers_of(values, "values"), flags_of(significant, "significance").numpy()
    kind = np.where(significant, np.array(QUADRANTS)[integers_of(quadrant, "quadrants").numpy()], "")
    traces = [_points(places, np.flatnonzero(kind == ""), values, "not significant", GREY, 0.45)]
    for name, colour in CLUSTERS.items():
        traces.append(_points(places, np.flatnonzero(kind == name), values, f"{name}: {MEANINGS[name]}", colour))
    return _figure(places, traces)


def _points(
    places: Places, chosen: np.ndarray, values: np.ndarray, name: str, colour: str, opacity: float = 0.9
) -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "markers", "name": name, "opacity": opacity,
        "x": places.longitude[chosen].tolist(), "y": places.latitude[chosen].tolist(),
        "text": [f"{plain(places.names[i])}, {plain(places.regions[i])}<br>{values[i]:.4g}" for i in chosen.tolist()],
        "hovertemplate": "%{text}<extra></extra>", "marker": {"size": 6, "color": colour},
    }  # fmt: skip


def _figure(places: Places, traces: list[dict[str, Any]]) -> Figure:
    from plotly.graph_objects import Figure

    middle = float(np.radians((places.latitude.min() + places.latitude.max()) / 2))
    figure = Figure([trace for trace in traces if trace["x"]])
    return laid_out(
        figure,
        {"title": {"text": "degrees east"}, "zeroline": False, "constrain": "domain"},
        {"title": {"text": "degrees north"}, "zeroline": False, "constrain": "domain", "scaleanchor": "x",
         "scaleratio": 1 / max(np.cos(middle), 0.05)},
        showlegend=True,
    )  # fmt: skip
