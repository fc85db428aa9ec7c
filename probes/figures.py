"""Figures of one probe's read-out, drawn with plotly: ROC curves, reliability, predicted numbers."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..lab.figures import COLOURS, GREY, laid_out, plain
from .labels import Labels
from .measure import Measured

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

POINTS = 400
"""Of a curve, at most."""


def roc_figure(read_outs: Mapping[str, Measured], labels: Labels) -> Figure:
    """True against false positive rate on tested units; of more than two classes, each against the rest."""
    from plotly.graph_objects import Figure, Scatter

    figure = Figure(
        Scatter(x=[0, 1], y=[0, 1], name="chance", mode="lines", hoverinfo="skip", line={"color": GREY, "dash": "dot"})
    )
    colours = itertools.cycle(COLOURS)
    for name, measured in read_outs.items():
        y, read = labels.y[measured.tested].numpy(), measured.read.double().numpy()
        for label, scores, own in _one_against_rest(name, read, y, labels.classes):
            x, height = roc_curve(scores, own)
            figure.add_trace(
                Scatter(
                    x=x, y=height, name=plain(label), mode="lines",
                    line={"color": next(colours), "width": 1.8, "shape": "hv"},
                    hovertemplate=f"{plain(label)}<br>false positives %{{x:.3f}}<br>true positives %{{y:.3f}}"
                    "<extra></extra>",
                )
            )  # fmt: skip
    return laid_out(figure, "false positive rate", "true positive rate")


def roc_curve(scores: np.ndarray, positive: np.ndarray) -> tuple[list[float], list[float]]:
    """False and true positive rates as the threshold falls, from (0, 0) to (1, 1), thinned to some hundred points."""
    from sklearn.metrics import roc_curve as sklearn_curve

    false, true, _ = sklearn_curve(positive, scores)
    kept = np.unique(np.linspace(0, len(false) - 1, min(len(false), POINTS)).round().astype(int))
    return false[kept].round(5).tolist(), true[kept].round(5).tolist()


def reliability_figure(bins: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Share that is positive against mean chance, by the name of the read-out (`calibration.reliability`)."""
    from plotly.graph_objects import Figure, Scatter

    figure = Figure(
        Scatter(x=[0, 1], y=[0, 1], name="calibrated", mode="lines", hoverinfo="skip",
                line={"color": GREY, "dash": "dot"})
    )  # fmt: skip
    for colour, (name, held) in zip(itertools.cycle(COLOURS), bins.items(), strict=False):
        figure.add_trace(
            Scatter(
                x=[bin["chance"] for bin in held], y=[bin["positive"] for bin in held], name=plain(name),
                mode="lines+markers",
                line={"color": colour, "width": 1.5}, marker={"color": colour, "size": 7},
                text=[f"{bin['units']} units" for bin in held],
                hovertemplate="chance %{x:.3f}<br>positive %{y:.3f}<br>%{text}<extra></extra>",
            )
        )  # fmt: skip
    return laid_out(figure, "mean chance", "share that is positive")


def predicted_figure(read_outs: Mapping[str, Measured], labels: Labels, output: int = 0) -> Figure:
    """Predicted against true numbers of one output."""
    from plotly.graph_objects import Figure, Scatter

    figure = Figure()
    for colour, (name, measured) in zip(itertools.cycle(COLOURS), read_outs.items(), strict=False):
        figure.add_trace(
            Scatter(
                x=labels.y[measured.tested, output].tolist(), y=measured.read[:, output].tolist(), name=plain(name),
                mode="markers",
                marker={"color": colour, "size": 5, "opacity": 0.6},
            )
        )  # fmt: skip
    return laid_out(figure, "true", "predicted")


def _one_against_rest(
    name: str, read: np.ndarray, y: np.ndarray, classes: Sequence[str]
) -> list[tuple[str, np.ndarray, np.ndarray]]:
    if read.shape[1] == 1:
        return [(name, read[:, 0], y)]
    if len(classes) == 2:
        return [(name, read[:, 1] - read[:, 0], y)]
    return [(f"{name}: {label}", read[:, c], (y == c).astype(int)) for c, label in enumerate(classes)]
